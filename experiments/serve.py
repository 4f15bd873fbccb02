"""Serves a web page that continues voices, aloud while they are generated.

  python -m experiments.serve                         then open the address that it prints
  python -m experiments.serve --release=release/      other models

The page continues a recording, repeats its words in another voice, and plays it through the codec
at any bit rate. Browsers record only on this machine (localhost) or over HTTPS. One job runs at a
time, and four may wait. Recordings and results stay in memory, for ten minutes.

By default, only this machine is served. With --host=ADDRESS others are, too, if they have the token
that the printed address contains. With --host=0.0.0.0, or behind a proxy, give the name that
browsers use, such as --name=audio.example.org.
"""

import argparse
import contextlib
import importlib.util
import ipaddress
import secrets
import socket

from audiolm_jax.errors import UserError, install

from .cli import command_line, compilation_cache

MAX_CONNECTIONS = 64
PORT = 8000
KEEP_ALIVE_SECONDS = 5
SHUTDOWN_SECONDS = 3


def main():
  args = _parser().parse_args()
  for package in ('starlette', 'uvicorn'):
    if importlib.util.find_spec(package) is None:
      raise UserError(f'serve needs {package}: {install("serve")}')
  is_local, names = names_of(args.host, args.names)
  with listening(args.host, args.port) as listener:
    import uvicorn  # an extra

    from audiolm_jax import audio, release

    from .serving import app, jobs  # import jax, which takes seconds

    compilation_cache.keep_for_user()
    folder = release.fetch(args.release, revision=args.revision)
    models = release.from_pretrained(folder)
    if models.tokenizer.codec.stream is None:
      raise UserError(f'{folder}: its codec needs whole clips: choose a release of SoundStream')
    rate = models.tokenizer.sample_rate
    examples = {
      path.stem: audio.load(path, rate) for path in sorted((folder / 'examples').glob('*.flac'))
    }
    token = None if is_local else secrets.token_urlsafe(32)
    worker = jobs.Worker(models)
    for example_T in list(examples.values())[:1]:  # compiles before anyone waits
      for acoustic in jobs.paths(models):
        worker.submit(jobs.Job(jobs.Request('continue', acoustic=acoustic), example_T))
    served = app.make(worker, examples, hosts=names, token=token)
    config = uvicorn.Config(
      served,
      log_level='warning',
      http='h11',
      ws='none',
      server_header=False,
      limit_concurrency=MAX_CONNECTIONS,
      timeout_keep_alive=KEEP_ALIVE_SECONDS,
      timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    print(f'open {address(names[0], listener.getsockname()[1], token)}', flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again, after shutting down
      uvicorn.Server(config).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
  parser = command_line.Parser(
    description=command_line.as_typed(__doc__), formatter_class=command_line.Formatter
  )
  parser.add_argument(
    '--release',
    default='speech',  # that of audiolm_jax.release, which imports jax
    metavar='NAME',
    help='speech (part of the package), a folder or a repository of the Hugging Face hub',
  )
  parser.add_argument('--revision', help='of the repository')
  parser.add_argument('--host', default='127.0.0.1', help='address to listen at (127.0.0.1)')
  parser.add_argument('--port', type=command_line.PORT, default=PORT, help=f'({PORT}; 0: any)')
  parser.add_argument(
    '--name',
    action='append',
    default=[],
    dest='names',
    help='by which browsers reach the server; may be repeated',
  )
  return parser


def names_of(host: str, names: list[str]) -> tuple[bool, list[str]]:
  """Returns whether only this machine is served, and the names by which browsers reach the server.

  Raises:
    UserError: if `host` is no address, or stands for all addresses and no name is given.
  """
  try:
    found = ipaddress.ip_address('127.0.0.1' if host == 'localhost' else host)
  except ValueError:
    raise UserError(
      f'--host={host}: give an address of this machine, such as 127.0.0.1, and its name by --name'
    ) from None
  if found.is_loopback:
    return not names, [*names, '127.0.0.1', 'localhost', '::1']
  if found.is_unspecified and not names:
    raise UserError(
      f'--host={host} stands for all addresses: give the name that browsers use, --name'
    )
  return False, [*names, *([] if found.is_unspecified else [str(found)])]


def listening(host: str, port: int) -> socket.socket:
  """Returns a socket that listens.

  Raises:
    UserError: if the address is not of this machine, or the port is in use.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise UserError(
      f'--host={host} --port={port}: {error.strerror}: choose another port, or 0 for any'
    ) from error


def address(name: str, port: int, token: str | None) -> str:
  """Returns the URL of the page; the fragment, which browsers do not send, holds the token."""
  shown = f'[{name}]' if ':' in name else name
  return f'http://{shown}:{port}/' + (f'#token={token}' if token else '')


if __name__ == '__main__':
  command_line.run(main)
