"""The web page's server: jobs by toy models, uploads in children, hostile requests, and the page."""

import concurrent.futures
import contextlib
import html.parser
import http.client
import importlib.util
import io
import json
import os
import pathlib
import random
import resource
import socket
import threading
import time

import jax
import numpy as np
import pytest
import soundfile

from audiolm_jax import chain, codes_file, generation
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import Rule
from experiments import serve
from experiments.serving import jobs, uploads
from tests import browser, toys
from tests.experiments import decoders

testclient = pytest.importorskip('starlette.testclient')  # of the extra `serve`
uvicorn = pytest.importorskip('uvicorn')
from experiments.serving import app  # imports starlette

FOLDER = pathlib.Path(app.__file__).parent
ADDRESS = 'http://localhost'


@pytest.fixture(scope='module')
def models():
  return toys.models()


def sound(seconds=1.0, rate=toys.RATE, kind='WAV'):
  """Returns an audio file of noise."""
  file = io.BytesIO()
  soundfile.write(file, toys.noise(seconds), rate, format=kind)
  return file.getvalue()


@contextlib.contextmanager
def client(models, make=None, **options):
  """Yields a client of an application in this process, with one example."""
  examples = {'an example': toys.noise(1.0)}
  served = app.make(jobs.Worker(models, make), examples, **options)
  with testclient.TestClient(served, base_url=ADDRESS) as found:
    yield found


def finished(found, name, seconds=60):
  """Returns the report of a job after its end."""
  end = time.monotonic() + seconds
  while (report := found.get(f'/api/jobs/{name}').json())['state'] in ('waiting', 'running'):
    assert time.monotonic() < end
    time.sleep(0.01)
  return report


class Steps:
  """A stand-in for the models: pieces of 0.1 s, each when the test lets it come."""

  def __init__(self, count=4):
    self.count, self.permits, self.computed = count, threading.Semaphore(0), 0

  def __call__(self, models, job):
    job.total_samples = self.count * 1600
    for _ in range(self.count):
      while not self.permits.acquire(timeout=0.02):
        if job.stopping.is_set():
          return
      self.computed += 1
      yield np.full(1600, 0.25, np.float32)

  def allow(self, count):
    self.permits.release(count)


def test_a_recording_is_continued_as_the_library_does(models):
  with client(models) as found:
    sent = found.post('/api/clips', content=sound(1.0, kind='FLAC'))
    assert sent.status_code == 201 and sent.json()['seconds'] == 1.0
    wanted = {'kind': 'continue', 'seconds': 0.6, 'seed': 7, 'acoustic': 'soundstorm'}
    wanted['clip'] = sent.json()['id']
    name = found.post('/api/jobs', json=wanted).json()['id']
    samples_T = np.frombuffer(found.get(f'/api/jobs/{name}/pcm').content, '<i2')
    report = finished(found, name)
    file = found.get(f'/api/jobs/{name}/wav').content
    clip = found.get(f'/api/clips/{sent.json()["id"]}/wav').content
  prompt_T, rate = soundfile.read(io.BytesIO(clip), dtype='float32')
  whole = generation.continue_audio(
    models, jax.random.key(7), prompt_T[None], seconds=0.6, acoustic='soundstorm'
  )
  np.testing.assert_allclose(samples_T / 32767, np.clip(whole.wave_BT[0], -1, 1), atol=1e-4)
  heard_T, file_rate = soundfile.read(io.BytesIO(file), dtype='int16')
  np.testing.assert_array_equal(heard_T, samples_T)
  assert rate == file_rate == toys.RATE
  assert report['state'] == 'done' and report['request']['seed'] == 7
  assert (report['prompt_seconds'], report['seconds'], report['total_seconds']) == (1.0, 1.6, 1.6)
  assert report['real_time_factor'] == pytest.approx(report['computing_seconds'] / 0.6, rel=0.01)
  assert 0 < report['first_sound_seconds'] <= report['computing_seconds']


def test_the_codec_tab_gives_a_file_of_the_chosen_levels(models):
  with client(models) as found:
    wanted = {'kind': 'codec', 'levels': 3, 'clip': 'example0'}
    name = found.post('/api/jobs', json=wanted).json()['id']
    report = finished(found, name)
    samples_T = np.frombuffer(found.get(f'/api/jobs/{name}/pcm').content, '<i2')
    header, codes_FQ = codes_file.decode(found.get(f'/api/jobs/{name}/alm').content, 'it')
    assert report['file_bytes'] == header.num_bytes
    other = found.post('/api/jobs', json={'kind': 'codec', 'levels': 5, 'clip': 'example0'})
    assert 'the codec has levels 1 to 4' in finished(found, other.json()['id'])['error']
  codec, wave_BT = models.tokenizer.codec, toys.noise(1.0)[None]
  assert header.num_quantizers == 3 and header.num_samples == len(samples_T) == toys.RATE
  assert report['kbit_per_second'] == 0.6  # 50 frames/s, 3 levels of 4 bits
  np.testing.assert_array_equal(codes_FQ, codec.encode(wave_BT, levels=3)[0])
  expected_T = np.asarray(codec.decode(codes_FQ[None]))[0]
  np.testing.assert_allclose(samples_T / 32767, np.clip(expected_T, -1, 1), atol=1e-4)


def test_words_in_another_voice_leave_the_voice_itself_out(models):
  with client(models) as found:
    words = found.post('/api/clips', content=sound(0.6)).json()['id']
    wanted = {'kind': 'voice', 'clip': words, 'voice': 'example0', 'prompt_seconds': 0.6}
    wanted['acoustic'] = 'soundstorm'
    name = found.post('/api/jobs', json=wanted).json()['id']
    report = finished(found, name)
    samples_T = np.frombuffer(found.get(f'/api/jobs/{name}/pcm').content, '<i2')
  clip = soundfile.read(io.BytesIO(sound(0.6)), dtype='float32')[0]
  [words_S], _ = models.tokenizer.encode(clip[None])
  [voice_S], [voice_FQ] = models.tokenizer.encode(toys.noise(1.0)[None, :9600])
  whole = generation.generate_acoustics(
    models,
    jax.random.key(0),
    np.concatenate([voice_S, words_S])[None],
    voice_FQ[None],
    acoustic='soundstorm',
  )
  assert report['seconds'] == 0.6
  expected_T = np.clip(whole.wave_BT[0, 9600:], -1, 1)
  np.testing.assert_allclose(samples_T / 32767, expected_T, atol=1e-4)


def test_a_factor_heats_all_rules():
  rules = chain.SamplingConfig(semantic=Rule(0.6, top_k=5), coarse=lambda *_: 0)
  hot = jobs.heated(rules, 2.0)
  assert hot.semantic == Rule(1.2, top_k=5) and hot.coarse is rules.coarse
  assert hot.soundstorm.noise == 2 * rules.soundstorm.noise
  assert hot.soundstorm.rule.temperature == 2 * rules.soundstorm.rule.temperature
  assert jobs.heated(rules, 0).fine.temperature == 0


def test_one_job_runs_four_wait_and_the_sixth_is_refused(models):
  steps = Steps(1)
  with client(models, steps) as found:
    submit = lambda: found.post('/api/jobs', json={'kind': 'continue', 'clip': 'example0'})
    names = [submit().json()['id']]
    while found.get(f'/api/jobs/{names[0]}').json()['state'] == 'waiting':
      time.sleep(0.01)
    names += [submit().json()['id'] for _ in range(4)]
    places = [found.get(f'/api/jobs/{name}').json()['place'] for name in names]
    assert places == [0, 1, 2, 3, 4]
    refused = submit()
    assert refused.status_code == 429 and refused.json()['error'] == '4 jobs wait: try again soon'
    # One that waits is stopped at once, and leaves its place.
    assert found.delete(f'/api/jobs/{names[2]}').json()['state'] == 'stopped'
    names.append(submit().json()['id'])
    assert submit().status_code == 429
    steps.allow(9)
    states = [finished(found, name)['state'] for name in names]
  assert states == ['done', 'done', 'stopped', 'done', 'done', 'done'] and steps.computed == 5


def test_a_stopped_job_computes_nothing_more_and_keeps_what_it_made(models):
  steps = Steps(100)
  with client(models, steps) as found:
    name = found.post('/api/jobs', json={'kind': 'continue', 'clip': 'example0'}).json()['id']
    steps.allow(2)
    while found.get(f'/api/jobs/{name}').json()['seconds'] < 0.2:
      time.sleep(0.01)
    found.delete(f'/api/jobs/{name}')
    steps.allow(98)
    report = finished(found, name)
    # One more window may have been under way.
    assert report['state'] == 'stopped' and report['seconds'] <= 0.3 and steps.computed <= 3
    pcm = found.get(f'/api/jobs/{name}/pcm').content
    assert len(pcm) == 2 * round(report['seconds'] * toys.RATE)


def test_a_fault_fails_one_job_and_not_the_next(models, capsys):
  def make(models, job):
    if job.request.seed == 1:
      raise UserError('this recording will not do')
    if job.request.seed == 2:
      raise RuntimeError('a secret')
    yield np.zeros(1600, np.float32)

  with client(models, make) as found:
    reports = []
    for seed in (1, 2, 3):
      wanted = {'kind': 'continue', 'clip': 'example0', 'seed': seed}
      reports.append(finished(found, found.post('/api/jobs', json=wanted).json()['id']))
  assert [report['state'] for report in reports] == ['failed', 'failed', 'done']
  assert reports[0]['error'] == 'this recording will not do'
  assert 'secret' not in reports[1]['error'] and 'a secret' in capsys.readouterr().err


def test_requests_of_other_sites_and_names_are_refused(models):
  with client(models, Steps()) as found:
    for host in ('evil.example', 'localhost.evil.example', 'localhost@evil.example', '[::1', ''):
      assert found.get('/', headers={'Host': host}).status_code == 421, host
    for host in ('localhost:8000', '127.0.0.1:9', '[::1]:8000', 'LOCALHOST'):
      assert found.get('/', headers={'Host': host}).status_code == 200, host
    wanted = {'kind': 'continue', 'clip': 'example0'}
    for headers in (
      {'Origin': 'http://evil.example'},
      {'Origin': 'http://localhost:3000'},
      {'Origin': 'null'},
      {'Origin': 'http://[::1'},
      {'Sec-Fetch-Site': 'cross-site'},
      {'Sec-Fetch-Site': 'same-site'},
    ):
      assert found.post('/api/jobs', json=wanted, headers=headers).status_code == 403, headers
    own = {'Origin': ADDRESS, 'Sec-Fetch-Site': 'same-origin'}
    assert found.post('/api/jobs', json=wanted, headers=own).status_code == 202
    # A link of another site may lead to the page itself.
    assert found.get('/', headers={'Sec-Fetch-Site': 'cross-site'}).status_code == 200


def test_a_token_is_demanded_where_there_is_one(models):
  with client(models, Steps(), token='s3cret') as found:
    assert found.get('/').status_code == 200  # the page, which holds nothing
    for shown in ('', 's3cret', 'Bearer ', 'Bearer s3cre', 'bearer s3cret', 'Bearer é'):
      answer = found.get('/api/about', headers={'Authorization': shown.encode()})
      assert answer.status_code == 401, shown
    answer = found.get('/api/about', headers={'Authorization': 'Bearer s3cret'})
    assert answer.status_code == 200 and answer.json()['levels'] == toys.LEVELS


def test_wrong_requests_are_named_and_touch_nothing(models, monkeypatch):
  monkeypatch.setattr(uploads, 'MAX_BYTES', 100_000)
  monkeypatch.setattr(uploads, 'MAX_SECONDS', 2.0)
  with client(models, Steps()) as found:
    too_large = found.post('/api/clips', content=bytes(100_001))
    assert too_large.status_code == 413
    parts = (bytes(10_000) for _ in range(20))  # without a declared length
    assert found.post('/api/clips', content=parts).status_code == 413
    for garbage, message in (
      (b'', 'empty'),
      (random.Random(0).randbytes(5000), 'the recording'),
      (b'<html>', 'the recording'),
      (sound()[:1000], 'cut short'),
      (b'../../etc/passwd', 'the recording'),
    ):
      answer = found.post('/api/clips', content=garbage)
      assert answer.status_code == 400 and message in answer.json()['error'], garbage[:20]
    for path in (
      '/..%2f..%2fsetup.py',
      '/%2e%2e/app.py',
      '/app.py',
      '/page.html/../app.py',
      '/api/clips/..%2f..%2fsetup.py/wav',
      '/api/clips/%00/wav',
      '/api/jobs/' + 'x' * 3000,
      '/api/jobs/example0/alm',
    ):
      assert found.get(path).status_code == 404, path
    for content, message in (
      ('[', 'not a JSON object'),
      ('[' * 4000, 'not a JSON object'),
      ('[]', 'not a JSON object'),
      ('{}', 'other fields'),
      ('{"kind": "continue", "clip": "example0", "path": "/etc/passwd"}', 'other fields'),
      ('{"kind": "delete", "clip": "example0"}', 'kind='),
      ('{"kind": "continue", "clip": "example0", "seconds": 31}', 'a number from 0.2 to 30'),
      ('{"kind": "continue", "clip": "example0", "seconds": NaN}', 'a number from 0.2 to 30'),
      ('{"kind": "continue", "clip": "example0", "seconds": "5"}', 'a number from 0.2 to 30'),
      ('{"kind": "continue", "clip": "example0", "prompt_seconds": 11}', 'from 0.2 to 10'),
      ('{"kind": "continue", "clip": "example0", "seed": -1}', 'seed=-1'),
      ('{"kind": "continue", "clip": "example0", "seed": 1e400}', 'seed=inf'),
      ('{"kind": "continue", "clip": "example0", "acoustic": ["x"]}', 'acoustic='),
      ('{"kind": "codec", "clip": "example0", "levels": 0}', 'levels=0'),
    ):
      answer = found.post('/api/jobs', content=content)
      assert answer.status_code == 400 and message in answer.json()['error'], content[:60]
    for clip in ('"example1"', '"../x"', 'null', '{"a": 1}', '7'):
      content = f'{{"kind": "continue", "clip": {clip}}}'
      assert found.post('/api/jobs', content=content).status_code == 404, clip
    assert found.post('/api/jobs', content=b' ' * 5000).status_code == 413
    assert found.put('/api/jobs/x').status_code == 405


def test_values_are_kept_for_a_time_and_in_a_number(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  shelf = jobs.Shelf(capacity=3, seconds=10)
  names = [shelf.put(n) for n in range(4)]
  assert [shelf.get(name) for name in names] == [None, 1, 2, 3] and len(set(names)) == 4
  clock[0] = 10.5
  assert shelf.get(names[3]) is None and shelf.get(shelf.put(7)) == 7


@pytest.mark.parametrize('name', ['hungry', 'hanging', 'dying', 'writing'])
def test_a_decoder_that_exceeds_its_limits_ends_alone(name, monkeypatch, tmp_path):
  """The memory of a decoder, its time, its crash; and what it tries to write."""
  monkeypatch.setattr(uploads, '_answer', getattr(decoders, name))
  monkeypatch.setattr(uploads, 'CHILD_SECONDS', 1 if name == 'hanging' else 300)
  path, begun = tmp_path / 'written', time.monotonic()
  with pytest.raises(UserError, match='cannot be decoded within .* s and 512 MiB: save it as WAV'):
    uploads.decode(os.fsencode(path), toys.RATE)
  assert time.monotonic() - begun < 200  # it ended by itself, if it did not hang
  assert not path.exists() or not path.stat().st_size


def test_recordings_are_resampled_and_mixed():
  file = io.BytesIO()
  soundfile.write(file, np.full((44_100, 2), (0.5, 0.1)), 44_100, format='WAV')
  wave_T = uploads.decode(file.getvalue(), toys.RATE)
  assert wave_T.shape == (toys.RATE,) and wave_T.dtype == np.float32
  np.testing.assert_allclose(wave_T[2000:-2000], 0.3, atol=1e-3)
  with pytest.raises(UserError, match='the recording: 31 s of audio, more than'):
    uploads.decode(sound(31.0), toys.RATE)


@pytest.mark.parametrize(
  'host, names, is_local, expected',
  [
    ('127.0.0.1', [], True, '127.0.0.1'),
    ('localhost', [], True, '127.0.0.1'),
    ('::1', [], True, '127.0.0.1'),
    ('127.0.0.1', ['a.example'], False, 'a.example'),  # behind a proxy
    ('10.0.0.5', [], False, '10.0.0.5'),
    ('0.0.0.0', ['a.example'], False, 'a.example'),
  ],
)
def test_other_hosts_demand_a_token(host, names, is_local, expected):
  found = serve.names_of(host, names)
  assert found[0] is is_local and found[1][0] == expected


def test_flags_that_cannot_be_served_are_named(monkeypatch):
  with pytest.raises(UserError, match='all addresses: give the name that browsers use, --name'):
    serve.names_of('0.0.0.0', [])
  with pytest.raises(UserError, match='--host=a.example: give an address of this machine'):
    serve.names_of('a.example', [])
  with serve.listening('127.0.0.1', 0) as taken:
    with pytest.raises(UserError, match='in use.*: choose another port'):
      serve.listening('127.0.0.1', taken.getsockname()[1])
  assert serve.address('::1', 80, 'abc') == 'http://[::1]:80/#token=abc'
  monkeypatch.setattr('sys.argv', ['serve'])
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"serve needs starlette: run `pip install -e '.\[serve\]'`"):
    serve.main()


def test_the_page_asks_no_other_server_and_states_the_limits(models):
  class Page(html.parser.HTMLParser):
    links, inputs, inline = [], {}, []

    def handle_starttag(self, tag, attributes):
      attributes = dict(attributes)
      self.links += [attributes[name] for name in ('src', 'href') if name in attributes]
      self.inline += [name for name in attributes if name.startswith('on') or name == 'style']
      if tag == 'input' and 'name' in attributes:
        self.inputs[attributes['name']] = attributes

  page = Page()
  with client(models, Steps()) as found:
    answers = {path: found.get(path) for path in app.PAGE}
    page.feed(answers['/'].text)
  assert set(page.links) == {'/page.css', '/page.js'} and not page.inline
  assert 'http' not in (FOLDER / 'page.js').read_text().replace('HTTPS', '')
  for path, kind in zip(app.PAGE, ('text/html', 'text/css', 'text/javascript')):
    assert answers[path].headers['content-type'].startswith(kind)
    policy = answers[path].headers['content-security-policy']
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert 'unsafe' not in policy and answers[path].headers['x-content-type-options'] == 'nosniff'
  limits = {name: (float(row['min']), float(row['max'])) for name, row in page.inputs.items()}
  assert limits['seconds'] == (jobs.LEAST_SECONDS, jobs.MAX_SECONDS)
  assert limits['prompt_seconds'] == (jobs.LEAST_SECONDS, jobs.MAX_PROMPT_SECONDS)
  assert limits['seed'] == (0, 2**32 - 1) and limits['temperature'] == (0, 2)


@contextlib.contextmanager
def serving(models, make=None, **options):
  """Yields the port of a real server."""
  with serve.listening('127.0.0.1', 0) as listener:
    served = app.make(jobs.Worker(models, make), {'an example': toys.noise(1.0)}, **options)
    config = uvicorn.Config(served, log_level='warning', http='h11', ws='none')
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]}, daemon=True)
    thread.start()
    try:
      yield listener.getsockname()[1]
    finally:
      server.should_exit = True
      thread.join(30)


def test_sound_arrives_while_it_is_generated(models):
  steps = Steps(3)
  with serving(models, steps) as port:
    link = http.client.HTTPConnection('localhost', port, timeout=60)
    link.request('POST', '/api/jobs', json.dumps({'kind': 'continue', 'clip': 'example0'}))
    name = json.load(link.getresponse())['id']
    link.request('GET', f'/api/jobs/{name}/pcm')
    answer = link.getresponse()
    for count in range(1, 4):
      steps.allow(1)
      assert len(answer.read(3200)) == 3200 and steps.computed == count
    assert answer.read() == b''


@pytest.mark.slow
def test_200_requests_of_which_a_fifth_is_hostile(models):
  """By 16 clients at once: each honest job ends with its sound, however often it is sent away
  first; memory stays bounded.
  """

  def make(models, job):
    job.total_samples = 3200
    for _ in range(2):
      time.sleep(0.002)
      yield np.full(1600, 0.25, np.float32)

  def ask(port, method, path, body=None, headers=None):
    link = http.client.HTTPConnection('localhost', port, timeout=60)
    try:
      link.request(method, path, body, headers or {})
      answer = link.getresponse()
      return answer.status, answer.read()
    finally:
      link.close()

  def honest(port, n):
    while (found := ask(port, 'POST', '/api/clips', sound(0.5)))[0] == 503:
      time.sleep(0.05)
    body = json.dumps({'kind': 'continue', 'clip': json.loads(found[1])['id'], 'seed': n})
    while (found := ask(port, 'POST', '/api/jobs', body))[0] in (429, 503):
      time.sleep(0.02)
    assert found[0] == 202, found
    status, samples = ask(port, 'GET', f'/api/jobs/{json.loads(found[1])["id"]}/pcm')
    assert status == 200 and len(samples) == 6400
    return 'heard'

  def hostile(port, n):
    kind = n // 5 % 5
    try:
      if kind == 0:
        status, _ = ask(port, 'POST', '/api/clips', bytes(uploads.MAX_BYTES + 1))
      elif kind == 1:
        status, _ = ask(port, 'POST', '/api/clips', random.Random(n).randbytes(100_000))
      elif kind == 2:
        status, _ = ask(port, 'GET', '/api/about', headers={'Host': 'evil.example'})
      elif kind == 3:
        status, _ = ask(port, 'GET', '/api/clips/..%2f..%2fetc%2fpasswd/wav')
      else:  # half a request, then nothing
        with socket.create_connection(('localhost', port)) as link:
          link.sendall(
            b'POST /api/clips HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nx'
          )
        return 'refused'
    except (ConnectionError, http.client.HTTPException):  # answered before all was sent
      return 'refused'
    assert 400 <= status < 500, (kind, status)
    return 'refused'

  with serving(models, make) as port:
    honest(port, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
      tasks = [pool.submit(hostile if n % 5 == 0 else honest, port, n) for n in range(200)]
      results = [task.result(300) for task in tasks]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB, on Linux
    assert ask(port, 'GET', '/api/about')[0] == 200
  assert results.count('heard') == 160 and results.count('refused') == 40
  assert grown < 300 * 1024


@pytest.mark.browser
def test_a_visitor_records_continues_hears_stops_and_compares(models, tmp_path):
  assert browser.executable(), f'none of {", ".join(browser.NAMES)} is installed'
  microphone = ('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')

  def make(models, job):
    if job.request.seed == 9:  # in the place of slow models
      job.prompt_samples = 16_000 if job.request.kind == 'continue' else 0
      job.total_samples = 24_000
      yield np.full(24_000, 0.25, np.float32)
      return
    if job.request.seconds < 30:
      yield from jobs.pieces_of(models, job)
      return
    job.total_samples = 5000 * 160
    for _ in range(5000):  # takes minutes, if nobody stops it
      time.sleep(0.1)
      yield np.full(160, 0.25, np.float32)

  with serving(models, make) as port, browser.page(tmp_path / 'profile', *microphone) as page:
    page.open(f'http://localhost:{port}/')
    page.wait('document.body.dataset.ready === "yes"')
    # By keyboard through the tabs and back.
    page.run('element("tab-continue").focus()')
    page.press('ArrowLeft')
    assert page.run('document.activeElement.id') == 'tab-codec'
    assert page.run('!element("codec").hidden && element("continue").hidden')
    page.press('ArrowRight')
    # A recording of the microphone.
    field = 'document.querySelector("#continue [data-source]")'
    page.run(f'{field}.querySelector(".record").click()')
    page.wait(f'{field}.querySelector(".record").getAttribute("aria-pressed") === "true"')
    page.run('new Promise(done => setTimeout(done, 1500))')
    page.run(f'{field}.querySelector(".record").click()')
    page.wait(f'{field}.querySelector("[role=status]").textContent.startsWith("Your recording")')
    page.run('document.querySelector("#continue [value=soundstorm]").click()')
    page.run('document.querySelector("#continue [name=seconds]").value = 1')
    page.run('document.querySelector("#continue [name=prompt_seconds]").value = 1')
    page.run('document.querySelector("#continue form").requestSubmit()')
    page.wait('document.querySelector("article")?.dataset.samples === "32000"', 300)
    card = 'document.querySelector("article")'
    assert page.run(f'{card}.dataset.state') == 'done'
    assert page.run(f'Number({card}.dataset.peak)') > 0.01
    assert 'Real-time factor' in page.run(f'{card}.querySelector("dl").innerText')
    drawn = (
      '(c => c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(x => x))'
      '({}.querySelector("{}"))'
    )
    assert page.run(drawn.format(card, '.wave')) and page.run(drawn.format(card, '.spectrogram'))
    # A damaged file is reported, and the page remains usable.
    page.run(
      f"""(field => {{
        const files = new DataTransfer();
        files.items.add(new File(['<b>no sound</b>'], '../../x.wav'));
        const input = field.querySelector('input[type=file]');
        input.files = files.files;
        input.dispatchEvent(new Event('change'));
      }})({field})"""
    )
    page.wait('!element("failure").hidden')
    assert 'the recording' in page.run('element("failure").innerText')
    # The codec, and a blind answer.
    page.run('element("tab-codec").click()')
    page.run('document.querySelector("#codec form").requestSubmit()')
    page.wait('!element("abx").hidden', 300)
    page.run('document.querySelector("[data-answer=a]").click()')
    assert ' of 1.' in page.run('element("score").innerText')
    assert page.run(f'{card}.querySelectorAll(".links a").length') == 2
    # A long job is stopped.
    page.run('element("tab-continue").click()')
    page.run(f'{field}.querySelector("select").value = "example0"')
    page.run(f'{field}.querySelector("select").dispatchEvent(new Event("change"))')
    page.run('document.querySelector("#continue [name=seconds]").value = 30')
    page.wait(f'{field}.clip === "example0"')
    page.run('document.querySelector("#continue form").requestSubmit()')
    page.wait('document.querySelectorAll("article").length === 3', 300)
    page.wait(f'{card}.querySelector("progress").value > 0', 300)
    page.run(f'{card}.querySelector(".stop").click()')
    page.wait(f'{card}.dataset.state === "stopped"', 300)
    # Both acoustic paths, one after the other.
    form = 'document.querySelector("#continue form")'
    page.run(f'{form}.elements.seed.value = 9; {form}.elements.seconds.value = 1')
    page.run(f'{form}.querySelector("[value=both]").click(); {form}.requestSubmit()')
    page.wait('document.querySelectorAll("article[data-state=done]").length === 4', 300)
    assert page.run('document.querySelectorAll("article").length') == 5
    told = 'document.querySelectorAll("article dl")'
    assert 'SoundStorm' in page.run(f'{told}[0].innerText')
    assert 'Language models' in page.run(f'{told}[1].innerText')
    # A recording or its continuation, which is told after the answer.
    page.run('element("tab-guess").click()')
    form = 'document.querySelector("#guess form")'
    page.run(f'{form}.elements.seed.value = 9; {form}.elements.prompt_seconds.value = 0.6')
    page.run(f'{form}.requestSubmit()')
    page.wait('!element("guess-answers").hidden', 300)
    assert page.run('element("guess-sound").src').startswith('blob:')
    page.run('document.querySelector("[data-guess=original]").click()')
    verdict = page.run('element("guess-state").innerText')
    truth = page.run('guess.truth')
    assert f'it is {truth}: {int(truth == "original")} of 1.' in verdict
    assert page.run(f'{form}.elements.seed.value') == '10'
    # A narrow window shows everything without scrolling sideways.
    page.call(
      'Emulation.setDeviceMetricsOverride', width=360, height=740, deviceScaleFactor=1, mobile=True
    )
    for name in ('continue', 'voice', 'guess', 'codec'):
      page.run(f'element("tab-{name}").click()')
      assert page.run('document.documentElement.scrollWidth') <= 360
    unnamed = (
      """[...document.querySelectorAll('input, select')].filter(x => !x.labels.length).length"""
    )
    assert page.run(unnamed) == 0
