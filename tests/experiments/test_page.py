"""What the page asks of the server: its script in Node, with a document that accepts everything."""

import json
import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'experiments' / 'serving' / 'page.js'
# Answers the requests of one job, which is done at its third report, and prints the requests.
HOST = r"""
const anything = new Proxy(function () {}, {
  get: (_, name) => name === Symbol.toPrimitive ? () => 0 : name === 'then' ? undefined
    : name === Symbol.iterator ? [][Symbol.iterator] : anything,
  set: () => true, apply: () => anything, construct: () => anything,
});
const report = {seconds: 0.5, total_seconds: 1, prompt_seconds: 0.2, computing_seconds: 1,
  real_time_factor: 1, first_sound_seconds: 1, kbit_per_second: 1, file_bytes: 0, place: 0,
  state: 'done', request: {kind: 'continue'}};
const asked = [];
globalThis.fetch = async (path, options = {}) => {
  asked.push(`${options.method || 'GET'} ${path}`);
  if (path.endsWith('pcm')) return new Response(new Uint8Array(64));
  const answers = {'/api/about': {sample_rate: 16000, acoustic: []}, '/api/jobs': {id: 'x'}};
  return Response.json(answers[path] || report);
};
Object.assign(globalThis, {location: {hash: ''}, AudioContext: anything,
  getComputedStyle: anything});
globalThis.document = new Proxy({querySelectorAll: () => []}, {
  get: (own, name) => own[name] || anything});
(0, eval)(require('fs').readFileSync(process.argv[1], 'utf8').replace("'use strict';", ''));
setTimeout(async () => {
  asked.length = 0;
  await run({kind: 'continue', seed: 0}, 'a title');
  console.log(JSON.stringify(asked));
}, 0);
"""


@pytest.mark.skipif(shutil.which('node') is None, reason='needs Node')
def test_a_job_is_asked_once_for_each_report():
  done = subprocess.run(['node', '-e', HOST, SCRIPT], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  asked = json.loads(done.stdout)
  assert asked[0] == 'POST /api/jobs' and asked[-1] == 'GET /api/jobs/x/wav'
  assert asked.count('GET /api/jobs/x') == 1 and asked.count('GET /api/jobs/x/pcm') == 1
