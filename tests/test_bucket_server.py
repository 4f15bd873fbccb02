"""The bucket of the tests is as strict as GCS's JSON API where the project relies on it."""

import http.client
import json
import socket
import urllib.parse

import pytest


@pytest.fixture
def ask(bucket_address, bucket):
  """Returns (method, path below /storage/v1/b/, body, headers) -> (status, headers, body)."""
  host = urllib.parse.urlsplit(bucket_address).netloc

  def ask(method, path, body=b'', headers=None):
    connection = http.client.HTTPConnection(host)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read()

  return ask


def _put(ask, name, data, **query):
  query = urllib.parse.urlencode({'uploadType': 'media', 'name': name, **query})
  return ask('POST', f'/upload/storage/v1/b/strict/o?{query}', data)


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


def test_an_upload_that_is_cut_writes_nothing(ask, bucket_address):
  where = urllib.parse.urlsplit(bucket_address)
  with socket.create_connection((where.hostname, where.port)) as connection:
    connection.sendall(
      b'POST /upload/storage/v1/b/strict/o?uploadType=media&name=cut HTTP/1.1\r\nHost: x\r\n'
      b'Content-Length: 100\r\n\r\nhalf'
    )
  assert ask('GET', '/storage/v1/b/strict/o/cut?alt=media')[0] == 404


def test_an_upload_in_parts_is_there_at_the_end(ask):
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


def test_listings_have_pages_and_folders(ask):
  for name in ('p/a', 'p/b/1', 'p/b/2', 'p/c', 'q'):
    _put(ask, name, b'')

  def pages(**query):
    found, token = [], {}
    while True:
      text = urllib.parse.urlencode(query | token)
      page = json.loads(ask('GET', f'/storage/v1/b/strict/o?{text}')[2])
      found += [[item['name'] for item in page['items']] + page['prefixes']]
      if 'nextPageToken' not in page:
        return found
      token = {'pageToken': page['nextPageToken']}

  assert pages(prefix='p/', maxResults=3) == [['p/a', 'p/b/1', 'p/b/2'], ['p/c']]
  assert pages(prefix='p/', delimiter='/', maxResults=2) == [['p/a', 'p/b/'], ['p/c']]
  assert pages(startOffset='p/b', endOffset='p/c') == [['p/b/1', 'p/b/2']]


def test_faults_end_after_their_times(ask, faults):
  faults({'match': 'GET .*/o/x', 'status': 503, 'times': 2}, {'match': 'never', 'status': 500})
  statuses = [ask('GET', '/storage/v1/b/strict/o/x')[0] for _ in range(3)]
  assert statuses == [503, 503, 404] and ask('GET', '/storage/v1/b/missing-bucket/o/x')[0] == 404
  assert ask('GET', '/storage/v1/b/forbidden-bucket/o/x')[0] == 403
  faults({'once_a_second': True})
  assert [_put(ask, 'often', b'')[0] for _ in range(2)] == [200, 429]


def test_a_lost_answer_is_of_a_request_that_was_done(ask, faults):
  faults({'lost': True, 'times': 1})
  with pytest.raises(http.client.HTTPException):
    _put(ask, 'lost', b'there')
  assert ask('GET', '/storage/v1/b/strict/o/lost?alt=media')[2] == b'there'
