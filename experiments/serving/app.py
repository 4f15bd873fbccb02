"""Answers HTTP requests of the page: recordings in, jobs, and audio out while it is generated.

Nothing that a client names becomes a path: files of the page are three constants, and recordings
and results are looked up by random ids. Hosts and origins are checked against rebinding of names
and requests of other sites; outside of loopback, a token is demanded.
"""

import asyncio
import contextlib
import json
import pathlib
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from urllib.parse import urlsplit

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from audiolm_jax.errors import UserError

from . import jobs, uploads

LOOPBACK = ('localhost', '127.0.0.1', '::1')
PAGE = {'/': 'page.html', '/page.css': 'page.css', '/page.js': 'page.js'}
TYPES = {'html': 'text/html', 'css': 'text/css', 'js': 'text/javascript'}
MAX_JSON_BYTES = 4096
BODY_SECONDS = 30.0  # until a body must have arrived
UPLOADS = 2  # recordings that are received and decoded at a time; others wait
POLL_SECONDS = 0.03  # between looks for new audio
HEADERS = {
  'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src 'self'; media-src 'self' blob:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'",
  'Permissions-Policy': 'microphone=(self), camera=(), geolocation=()',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-store',
}


def make(
  worker: jobs.Worker,
  examples: Mapping[str, np.ndarray],
  *,
  hosts: Collection[str] = LOOPBACK,
  token: str | None = None,
):
  """Returns the ASGI application.

  Args:
    worker: runs the jobs; the application starts and closes it.
    examples: waveforms at the codec's rate, by the names to show.
    hosts: names and addresses, without ports, by which browsers may reach the server.
    token: that requests must show; None demands none.
  """
  codec = worker.models.tokenizer.codec
  clips, made, receiving = jobs.Shelf(), jobs.Shelf(), asyncio.Semaphore(UPLOADS)
  ready = {f'example{n}': wave_T for n, wave_T in enumerate(examples.values())}
  folder = pathlib.Path(__file__).parent
  files = {path: (folder / name).read_bytes() for path, name in PAGE.items()}

  def page(request: Request) -> Response:
    path = request.url.path
    kind = TYPES[PAGE[path].rpartition('.')[2]]
    return Response(files[path], media_type=kind)

  def about(request: Request) -> Response:
    return JSONResponse(
      {
        'sample_rate': codec.sample_rate,
        'levels': codec.num_quantizers,
        'kbit_per_second_and_level': codec.bit_rate(1) / 1000,
        'acoustic': jobs.paths(worker.models),
        'examples': [
          {'id': f'example{n}', 'name': name, 'seconds': len(wave_T) / codec.sample_rate}
          for n, (name, wave_T) in enumerate(examples.items())
        ],
        'max_seconds': jobs.MAX_SECONDS,
        'max_prompt_seconds': jobs.MAX_PROMPT_SECONDS,
        'max_recording_seconds': uploads.MAX_SECONDS,
      }
    )

  async def upload(request: Request) -> Response:
    async with receiving:
      data = await _body(request, uploads.MAX_BYTES)
      wave_T = await anyio.to_thread.run_sync(uploads.decode, data, codec.sample_rate)
    return JSONResponse({'id': clips.put(wave_T), 'seconds': len(wave_T) / codec.sample_rate}, 201)

  def clip_of(name: object) -> np.ndarray:
    found = None
    if isinstance(name, str):
      found = ready.get(name) if name in ready else clips.get(name)
    if found is None:
      raise HTTPException(404, 'there is no such recording: it is kept for ten minutes')
    return found

  def clip(request: Request) -> Response:
    wave_T = clip_of(request.path_params['name'])
    return Response(jobs.wav(jobs.pcm(wave_T), codec.sample_rate), media_type='audio/wav')

  async def submit(request: Request) -> Response:
    content = _json(await _body(request, MAX_JSON_BYTES))
    clip_name, voice_name = content.pop('clip', None), content.pop('voice', None)
    try:
      wanted = jobs.Request(**content)
    except TypeError as error:
      raise UserError(f'the request has other fields than those of a job: {error}') from error
    voice_T = clip_of(voice_name) if wanted.kind == 'voice' else None
    job = jobs.Job(wanted, clip_of(clip_name), voice_T)
    try:
      worker.submit(job)
    except jobs.Busy:
      raise HTTPException(429, f'{jobs.QUEUE} jobs wait: try again soon') from None
    return JSONResponse({'id': made.put(job)}, 202)

  def job_of(request: Request) -> jobs.Job:
    found = made.get(request.path_params['name'])
    if found is None:
      raise HTTPException(404, 'there is no such result: it is kept for ten minutes')
    return found

  def status(request: Request) -> Response:
    return JSONResponse(jobs.report(job_of(request), worker))

  def stop(request: Request) -> Response:
    worker.stop(job_of(request))
    return status(request)

  async def stream(request: Request) -> Response:
    return StreamingResponse(_pieces(job_of(request)), media_type='application/octet-stream')

  def wav(request: Request) -> Response:
    return Response(job_of(request).wav(codec.sample_rate), media_type='audio/wav')

  def alm(request: Request) -> Response:
    content = job_of(request).file
    if not content:
      raise HTTPException(404, 'this job has made no .alm file')
    return Response(content, media_type='application/octet-stream')

  @contextlib.asynccontextmanager
  async def running(app):
    uploads.start()
    worker.start()
    yield
    await anyio.to_thread.run_sync(worker.close)

  routes = [
    *(Route(path, page) for path in PAGE),
    Route('/api/about', about),
    Route('/api/clips', upload, methods=['POST']),
    Route('/api/clips/{name}/wav', clip),
    Route('/api/jobs', submit, methods=['POST']),
    Route('/api/jobs/{name}', status),
    Route('/api/jobs/{name}', stop, methods=['DELETE']),
    Route('/api/jobs/{name}/pcm', stream),
    Route('/api/jobs/{name}/wav', wav),
    Route('/api/jobs/{name}/alm', alm),
  ]
  handlers = {
    HTTPException: lambda request, error: _refusal(error.status_code, error.detail),
    UserError: lambda request, error: _refusal(400, str(error)),
    ClientDisconnect: lambda request, error: _refusal(400, 'the request ended early'),
  }
  app = Starlette(routes=routes, exception_handlers=handlers, lifespan=running)
  return _guarded(app, {host.lower() for host in hosts}, token)


def _refusal(status: int, text: str) -> Response:
  return JSONResponse({'error': text}, status)


def _guarded(app, hosts: Collection[str], token: str | None):
  """Returns an application that lets only requests of the page pass, and adds HEADERS."""

  async def guarded(scope, receive, send):
    if scope['type'] == 'lifespan':
      return await app(scope, receive, send)
    if scope['type'] != 'http':
      return await send({'type': 'websocket.close', 'code': 1008})

    async def send_with_headers(message):
      if message['type'] == 'http.response.start':
        own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        message = {**message, 'headers': [*message.get('headers', []), *own]}
      await send(message)

    refusal = _refused(Request(scope), hosts, token)
    await (refusal or app)(scope, receive, send_with_headers)

  return guarded


def _refused(request: Request, hosts: Collection[str], token: str | None) -> Response | None:
  """Returns the refusal of a request that does not come from the page, or None."""
  named = request.headers.getlist('host')
  if len(named) != 1 or _hostname(named[0]) not in hosts:
    return _refusal(421, 'this host is not served here')
  if not request.url.path.startswith('/api/'):
    return None  # the page, which holds nothing secret and which other sites may link to
  origin = request.headers.get('origin')
  is_foreign = origin is not None and not _is_own(origin, named[0])
  if is_foreign or request.headers.get('sec-fetch-site', 'none') not in ('none', 'same-origin'):
    return _refusal(403, 'requests of other sites are refused')
  shown = request.headers.get('authorization', '').encode()
  if token is not None and not secrets.compare_digest(shown, f'Bearer {token}'.encode()):
    return _refusal(401, 'the token is missing or wrong: open the address that the server printed')
  return None


def _hostname(host: str) -> str | None:
  try:
    return urlsplit(f'//{host}').hostname
  except ValueError:
    return None


def _is_own(origin: str, host: str) -> bool:
  try:
    parts = urlsplit(origin)
  except ValueError:
    return False
  return parts.scheme in ('http', 'https') and parts.netloc.lower() == host.lower()


async def _body(request: Request, most: int) -> bytes:
  """Returns the body of a request, after reading no more than the limit.

  Raises:
    HTTPException: 413 if it is larger; 408 if it does not arrive within BODY_SECONDS.
  """
  too_large = HTTPException(413, f'more than {most:,} bytes: send less')
  declared = request.headers.get('content-length', '0')
  if not declared.isdecimal() or int(declared[:20]) > most:
    raise too_large
  body = bytearray()
  try:
    with anyio.fail_after(BODY_SECONDS):
      async for part in request.stream():
        body += part
        if len(body) > most:
          raise too_large
  except TimeoutError:
    raise HTTPException(408, 'the request takes too long') from None
  return bytes(body)


def _json(content: bytes) -> dict:
  try:
    found = json.loads(content)
  except (ValueError, RecursionError):
    found = None
  if not isinstance(found, dict):
    raise UserError('the request is not a JSON object')
  return found


async def _pieces(job: jobs.Job) -> AsyncIterator[bytes]:
  """Yields 16-bit samples as they are made, from the beginning."""
  sent = 0
  while True:
    is_over = job.is_over  # read before the pieces, so that none is missed
    with job.lock:
      new, sent = job.pieces[sent:], len(job.pieces)
    if new:
      yield b''.join(new)
    elif is_over:
      return
    else:
      await anyio.sleep(POLL_SECONDS)
