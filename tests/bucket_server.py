"""A bucket on this machine: the part of GCS's JSON API that tensorstore and ArrayRecord use, strict
about preconditions and cut uploads, with faults.

  python -m tests.bucket_server PORT

POST /faults takes a list of faults, of which the first that applies is used:
  match: regular expression of 'METHOD path', '' for all
  status: HTTP status of the answer; nothing is done
  lost: the request is done, but its answer is lost
  stall: seconds to wait
  hold: seconds to wait within the request, before its second half is read
  rate: share of the requests that the fault applies to (1)
  times: number of requests after which the fault ends (no end)
  once_a_second: a second write of an object within a second is refused with 429
GET /counts returns the numbers of requests by kind and by token, and of the most at once.
GCS is not here what this cannot show: HTTPS, IAM, quotas, soft deletion, hierarchical namespaces.
"""

import collections
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MISSING, FORBIDDEN = 'missing-bucket', 'forbidden-bucket'  # all other buckets exist
_PATH = re.compile(r'(?:/upload|/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^/]+))?')


class Store:
  """Objects as (generation, data), by bucket and name."""

  def __init__(self):
    self.lock = threading.RLock()
    self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
    self.uploads: dict[str, list] = {}
    self.generation = 1_000_000
    self.faults: list[dict] = []
    self.counts: collections.Counter = collections.Counter()
    self.num_open = 0  # requests that wait
    self.written_at: dict[tuple[str, str], float] = {}
    self.random = random.Random(0)

  def fault(self, what: str) -> dict:
    with self.lock:
      for fault in self.faults:
        applies = re.search(fault.get('match', ''), what) and fault.get('times', 1) > 0
        if applies and self.random.random() < fault.get('rate', 1):
          if 'times' in fault:
            fault['times'] -= 1
          return fault
    return {}


STORE = Store()


class Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  lost = False

  def log_message(self, *unused):
    pass

  def setup(self):
    super().setup()
    self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

  def answer(self, code: int, body: bytes | dict | list = b'', headers=()):
    if self.lost:
      self.close_connection = True
      self.connection.close()
      return
    if not isinstance(body, bytes):
      body, headers = json.dumps(body).encode(), [('Content-Type', 'application/json'), *headers]
    self.send_response(code)
    for name, value in headers:
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def error(self, code: int, message: str):
    self.answer(code, {'error': {'code': code, 'message': message}})

  def content(self, hold: float) -> bytes | None:
    """Returns the content of the request; None if it was cut: then nothing may be written."""
    if (self.headers.get('Transfer-Encoding') or '').lower() == 'chunked':
      parts = []
      while size := int(self.rfile.readline().strip() or b'0', 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b''.join(parts)
    size = int(self.headers.get('Content-Length') or 0)
    try:
      data = self.rfile.read(size // 2)
      time.sleep(hold)
      data += self.rfile.read(size - size // 2)
    except ConnectionError:
      return None
    return data if len(data) == size else None

  def serve(self):
    url = urllib.parse.urlsplit(self.path)
    match, fault = _PATH.fullmatch(url.path), {}
    if match:
      fault = STORE.fault(f'{self.command} {urllib.parse.unquote(self.path)}')
      with STORE.lock:
        STORE.counts['faults'] += bool(fault)
    data = self.content(fault.get('hold', 0))
    if data is None:
      self.close_connection = True
      return
    query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query, True).items()}
    self.lost = False
    if url.path == '/faults':
      STORE.faults = json.loads(data)
      self.answer(200)
    elif url.path == '/counts':
      self.answer(200, dict(STORE.counts))
    elif match:
      self.serve_objects(match, url.path, query, data, fault)
    else:
      self.error(404, 'no such address')

  def serve_objects(self, match, path: str, query: dict, data: bytes, fault: dict):
    bucket, name = match['bucket'], urllib.parse.unquote(match['name'] or '')
    is_upload = path.startswith('/upload')
    kind = 'upload' if is_upload else ('list' if not name else self.command.lower())
    with STORE.lock:
      STORE.counts[kind] += 1
      if token := (self.headers.get('Authorization') or '').removeprefix('Bearer '):
        STORE.counts[f'token {token}'] += 1
      STORE.num_open += 1
      STORE.counts['most at once'] = max(STORE.counts['most at once'], STORE.num_open)
    time.sleep(fault.get('stall', 0))
    with STORE.lock:
      STORE.num_open -= 1
    if 'status' in fault:
      return self.error(fault['status'], 'fault')
    self.lost = bool(fault.get('lost'))
    if bucket == MISSING:
      return self.error(404, 'The specified bucket does not exist.')
    if bucket == FORBIDDEN:
      return self.error(403, 'The account does not have storage.objects access.')
    if is_upload:
      return self.upload(bucket, query, data, fault.get('once_a_second', False))
    if not name:
      return self.list(bucket, query)
    return self.serve_object(bucket, name, query)

  def serve_object(self, bucket: str, name: str, query: dict):
    with STORE.lock:
      found = STORE.objects.get((bucket, name))
      there = str(found[0]) if found else '0'
      if query.get('ifGenerationMatch') not in (None, there):
        return self.error(412, 'conditionNotMet')
      if found is None:
        return self.error(404, f'No such object: {bucket}/{name}')
      if query.get('ifGenerationNotMatch') == there:
        return self.answer(304)
      if self.command == 'DELETE':
        del STORE.objects[bucket, name]
        return self.answer(204)
    generation, body = found
    if query.get('alt') != 'media':
      return self.answer(200, _resource(bucket, name, generation, body))
    code, headers = 200, [('x-goog-generation', there)]
    if span := re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or ''):
      size = len(body)
      first = int(span[1]) if span[1] else max(size - int(span[2]), 0)
      stop = min(int(span[2]) + 1, size) if span[1] and span[2] else size
      if first >= size:
        return self.answer(416, headers=[('Content-Range', f'bytes */{size}')])
      body, code = body[first:stop], 206
      headers.append(('Content-Range', f'bytes {first}-{stop - 1}/{size}'))
    headers.append(('Content-Type', 'application/octet-stream'))
    return self.answer(code, body, headers)

  def upload(self, bucket: str, query: dict, data: bytes, once_a_second: bool):
    kind = query.get('uploadType')
    if kind == 'media':
      return self.put(bucket, query['name'], data, query, once_a_second)
    if kind == 'multipart':
      mark = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
      _, described, rest = data.split(b'--' + mark, 2)
      described = json.loads(described.split(b'\r\n\r\n', 1)[1])
      data = rest.split(b'\r\n\r\n', 1)[1].rsplit(b'\r\n--' + mark, 1)[0]
      return self.put(bucket, query.get('name') or described['name'], data, query, once_a_second)
    if 'upload_id' not in query:
      name = query.get('name') or json.loads(data)['name']
      with STORE.lock:
        identity = str(len(STORE.uploads))
        STORE.uploads[identity] = [name, query, b'']
      where = f'http://{self.headers["Host"]}/upload/storage/v1/b/{bucket}/o'
      place = f'{where}?uploadType=resumable&upload_id={identity}'
      return self.answer(200, headers=[('Location', place)])
    upload = STORE.uploads[query['upload_id']]
    name, query, so_far = upload
    span = re.fullmatch(
      r'bytes (?:(\d+)-(\d+|\*)|\*)/(\d+|\*)', self.headers.get('Content-Range') or ''
    )
    if span is None or (span[1] is not None and int(span[1]) == len(so_far)):
      upload[2] = so_far + data
    if span is not None and (span[3] == '*' or len(upload[2]) < int(span[3])):
      got = [('Range', f'bytes=0-{len(upload[2]) - 1}')] if upload[2] else []
      return self.answer(308, headers=got)
    return self.put(bucket, name, upload[2], query, once_a_second)

  def put(self, bucket: str, name: str, data: bytes, query: dict, once_a_second: bool):
    with STORE.lock:
      found = STORE.objects.get((bucket, name))
      there = str(found[0]) if found else '0'
      if query.get('ifGenerationMatch') not in (None, there):
        return self.error(412, 'conditionNotMet')
      now = time.monotonic()
      if once_a_second and now - STORE.written_at.get((bucket, name), -1.0) < 1:
        STORE.counts['too fast'] += 1
        return self.error(429, 'rateLimitExceeded')
      STORE.generation += 1
      STORE.objects[bucket, name] = (STORE.generation, data)
      STORE.written_at[bucket, name] = now
      return self.answer(200, _resource(bucket, name, STORE.generation, data))

  def list(self, bucket: str, query: dict):
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    first, stop = query.get('startOffset', ''), query.get('endOffset')
    with STORE.lock:
      names = [name for there, name in STORE.objects if there == bucket and name >= first]
      names = [name for name in names if name.startswith(prefix) and (not stop or name < stop)]
      shown: dict[str, dict | None] = {}
      for name in sorted(names):
        head, slash, _ = name[len(prefix) :].partition(delimiter or '\0')
        is_folder = bool(delimiter and slash)
        key = prefix + head + slash if is_folder else name
        shown[key] = None if is_folder else _resource(bucket, name, *STORE.objects[bucket, name])
    keys = [key for key in shown if key > query.get('pageToken', '')]
    page = keys[: int(query.get('maxResults', 1000))]
    found = {
      'items': [shown[key] for key in page if shown[key]],
      'prefixes': [key for key in page if not shown[key]],
      'nextPageToken': page[-1] if len(page) < len(keys) else '',
    }
    found = {name: value for name, value in found.items() if value}
    self.answer(200, {'kind': 'storage#objects', **found})

  do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = serve


def _resource(bucket: str, name: str, generation: int, data: bytes) -> dict:
  when = '2026-01-01T00:00:00.000Z'
  return {
    'kind': 'storage#object',
    'bucket': bucket,
    'name': name,
    'generation': str(generation),
    'metageneration': '1',
    'size': str(len(data)),
    'updated': when,
    'timeCreated': when,
    'etag': str(generation),
  }


class _Server(ThreadingHTTPServer):
  daemon_threads, request_queue_size = True, 256

  def handle_error(self, request, client_address):
    if not isinstance(sys.exception(), ConnectionError):  # ArrayRecord ends each connection so
      super().handle_error(request, client_address)


# What makes clients speak to the server instead of GCS.
CLIENTS = ('TENSORSTORE_GCS_HTTP_URL', 'CLOUD_STORAGE_EMULATOR_ENDPOINT')


@contextlib.contextmanager
def running() -> Iterator[str]:
  """Yields the address of a server in a process of its own, to which the clients of this process
  and its children are directed.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  server = subprocess.Popen([sys.executable, '-m', 'tests.bucket_server', str(port)])
  address = f'http://127.0.0.1:{port}'
  before = {name: os.environ.get(name) for name in CLIENTS}
  try:
    while True:
      with contextlib.suppress(OSError):
        counts(address)
        break
      assert server.poll() is None
      time.sleep(0.02)
    os.environ.update(dict.fromkeys(CLIENTS, address))
    yield address
  finally:
    server.terminate()
    server.wait()
    for name, value in before.items():
      os.environ.pop(name)
      if value is not None:
        os.environ[name] = value


def set_faults(address: str, *faults: dict) -> None:
  request = urllib.request.Request(f'{address}/faults', json.dumps(faults).encode())
  urllib.request.urlopen(request).close()


def counts(address: str) -> dict[str, int]:
  with urllib.request.urlopen(f'{address}/counts') as answer:
    return json.load(answer)


if __name__ == '__main__':
  _Server(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
