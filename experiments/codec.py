"""Converts audio to small .alm files and back, with the codec of a workdir.

  python -m experiments.codec encode voice.wav --output=codes/    writes codes/voice.alm
  python -m experiments.codec encode recordings/ --output=codes/  writes codes/x/y.alm for x/y.flac
  python -m experiments.codec encode voice.wav --output=codes/ --num-quantizers=4  fewer bits
  python -m experiments.codec encode voice.wav --output=codes/ --release=speech  by released models
  python -m experiments.codec decode codes/ --output=decoded/     writes decoded/x/y.wav
  python -m experiments.codec info codes/                         lists and checks the files

Decoded files have the length of the originals. Files may be hours long, because they are processed
in blocks of a second (imported codecs other than DAC: at most two minutes, see
audiolm_jax/codec.py). Finished files of a folder are kept, so that the same command resumes a
killed run; files named on the command line are replaced only with --overwrite.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from audiolm_jax import audio, codes_file, files
from audiolm_jax.codec import Codec
from audiolm_jax.codes_file import Header
from audiolm_jax.data import folders
from audiolm_jax.errors import UserError

from . import workspace
from .cli import command_line, compilation_cache

COMMANDS = ('encode', 'decode', 'info')
MAX_SECONDS = 24 * 3600.0  # of one audio file
AUDIBLE = 100 / 32768  # quieter blocks are not compared, because 16 bits are too coarse
# Relative to the largest sample. Other devices and 16 bits change less, another codec more.
SAME = 0.05


class Job(NamedTuple):
  source: pathlib.Path
  target: pathlib.Path
  in_folder: bool  # found in a folder, not named
  levels: int | None = None  # levels to write or to read; None: all


def main():
  parser = command_line.parser(__doc__, recipe=False)
  command_line.add_release(parser)
  parser.add_argument('command', metavar='COMMAND', help=f'one of: {", ".join(COMMANDS)}')
  parser.add_argument(
    'paths', nargs='+', type=command_line.path, metavar='PATH', help='files or folders'
  )
  parser.add_argument(
    '--output', type=command_line.path, metavar='FOLDER', help='for encode and decode'
  )
  parser.add_argument(
    '--num-quantizers',
    type=command_line.COUNT,
    metavar='N',
    help='use only the first N levels of the codes (all)',
  )
  parser.add_argument(
    '--denoise', action='store_true', help='remove noise, by a codec with a denoising switch'
  )
  parser.add_argument('--overwrite', action='store_true', help='replace existing files')
  args = parser.parse_intermixed_args()
  if args.command not in COMMANDS:
    raise UserError(f'{args.command!r} is not a command: choose one of {", ".join(COMMANDS)}')
  if args.command == 'info':
    if args.output or args.num_quantizers or args.denoise or args.overwrite:
      raise UserError('info takes only paths, because it writes nothing')
    return info(args.paths)
  if args.output is None:
    raise UserError(f'{args.command} needs --output=FOLDER')
  jobs = find_jobs(args.command, args.paths, args.output, args.num_quantizers)
  command_line.check_folder(args.output, '--output')
  named = [job.target for job in jobs if not job.in_folder]
  command_line.check_files(named, '--output', overwrite=args.overwrite)
  command_line.check_models(args)
  compilation_cache.keep_for_user()
  workspace.use_release(args)
  codec = workspace.load_codec(args.workdir)
  if args.num_quantizers is not None and not 1 <= args.num_quantizers <= codec.num_quantizers:
    raise UserError(
      f'--num-quantizers={args.num_quantizers}: this codec has levels 1 to {codec.num_quantizers}'
    )
  place, own = 'encoder' if args.command == 'encode' else 'decoder', codec.functions.switch
  if args.denoise and own != place:
    has = 'none' if own is None else f'that of the {own}'
    raise UserError(
      f'{args.command} --denoise needs a codec with the denoising switch of the {place}, but this '
      f'one has {has}'
    )
  run_jobs(args.command, dataclasses.replace(codec, denoise=args.denoise), jobs, args.overwrite)


def found(path: pathlib.Path, extensions: tuple[str, ...]) -> list[pathlib.Path]:
  """Returns the files in a folder, or the named file.

  Raises:
    UserError: if there are none.
  """
  if path.is_dir():
    return [pathlib.Path(name) for name in folders.find(path, extensions)]
  if not path.is_file():
    raise UserError(f'{path}: no such file or folder')
  return [path]


def find_jobs(
  command: str, paths: list[pathlib.Path], output: pathlib.Path, levels: int | None = None
) -> list[Job]:
  """Returns the files to convert, with their targets.

  Raises:
    UserError: if two files have the same target.
  """
  encoding = command == 'encode'
  extensions, extension = (
    (folders.EXTENSIONS, codes_file.EXTENSION) if encoding else ((codes_file.EXTENSION,), '.wav')
  )
  jobs, sources = [], {}
  for path in paths:
    for source in found(path, extensions):
      name = source.relative_to(path) if path.is_dir() else pathlib.Path(source.name)
      jobs.append(Job(source, output / name.with_suffix(extension), path.is_dir(), levels))
      other = sources.setdefault(jobs[-1].target, source)
      if other is not source:
        raise UserError(
          f'{other} and {source} would both become {jobs[-1].target}: rename one, '
          'or give them separate outputs'
        )
  return jobs


def run_jobs(command: str, codec: Codec, jobs: list[Job], overwrite: bool):
  """Runs the jobs that are not done.

  Raises:
    UserError: after all jobs, naming the files that failed.
  """
  seconds_of, is_done, convert = OPERATIONS[command]
  todo, failures = [], []
  for job in jobs:
    try:
      seconds = seconds_of(codec, job)
      command_line.check_name(job.target)
      if overwrite or not job.target.exists() or not is_done(codec, job):
        todo.append((job, seconds))
    except (ValueError, OSError) as error:
      failures.append(str(error))
  kept = len(jobs) - len(todo) - len(failures)
  with workspace.progress(
    round(sum(seconds for _, seconds in todo)), command, ' s of audio'
  ) as bar:
    done_seconds = 0.0

    def advance(seconds: float):
      nonlocal done_seconds
      done_seconds += seconds
      bar.update(round(done_seconds) - bar.n)

    for job, _ in todo:
      try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        convert(codec, job, overwrite, advance)
      except (ValueError, OSError) as error:
        failures.append(
          f'{job.target}: {error.strerror or error}' if isinstance(error, OSError) else str(error)
        )
  print(f'{command}: {len(jobs) - kept - len(failures)} files made, {kept} kept')
  if failures:
    raise UserError(f'{len(failures)} of {len(jobs)} files failed: ' + '; '.join(failures))


def encode(codec: Codec, job: Job, overwrite: bool, advance: Callable[[float], None]):
  """Writes the codes of an audio file."""
  rate, num_samples = codec.sample_rate, 0

  def blocks():
    nonlocal num_samples
    length = codec.block_frames * codec.hop_length
    for block_T in audio.blocks(job.source, rate, length, max_seconds=MAX_SECONDS):
      num_samples += len(block_T)
      yield block_T
      advance(len(block_T) / rate)

  codes = list(codec.encode_blocks(blocks(), job.levels))
  if not num_samples:
    raise UserError(f'{job.source} is too short: no samples are left at {rate} Hz')
  wanted = header(codec, num_samples, codes[0].shape[1])
  codes_file.save(
    job.target, wanted, np.concatenate(codes)[: wanted.num_frames], overwrite=overwrite
  )


def header(codec: Codec, num_samples: int, num_quantizers: int) -> Header:
  sizes = (codec.sample_rate, codec.hop_length, num_quantizers, codec.codebook_size, num_samples)
  return Header(*sizes, codec.fingerprint)


def seconds_of_audio(codec: Codec, job: Job) -> float:
  found_info = audio.info(job.source)
  return found_info.num_samples / found_info.sample_rate


def is_encoded(codec: Codec, job: Job) -> bool:
  """Returns True for an intact file of this codec.

  Raises:
    UserError: for any other existing file.
  """
  try:
    found_header, _ = codes_file.load(job.target)
  except ValueError as error:
    raise UserError(f'{error}, or pass --overwrite') from error
  wanted = header(codec, found_header.num_samples, job.levels or codec.num_quantizers)
  if found_header != wanted:
    raise UserError(
      f'{job.target} exists with {found_header}, not {wanted}: '
      'choose another --output, or pass --overwrite'
    )
  return True


def decode(codec: Codec, job: Job, overwrite: bool, advance: Callable[[float], None]):
  """Writes the audio of a file of codes."""
  stored, codes_FQ = codes_file.load(job.source)
  audio.save_blocks(
    job.target,
    decoded_blocks(codec, job, stored, codes_FQ, advance),
    stored.sample_rate,
    overwrite=overwrite,
  )


def decoded_blocks(
  codec: Codec, job: Job, stored: Header, codes_FQ, advance
) -> Iterator[np.ndarray]:
  """Yields the waveform in blocks, `stored.num_samples` samples in total."""
  frames, left = codec.block_frames, stored.num_samples
  parts = (
    codes_FQ[start : start + frames, : job.levels] for start in range(0, stored.num_frames, frames)
  )
  for wave_T in codec.decode_blocks(parts):
    yield wave_T[:left]
    advance(min(left, len(wave_T)) / stored.sample_rate)
    left -= min(left, len(wave_T))


def seconds_of_codes(codec: Codec, job: Job) -> float:
  """Returns the duration of a file of codes, in seconds.

  Raises:
    UserError: if another codec made it, or it has fewer levels than requested.
  """
  source, stored = job.source, codes_file.info(job.source)
  if stored.fingerprint != codec.fingerprint:
    raise UserError(
      f'{source} was made by codec {stored.fingerprint}, this is {codec.fingerprint}: '
      'give the --workdir of the other'
    )
  if stored != header(codec, stored.num_samples, min(stored.num_quantizers, codec.num_quantizers)):
    raise UserError(f'{source} has {stored}, which its codec does not make: encode it again')
  if (job.levels or 1) > stored.num_quantizers:
    raise UserError(
      f'{source} has {stored.num_quantizers} levels, fewer than --num-quantizers={job.levels}'
    )
  return stored.seconds


def is_decoded(codec: Codec, job: Job) -> bool:
  """Returns True for a target that `decode` would write.

  Raises:
    UserError: for other audio, such as the original.
  """
  stored, found_info = codes_file.info(job.source), audio.info(job.target)
  if (found_info.sample_rate, found_info.num_samples) != (stored.sample_rate, stored.num_samples):
    raise UserError(
      f'{job.target} exists with {found_info.num_samples:,} samples at '
      f'{found_info.sample_rate} Hz, not {stored.num_samples:,} at {stored.sample_rate}: '
      'choose another --output, or pass --overwrite'
    )
  if not _begins_as_decoded(codec, job):
    raise UserError(
      f'{job.target} exists and was not decoded from {job.source} in this way (is it the '
      'original?): choose another --output, or pass --overwrite'
    )
  return True


def _begins_as_decoded(codec: Codec, job: Job) -> bool:
  """Returns whether the first audible block is as decoded; originals and fewer levels differ."""
  stored, codes_FQ = codes_file.load(job.source)
  made = decoded_blocks(codec, job, stored, codes_FQ, lambda seconds: None)
  length = codec.block_frames * stored.hop_length
  there = audio.blocks(job.target, stored.sample_rate, length, max_seconds=MAX_SECONDS)
  for made_T, there_T in zip(made, there):
    loudest = max(np.abs(made_T).max(), np.abs(there_T).max())
    if loudest > AUDIBLE:
      return bool(np.abs(np.clip(made_T, -1, 1) - there_T).max() <= SAME * loudest)
  return True


OPERATIONS = {
  'encode': (seconds_of_audio, is_encoded, encode),
  'decode': (seconds_of_codes, is_decoded, decode),
}


def info(paths: list[pathlib.Path]):
  """Prints a line per file.

  Raises:
    UserError: after all lines, naming damaged files.
  """
  failures = []
  for path in (file for start in paths for file in found(start, (codes_file.EXTENSION,))):
    try:
      stored, _ = codes_file.load(path)
    except ValueError as error:
      failures.append(str(error))
      continue
    print(
      f'{files.printable(path)}: {stored.seconds:.2f} s ({stored.num_samples:,} samples at '
      f'{stored.sample_rate} Hz), {stored.num_quantizers} levels of {stored.codebook_size} codes, '
      f'{stored.bit_rate:.0f} bit/s, {stored.num_bytes:,} bytes, codec {stored.fingerprint}'
    )
  if failures:
    raise UserError('; '.join(failures))


if __name__ == '__main__':
  command_line.run(main)
