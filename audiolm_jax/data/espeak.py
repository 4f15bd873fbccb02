"""Speaks texts with espeak-ng, in one process per utterance; `data.synthesized` runs it.

The program reads a JSON list of requests {voice, pitch, rate, gap, seed, text} from standard input.
For each, it writes to standard output one JSON line {rate, num_samples, phones: [[sample, name]],
words: [sample]} with the start of each phone and word, and then the samples as raw int16.

espeak-ng has global state that its random seed does not reset, so that utterances depend on earlier
ones in the same process. The program therefore forks a child for each request. It imports no JAX,
because forking a process with JAX's threads may hang.
"""

import array
import ctypes
import json
import os
import sys

from audiolm_jax.errors import UserError

_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 0x1, 0x8000
_RATE, _PITCH, _WORD_GAP = 1, 3, 7
_WORD, _PHONEME = 1, 7
_END_OF_LIST = 0


class _Event(ctypes.Structure):
  _fields_ = [
    ('type', ctypes.c_int),
    ('unique_identifier', ctypes.c_uint),
    ('text_position', ctypes.c_int),
    ('length', ctypes.c_int),
    ('audio_position', ctypes.c_int),
    ('sample', ctypes.c_int),
    ('user_data', ctypes.c_void_p),
    ('string', ctypes.c_char * 8),
  ]


_CALLBACK = ctypes.CFUNCTYPE(
  ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def _speak(library, sample_rate: int, request: dict) -> tuple[dict, bytes]:
  samples, phones, words = array.array('h'), [], []

  def callback(wave, num_samples, events):
    if num_samples > 0:
      samples.frombytes(ctypes.string_at(wave, 2 * num_samples))
    i = 0
    while events[i].type != _END_OF_LIST:
      if events[i].type == _WORD:
        words.append(events[i].sample)
      elif events[i].type == _PHONEME:
        phones.append([events[i].sample, events[i].string.decode('utf-8')])
      i += 1
    return 0

  callback = _CALLBACK(callback)
  library.espeak_SetSynthCallback(callback)
  library.espeak_ng_SetRandSeed(ctypes.c_long(request['seed']))
  if library.espeak_SetVoiceByName(request['voice'].encode()):
    raise UserError(f'espeak-ng has no voice {request["voice"]!r}')
  for parameter, name in ((_RATE, 'rate'), (_PITCH, 'pitch'), (_WORD_GAP, 'gap')):
    library.espeak_SetParameter(parameter, request[name], 0)
  text = request['text'].encode() + b'\0'
  # The flag 1 declares UTF-8.
  library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 0, 0, 1, None, None)
  header = {'rate': sample_rate, 'num_samples': len(samples), 'phones': phones, 'words': words}
  return header, samples.tobytes()


def _write(file, header: dict, samples: bytes):
  file.write(json.dumps(header).encode() + b'\n' + samples)


def main(library_path: str, data_path: str):
  library = ctypes.CDLL(library_path)
  sample_rate = library.espeak_Initialize(
    _SYNCHRONOUS, 0, data_path.encode(), _PHONEME_EVENTS | _DONT_EXIT
  )
  if sample_rate <= 0:
    raise OSError(f'espeak-ng could not be initialized with the data in {data_path}')
  for request in json.load(sys.stdin):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
      try:
        with os.fdopen(writer, 'wb') as file:
          _write(file, *_speak(library, sample_rate, request))
        os._exit(0)
      except BaseException as error:
        sys.stderr.write(f'{error}\n')
        sys.stderr.flush()
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, 'rb') as file:
      sys.stdout.buffer.write(file.read())
    if os.waitpid(child, 0)[1]:
      sys.exit(1)


if __name__ == '__main__':
  main(*sys.argv[1:])
