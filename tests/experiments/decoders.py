"""Stand-ins for the decoder of `experiments.serving.uploads`, which exceed its limits.

In a module of their own that imports little, because each child imports it.
"""

import contextlib
import os
import time

from experiments.serving import uploads


def hungry(sending, data, sample_rate):
  """Answers only if it gets more memory than allowed."""
  uploads._limit()
  with contextlib.suppress(MemoryError):
    sending.send_bytes(uploads._FINE + bytes(2 * uploads.MEMORY_BYTES)[:4])


def hanging(sending, data, sample_rate):
  time.sleep(600)


def dying(sending, data, sample_rate):
  os.abort()


def writing(sending, data, sample_rate):
  """Answers only if it can write to the file that `data` names."""
  uploads._limit()
  with contextlib.suppress(OSError), open(data.decode(), 'wb') as file:
    file.write(b'x')
    file.flush()
    sending.send_bytes(uploads._FINE + bytes(4))
