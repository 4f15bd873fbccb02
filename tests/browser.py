"""Drives a headless Chromium over its debugging pipe (file descriptors 3 and 4), with the standard
library alone.
"""

import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


def executable() -> str | None:
  return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
  """One page: calls of the DevTools protocol, and what the tests want of it."""

  def __init__(self, write_fd: int, read_fd: int):
    self._write, self._read, self._rest, self._ids, self._session = (
      write_fd,
      read_fd,
      b'',
      itertools.count(1),
      None,
    )
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']

  def call(self, method: str, **params):
    number = next(self._ids)
    message = {'id': number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._write, json.dumps(message).encode() + b'\0')
    while True:
      found = self._receive()
      if found.get('id') == number:
        assert 'error' not in found, (method, found['error'])
        return found['result']

  def _receive(self, seconds: float = 120):
    while b'\0' not in self._rest:
      ready, _, _ = select.select([self._read], [], [], seconds)
      assert ready, 'Chromium does not answer'
      part = os.read(self._read, 1 << 16)
      assert part, 'Chromium has ended'
      self._rest += part
    message, self._rest = self._rest.split(b'\0', 1)
    return json.loads(message)

  def run(self, script: str):
    """Returns the value of an expression (awaited where it is a promise)."""
    found = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
    assert 'exceptionDetails' not in found, found['exceptionDetails']
    return found['result'].get('value')

  def wait(self, condition: str, seconds: float = 60):
    end = time.monotonic() + seconds
    while not self.run(condition):
      assert time.monotonic() < end, f'not within {seconds} s: {condition}'
      time.sleep(0.05)

  def open(self, url: str):
    self.call('Page.navigate', url=url)
    self.wait(f'document.readyState === "complete" && location.href === {json.dumps(url)}')

  def press(self, key: str, code: str | None = None):
    text = {'text': key} if len(key) == 1 else {'text': '\r'} if key == 'Enter' else {}
    for kind in ('keyDown', 'keyUp'):
      self.call(
        'Input.dispatchKeyEvent',
        type=kind,
        key=key,
        code=code or '',
        **(text if kind == 'keyDown' else {}),
      )


@contextlib.contextmanager
def page(profile: pathlib.Path, *flags: str):
  """Yields a Page of a new browser, whose files are in `profile`, with more flags."""
  # its descriptor 3 reads what we write, its 4 writes what we read
  to_read, to_write = os.pipe(), os.pipe()
  command = [
    executable(),
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--mute-audio',
    '--remote-debugging-pipe',
    '--autoplay-policy=no-user-gesture-required',
    f'--user-data-dir={profile}',
    '--no-first-run',
    '--window-size=900,900',
    *flags,
  ]

  def arrange():
    ends = os.dup(to_read[0]), os.dup(to_write[1])
    for end, descriptor in zip(ends, (3, 4)):
      os.dup2(end, descriptor)

  process = subprocess.Popen(
    command,
    preexec_fn=arrange,
    close_fds=False,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    yield Page(to_read[1], to_write[0])
  finally:
    process.terminate()
    process.wait(30)
    for descriptor in (*to_read, *to_write):
      os.close(descriptor)
