"""Generates for one listener at a time: requests, a short queue, one worker thread, results by id.

Results and recordings are kept for ten minutes, and at most CAPACITY of each.
"""

import collections
import contextlib
import dataclasses
import io
import secrets
import sys
import threading
import time
import traceback
import wave
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from audiolm_jax import chain, checks, codes_file, generation
from audiolm_jax.errors import UserError
from audiolm_jax.sampling import Rule

KINDS = ('continue', 'voice', 'codec')
QUEUE = 4  # jobs that wait
KEPT_SECONDS = 600.0
CAPACITY = 64  # recordings, and results
MAX_SECONDS = 30.0  # of new audio
MAX_PROMPT_SECONDS = 10.0  # that the models hear
LEAST_SECONDS = 0.2

Wave = np.ndarray  # [T] in [-1, 1], at the codec's rate


class Busy(Exception):
  """The queue is full."""


def _between(low: float, high: float) -> checks.Legal:
  holds = lambda value: checks.NUMBER.holds(value) and low <= value <= high
  return checks.Legal(f'a number from {low:g} to {high:g}', holds)


@dataclasses.dataclass(frozen=True)
class Request:
  """Configures a job.

  Fields:
    kind: 'continue' continues the recording; 'voice' says its words in another voice; 'codec' sends
      it through the codec.
    seconds: of new audio ('continue').
    prompt_seconds: the models hear this much of the beginning: of the recording ('continue'), or of
      the other voice ('voice').
    seed: of the draws.
    temperature: factor of the models' own temperatures.
    acoustic: one of `chain.ACOUSTIC`.
    levels: of the codec ('codec'); None is all.

  Raises:
    UserError: if a value is out of range.
  """

  kind: str
  seconds: float = 5.0
  prompt_seconds: float = 3.0
  seed: int = 0
  temperature: float = 1.0
  acoustic: str = 'autoregressive'
  levels: int | None = None

  def __post_init__(self):
    checks.fields(
      self,
      kind=checks.one_of(*KINDS),
      seconds=_between(LEAST_SECONDS, MAX_SECONDS),
      prompt_seconds=_between(LEAST_SECONDS, MAX_PROMPT_SECONDS),
      seed=checks.SEED,
      temperature=_between(0, 2),
      acoustic=checks.one_of(*chain.ACOUSTIC),
      levels=checks.optional(checks.WHOLE),
    )


class Job:
  """Holds a request and its results so far. `lock` guards all fields except the constants."""

  def __init__(self, request: Request, recording_T: Wave, voice_T: Wave | None = None):
    self.request, self.recording_T, self.voice_T = request, recording_T, voice_T
    self.lock, self.stopping = threading.Lock(), threading.Event()
    self.state = 'waiting'  # then 'running', and 'done', 'stopped' or 'failed'
    self.pieces: list[bytes] = []  # 16-bit samples
    self.error, self.file = '', b''  # `file`: an .alm
    self.num_samples = self.total_samples = self.prompt_samples = 0
    self.levels = 0  # of the codes
    self.begun = self.ended = self.first = 0.0  # seconds of a monotonic clock; `first`: new sound

  @property
  def is_over(self) -> bool:
    return self.state in ('done', 'stopped', 'failed')

  def add(self, piece_T: Wave):
    """Appends a piece of the waveform."""
    with self.lock:
      self.pieces.append(pcm(piece_T))
      self.num_samples += len(piece_T)
      if not self.first and self.num_samples > self.prompt_samples:
        self.first = time.monotonic()

  def wav(self, sample_rate: int) -> bytes:
    """Returns what has been made as a WAV file."""
    with self.lock:
      return wav(b''.join(self.pieces), sample_rate)


class Shelf:
  """Keeps a limited number of values by random ids, for a limited time."""

  def __init__(self, capacity: int = CAPACITY, seconds: float = KEPT_SECONDS):
    self._capacity, self._seconds = capacity, seconds
    self._values: collections.OrderedDict[str, tuple[float, Any]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def put(self, value: Any) -> str:
    """Returns the id of a new value; the oldest one makes room for it."""
    name = secrets.token_urlsafe(16)
    with self._lock:
      self._clear()
      while len(self._values) >= self._capacity:
        self._values.popitem(last=False)
      self._values[name] = time.monotonic(), value
    return name

  def get(self, name: str) -> Any:
    """Returns a value, or None."""
    with self._lock:
      self._clear()
      return self._values.get(name, (0.0, None))[1]

  def _clear(self):
    oldest = time.monotonic() - self._seconds
    while self._values and next(iter(self._values.values()))[0] < oldest:
      self._values.popitem(last=False)


class Worker:
  """Runs one job after another in a thread.

  Args:
    models: from `load_models` or `from_pretrained`; their codec has a stream.
    make: function (models, job) -> generator of waveforms; `pieces_of`, unless a test gives
      another.
  """

  def __init__(
    self, models: chain.Models, make: Callable[..., Generator[Wave, None, None]] | None = None
  ):
    self.models, self._make = models, make or pieces_of
    self._waiting: collections.deque[Job] = collections.deque()
    self._changed, self._running = threading.Condition(), None
    self._closed = False
    self._thread = threading.Thread(target=self._work, name='audiolm worker', daemon=True)

  def start(self):
    self._thread.start()

  def close(self, seconds: float = 5.0):
    """Stops all jobs, and waits for the thread."""
    with self._changed:
      self._closed = True
      for job in (*self._waiting, *filter(None, [self._running])):
        job.stopping.set()
      self._changed.notify_all()
    self._thread.join(seconds)

  def submit(self, job: Job):
    """Adds a job to the queue.

    Raises:
      Busy: if QUEUE jobs wait.
    """
    with self._changed:
      if len(self._waiting) >= QUEUE:
        raise Busy
      self._waiting.append(job)
      self._changed.notify_all()

  def stop(self, job: Job):
    """Ends a job: at once if it waits, after its current window if it runs."""
    job.stopping.set()
    with self._changed:
      if job in self._waiting:
        self._waiting.remove(job)
        job.state = 'stopped'

  def place(self, job: Job) -> int:
    """Returns the number of jobs that run before a waiting one."""
    with self._changed:
      before = list(self._waiting)
      return before.index(job) + (self._running is not None) if job in before else 0

  def _work(self):
    while True:
      with self._changed:
        self._running = None
        self._changed.wait_for(lambda: self._waiting or self._closed)
        if self._closed:
          return
        job = self._running = self._waiting.popleft()
        job.state, job.begun = 'running', time.monotonic()
      self._run(job)

  def _run(self, job: Job):
    state = 'done'
    try:
      with contextlib.closing(self._make(self.models, job)) as pieces:
        # Checked before each piece, because taking a piece starts its computation.
        while not job.stopping.is_set() and (piece_T := next(pieces, None)) is not None:
          job.add(piece_T)
      if job.stopping.is_set() and job.num_samples < job.total_samples:
        state = 'stopped'
    except UserError as error:
      state, job.error = 'failed', str(error)
    except Exception:  # the next job must run whatever happens to this one
      state, job.error = 'failed', 'a fault of the program, which its log shows'
      print(traceback.format_exc(), file=sys.stderr, flush=True)
    job.ended = time.monotonic()
    job.state = state


def report(job: Job, worker: Worker) -> dict:
  """Returns the public facts of a job, as JSON."""
  codec = worker.models.tokenizer.codec
  rate, place = codec.sample_rate, worker.place(job)
  with job.lock:
    new = max(0, job.num_samples - job.prompt_samples) / rate
    spent = (job.ended or time.monotonic()) - job.begun if job.begun else 0.0
    return {
      'state': job.state,
      'place': place,
      'error': job.error,
      'request': dataclasses.asdict(job.request),
      'seconds': job.num_samples / rate,
      'total_seconds': job.total_samples / rate,
      'prompt_seconds': job.prompt_samples / rate,
      'computing_seconds': round(spent, 3),
      'first_sound_seconds': round(job.first - job.begun, 3) if job.first else None,
      'real_time_factor': round(spent / new, 3) if new else None,
      'kbit_per_second': round(codec.bit_rate(job.levels or None) / 1000, 3),
      'file_bytes': len(job.file),
    }


def paths(models: chain.Models) -> list[str]:
  """Returns the acoustic paths that the models have, first the one that sounds first on a CPU."""
  stages = {'autoregressive': models.coarse, 'soundstorm': models.soundstorm}
  return [name for name, stage in stages.items() if stage is not None]


def pieces_of(models: chain.Models, job: Job) -> Generator[Wave, None, None]:
  """Returns a generator of the waveform that a job asks for.

  Raises:
    UserError: if the recording or the models do not suit the request, possibly at the first piece.
  """
  return {'continue': _continue, 'voice': _voice, 'codec': _codec}[job.request.kind](models, job)


def _options(models, request: Request) -> dict:
  return {'acoustic': request.acoustic, 'sampling': heated(models.sampling, request.temperature)}


def heated(sampling: chain.SamplingConfig, factor: float) -> chain.SamplingConfig:
  """Returns rules with their temperatures, and SoundStorm's noise, multiplied by `factor`."""
  scale = lambda rule: (
    dataclasses.replace(rule, temperature=rule.temperature * factor)
    if isinstance(rule, Rule)
    else rule
  )
  parallel = sampling.soundstorm
  return chain.SamplingConfig(
    semantic=scale(sampling.semantic),
    coarse=scale(sampling.coarse),
    fine=scale(sampling.fine),
    soundstorm=dataclasses.replace(
      parallel, rule=scale(parallel.rule), noise=parallel.noise * factor
    ),
  )


def _continue(models, job) -> Generator[Wave, None, None]:
  tokenizer, request = models.tokenizer, job.request
  prompt_T = _beginning(job.recording_T, request.prompt_seconds, tokenizer)
  hop = tokenizer.frames_per_semantic * tokenizer.codec.hop_length
  job.prompt_samples = len(prompt_T) // hop * hop
  new = round(request.seconds * models.semantic.config.semantic_rate)
  job.total_samples = job.prompt_samples + new * hop
  job.levels = chain.num_levels(models, request.acoustic)
  key, options = jax.random.key(request.seed), _options(models, request)
  yield from generation.continue_stream(
    models, key, prompt_T, seconds=float(request.seconds), **options
  )


def _voice(models, job) -> Generator[Wave, None, None]:
  tokenizer, request = models.tokenizer, job.request
  words_T = _beginning(job.recording_T, MAX_PROMPT_SECONDS, tokenizer)
  voice_T = _beginning(job.voice_T, request.prompt_seconds, tokenizer)
  hop = tokenizer.frames_per_semantic * tokenizer.codec.hop_length
  job.total_samples = len(words_T) // hop * hop
  job.levels = chain.num_levels(models, request.acoustic)
  [words_S], _ = tokenizer.encode(words_T[None])
  [voice_S], [voice_FQ] = tokenizer.encode(voice_T[None])
  pieces = generation.acoustics_stream(
    models,
    jax.random.key(request.seed),
    np.concatenate([voice_S, words_S]),
    voice_FQ,
    **_options(models, request),
  )
  heard = len(voice_FQ) * tokenizer.codec.hop_length  # the other voice, which speaks first
  for piece_T in pieces:
    if len(piece_T) > heard:
      yield piece_T[heard:]
    heard = max(0, heard - len(piece_T))


def _codec(models, job) -> Generator[Wave, None, None]:
  codec, wave_T = models.tokenizer.codec, job.recording_T
  levels = job.request.levels or codec.num_quantizers
  if levels > codec.num_quantizers:
    raise UserError(f'levels={levels}: the codec has levels 1 to {codec.num_quantizers}')
  job.levels, job.total_samples, left = levels, len(wave_T), len(wave_T)
  size, codes = codec.block_frames * codec.hop_length, []
  blocks = (wave_T[start : start + size] for start in range(0, len(wave_T), size))

  def kept() -> Iterator[np.ndarray]:
    for block_FQ in codec.encode_blocks(blocks, levels):
      codes.append(block_FQ)
      yield block_FQ

  for piece_T in codec.decode_blocks(kept()):
    yield piece_T[:left]
    left -= min(left, len(piece_T))
  sizes = (codec.sample_rate, codec.hop_length, levels, codec.codebook_size, len(wave_T))
  header = codes_file.Header(*sizes, codec.fingerprint)
  job.file = codes_file.encode(header, np.concatenate(codes)[: header.num_frames])


def _beginning(wave_T: Wave, seconds: float, tokenizer) -> Wave:
  """Returns at most the first `seconds` of a recording.

  Raises:
    UserError: if it is shorter than a semantic frame.
  """
  least = tokenizer.frames_per_semantic * tokenizer.codec.hop_length
  if len(wave_T) < least:
    raise UserError(
      f'the recording has {len(wave_T)} samples at {tokenizer.sample_rate} Hz: give 3 seconds'
    )
  return wave_T[: max(least, round(seconds * tokenizer.sample_rate))]


def pcm(wave_T: Wave) -> bytes:
  """Returns samples in [-1, 1] as 16-bit little-endian integers; others are clipped."""
  return np.round(np.clip(wave_T, -1, 1) * 32767).astype('<i2').tobytes()


def wav(samples: bytes, sample_rate: int) -> bytes:
  """Returns 16-bit samples of one channel as a WAV file."""
  content = io.BytesIO()
  with wave.open(content, 'wb') as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.writeframes(samples)
  return content.getvalue()
