"""A stand-in for the API of the Hugging Face hub, on the loopback interface, for models alone."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves `server.repositories`: {repository: {branch: {path: bytes}}}."""

  def log_message(self, *_):
    pass

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length'] or 0))
    self.server.tokens.add(self.headers['Authorization'])
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    if path == '/api/repos/create':
      return self._create(json.loads(body))
    if path == '/api/validate-yaml':
      return self._json({'errors': [], 'warnings': []})
    match = re.fullmatch(r'/api/models/(.+?/.+?)/(branch|preupload|commit)/(.+)', path)
    branches = self.server.repositories.get(match[1]) if match else None
    if branches is None:
      return self._json({'error': f'no {path}'}, 404)
    if match[2] == 'branch':
      branches.setdefault(match[3], dict(branches['main']))
      return self._json({})
    if match[3] not in branches:
      return self._json({'error': 'no such branch'}, 404)
    if match[2] == 'preupload':
      names = [file['path'] for file in json.loads(body)['files']]
      modes = [{'path': name, 'uploadMode': 'regular', 'shouldIgnore': False} for name in names]
      return self._json({'files': modes})
    for line in map(json.loads, body.splitlines()):
      if line['key'] == 'file':
        value = line['value']
        branches[match[3]][value['path']] = base64.b64decode(value['content'])
    url = f'{self.server.url}/{match[1]}/commit/{self._commit(branches[match[3]])}'
    return self._json({'commitUrl': url, 'commitOid': url[-40:], 'hookOutput': ''})

  def _create(self, request):
    name = '/'.join(filter(None, [request.get('organization'), request['name']]))
    status = 409 if name in self.server.repositories else 200
    self.server.repositories.setdefault(name, {'main': {}})
    self._json({'url': f'{self.server.url}/{name}', 'name': name}, status)

  def do_GET(self):
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    if match := re.fullmatch(r'/api/models/(.+?/.+?)/tree/(.+)', path):
      files = self._files(match[1], match[2])
      entries = [
        {'type': 'file', 'path': name, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
        for name, data in (files or {}).items()
      ]
      return self._missing() if files is None else self._json(entries)
    if match := re.fullmatch(r'/api/models/(.+?/.+?)(?:/revision/(.+))?', path):
      files = self._files(match[1], match[2] or 'main')
      if files is None:
        return self._missing()
      siblings = [{'rfilename': name} for name in files]
      return self._json({'id': match[1], 'sha': self._commit(files), 'siblings': siblings})
    match = re.fullmatch(r'/(.+?/.+?)/resolve/(.+?)/(.+)', path)
    files = self._files(match[1], match[2]) if match else None
    if files is None or match[3] not in files:
      return self._missing()
    data = files[match[3]]
    headers = {'X-Repo-Commit': self._commit(files), 'ETag': hashlib.sha1(data).hexdigest()}
    return self._reply(data, 'application/octet-stream', 200, headers)

  do_HEAD = do_GET

  def _files(self, repository: str, revision: str):
    branches = self.server.repositories.get(repository, {})
    by_commit = {self._commit(files): files for files in branches.values()}
    return branches.get(revision) or by_commit.get(revision)

  @staticmethod
  def _commit(files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

  def _missing(self):
    self._reply(b'', 'text/plain', 404, {'X-Error-Code': 'RepoNotFound'})

  def _json(self, data, status=200):
    self._reply(json.dumps(data).encode(), 'application/json', status, {})

  def _reply(self, data: bytes, kind: str, status: int, headers):
    self.send_response(status)
    headers = {'Content-Type': kind, 'Content-Length': str(len(data)), **headers}
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)


@contextlib.contextmanager
def serving():
  """Yields a server with attributes `url`, `repositories` and `tokens` (of the requests)."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.repositories, server.tokens = {}, set()
  server.url = f'http://127.0.0.1:{server.server_port}'
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
