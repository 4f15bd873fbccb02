"""The account of a TPU VM: tokens of its metadata server, here one of this test."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from tests import bucket_server

TOKEN = 'a-token'
WRITE = """
import sys
from audiolm_jax import storage
storage.check_writable(storage.path(sys.argv[1]))
"""


class Metadata(http.server.BaseHTTPRequestHandler):
  def log_message(self, *unused):
    pass

  def do_GET(self):
    account = {'email': 'tpu@project', 'scopes': ['https://www.googleapis.com/auth/cloud-platform']}
    token = {'access_token': TOKEN, 'expires_in': 3600, 'token_type': 'Bearer'}
    body = json.dumps(token if self.path.endswith('/token') else account).encode()
    self.send_response(200)
    self.send_header('Metadata-Flavor', 'Google')
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)


@pytest.fixture
def metadata_root():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f'127.0.0.1:{server.server_address[1]}'
  server.shutdown()
  server.server_close()


def test_requests_have_the_token_of_the_machines_account(bucket, bucket_address, metadata_root):
  before = bucket_server.counts(bucket_address)
  environment = os.environ | {'GCE_METADATA_ROOT': metadata_root, 'HOME': '/nowhere'}
  subprocess.run(
    [sys.executable, '-c', WRITE, str(bucket)], env=environment, check=True, timeout=100
  )
  after = bucket_server.counts(bucket_address)
  kinds = ('get', 'upload', 'list', 'delete')
  calls = sum(after.get(kind, 0) - before.get(kind, 0) for kind in kinds)
  tokens = after.get(f'token {TOKEN}', 0) - before.get(f'token {TOKEN}', 0)
  assert calls == tokens >= 3
