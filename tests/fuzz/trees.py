"""Odd file names and shapes of folders, made of a number; what is in them is known."""

import os
import socket
from typing import NamedTuple

import numpy as np

from tests.fuzz import battery
from tests.fuzz.audio_cases import wav

EXTENSIONS = ('.wav', '.WAV', '.flac', '.Ogg', '.oga', '.opus', '.wave', '.mp3')
STEMS = (
  *(b'a', b'-rf', b'--output=x', b' ', b'  lead', b'trail ', b'new\nline', b'tab\there', b'.hidden', b'a.b.c'),
  *(b'\xff\xfe', b'\xe9t\xe9', b'\xc3\xa9', b'e\xcc\x81', b'\x1b[31mred', b'\x07', b'$(reboot)', b'`id`', b'"', b"'"),
  *(b'\\', b'a\\b', b'*', b'?', b'[a]', b'{a,b}', b'a;b', b'a&b', b'|', b'<html>', b'=1+1', b'@x', b'%s%n', b'#'),
  *(b'CON', b'nul', b'x' * 245, b'\xe3\x81\x82' * 81, b'\xf0\x9f\x8e\xb5', b'\xe2\x80\xae', b'~', b'!', b'a=b', b','),
)  # fmt: skip


class Tree(NamedTuple):
  """A folder: `audio` holds its readable files by inode, `other` what must be left out."""

  root: bytes
  audio: dict[int, bytes]
  other: list[bytes]


def make(number: int, root: str) -> Tree:
  """Makes the tree of a number; the same in every run."""
  rng = np.random.default_rng([battery.SEED, number])
  tree = Tree(os.path.join(os.fsencode(root), b'in'), {}, [])
  os.mkdir(tree.root)
  folders = [tree.root]
  for _ in range(rng.integers(5)):
    path = os.path.join(folders[rng.integers(len(folders))], _stem(rng))
    if len(path) < 2_000 and not os.path.lexists(path):
      os.mkdir(path)
      folders.append(path)
  for index in range(rng.integers(1, 8)):
    path = os.path.join(folders[rng.integers(len(folders))], _stem(rng) + _extension(rng))
    if not os.path.lexists(path):
      _file(path, index)
      tree.audio[os.stat(path).st_ino] = path
  for _ in range(rng.integers(5)):
    _odd(rng, tree, folders)
  return tree


def _stem(rng) -> bytes:
  return STEMS[rng.integers(len(STEMS))]


def _extension(rng) -> bytes:
  return EXTENSIONS[rng.integers(len(EXTENSIONS))].encode()


def _file(path: bytes, index: int):
  samples_T = np.full(1_600 + index, 100 * index, '<i2')  # no two of a tree are alike
  with open(path, 'wb') as file:
    file.write(wav(samples_T.tobytes()))


def _odd(rng, tree: Tree, folders: list[bytes]):
  """Adds a link, a loop, a pipe, or a file whose name is that of no audio we read."""
  folder = folders[rng.integers(len(folders))]
  path = os.path.join(folder, b'odd' + str(rng.integers(10**6)).encode())
  kind = rng.integers(7)
  if kind == 0:  # a circle, or a folder once more
    os.symlink(folders[rng.integers(len(folders))], path)
    tree.other.append(path)
  elif kind == 1:  # a file once more, by a link of either sort
    known = list(tree.audio.values())
    (os.link if rng.integers(2) else os.symlink)(known[rng.integers(len(known))], path + b'.wav')
  elif kind == 2:
    os.mkfifo(path + b'.wav')
    tree.other.append(path + b'.wav')
  elif kind == 3:
    # a path of more than 107 bytes is none of a socket: bound by a short one, then moved
    short = os.path.join(os.path.dirname(tree.root), b's')
    with socket.socket(socket.AF_UNIX) as listener:
      listener.bind(os.path.relpath(short))
    os.rename(short, path + b'.flac')
    tree.other.append(path + b'.flac')
  elif kind == 4:
    path = os.path.join(folder, b'._' + path[-3:] + b'.wav')
    if not os.path.lexists(path):
      _file(path, 0)
      tree.other.append(path)
  elif kind == 5:
    _file(path + b'.m4a', 0)
    tree.other.append(path + b'.m4a')
  else:
    with open(path + b'.txt', 'wb') as file:
      file.write(b'not audio, and not named so')
