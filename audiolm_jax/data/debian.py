"""Finds human speech in Debian packages: files, voices, texts and phone labels.

Each reader takes the folder `share` (/usr/share, or the same folder of unpacked packages) and
returns clips sorted by path. Only Asterisk's packages name their speakers; in others, a voice is a
package, a language and, in fillets-ng, a role.
"""

import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from audiolm_jax.errors import UserError

# Packages, each with a path below `share` that exists if the package is installed.
PACKAGES = {
  'festvox-ru': 'festival/voices/russian/msu_ru_nsh_clunits/wav',
  'asterisk-core-sounds-en-g722': 'asterisk/sounds/en_US_f_Allison/digits',
  'asterisk-core-sounds-es-g722': 'asterisk/sounds/es_MX_f_Allison/digits',
  'asterisk-core-sounds-fr-g722': 'asterisk/sounds/fr_CA_f_June/digits',
  'asterisk-core-sounds-it-g722': 'asterisk/sounds/it_IT_m_Carlo/digits',
  'asterisk-core-sounds-ru-g722': 'asterisk/sounds/ru_RU_f_IvrvoiceRU/digits',
  'fillets-ng-data': 'games/fillets-ng/script/airplane/dialogs_cs.lua',
  'fillets-ng-data-cs': 'games/fillets-ng/sound/airplane/cs',
  'fillets-ng-data-nl': 'games/fillets-ng/sound/airplane/nl',
  'tuxpaint-stamps-default': 'tuxpaint/stamps/animals',
  'klettres-data': 'klettres/en/alpha',
}
# Allison Smith speaks both English and Spanish.
_ASTERISK_VOICES = {'en': 'allison', 'es': 'allison', 'fr': 'june', 'it': 'carlo', 'ru': 'ivrvoice'}
_NO_SPEECH = ('beep', 'beeperr', 'ascending-2tone', 'descending-2tone', 'tt-monkeys')
# Roles of fillets-ng with noise (SNR below 19 dB) or disguised voices (DNSMOS OVRL 1.7).
_NOISY_ROLES = ('linuxer1', 'linuxer2', 'darkgrey', 'viking6', 'statue')
_DIALOG = re.compile(r'dialogId\("([^"]*)", *"font_([^"]*)", *"[^\n]*"\)\s*dialogStr\("([^\n]*)"\)')
_STAMP = re.compile(r'(.*)_desc(?:_([A-Za-z_]+))?(?:\.ogg)+')
_PROMPT = re.compile(r'\( *(\S+) +"(.*)" *\)')


class Clip(NamedTuple):
  """Describes a recording of one voice.

  `text` is None if unknown. `labels` is a file of phones in Festival's format, with lines
  `end_seconds 125 phone`; None if there is none.
  """

  path: str
  voice: str
  language: str
  text: str | None = None
  labels: str | None = None


def festvox_ru(share: pathlib.Path) -> list[Clip]:
  """Returns the sentences of one Russian speaker, with texts ('+' precedes a stress) and labels."""
  root = share / 'festival/voices/russian/msu_ru_nsh_clunits'
  prompts = _PROMPT.findall((root / 'etc/txt.done.data').read_text('utf-8'))
  texts = {name: text.replace('\\"', '"') for name, text in prompts}
  return [
    Clip(str(path), 'festvox-ru', 'ru', texts.get(path.stem), str(root / f'lab/{path.stem}.lab'))
    for path in sorted((root / 'wav').glob('*.wav'))
  ]


def asterisk(share: pathlib.Path) -> list[Clip]:
  """Returns the telephone prompts (G.722) of four professional speakers, without texts."""
  root, clips = share / 'asterisk/sounds', []
  for path in sorted(root.glob('*_*/**/*.g722')):
    language = path.relative_to(root).parts[0][:2]
    speech = path.parent.name != 'silence' and path.stem not in _NO_SPEECH
    if speech and language in _ASTERISK_VOICES:
      clips.append(Clip(str(path), f'asterisk-{_ASTERISK_VOICES[language]}', language))
  return clips


def fillets(share: pathlib.Path) -> list[Clip]:
  """Returns the dialogue lines of fillets-ng in Czech and Dutch.

  Noises and songs, which have no line in the scripts, are excluded. A role is the font of its
  lines: `small` and `big` are the two fish, the leads.
  """
  root, clips = share / 'games/fillets-ng', []
  for folder in sorted(root.glob('sound/*/*/')):
    language, level = folder.name, folder.parent.name
    script = root / f'script/{level}/dialogs_{language}.lua'
    if language not in ('cs', 'nl') or not script.is_file():
      continue
    lines = {name: (role, text) for name, role, text in _DIALOG.findall(script.read_text('utf-8'))}
    for path in sorted(folder.glob('*.ogg')):
      role, text = lines.get(path.stem, ('', ''))
      if role and text and role not in _NOISY_ROLES:
        voice = f'fillets-{language}-{role}'
        clips.append(Clip(str(path), voice, language, text.replace('\\"', '"')))
  return clips


def tuxpaint(share: pathlib.Path) -> list[Clip]:
  """Returns the spoken descriptions (NAME_desc_LANGUAGE.ogg) of Tux Paint's stamps, with texts."""
  clips = []
  for path in sorted((share / 'tuxpaint/stamps').rglob('*.ogg')):
    if match := _STAMP.fullmatch(path.name):
      language = match[2] or 'en'
      text = _stamp_text(path.parent / f'{match[1]}.txt', language)
      clips.append(Clip(str(path), f'tuxpaint-{language}', language, text))
  return clips


def _stamp_text(path: pathlib.Path, language: str) -> str | None:
  if not path.is_file():
    return None
  first, *others = path.read_text('utf-8', 'replace').splitlines() or ['']
  if language == 'en':
    return first.strip() or None
  translated = dict(line.split('.utf8=', 1) for line in others if '.utf8=' in line)
  return translated.get(language, '').strip() or None


def klettres(share: pathlib.Path) -> list[Clip]:
  """Returns the spoken letters and syllables of KLettres, without texts."""
  root = share / 'klettres'
  paths = [(path, path.relative_to(root).parts[0]) for path in sorted(root.rglob('*.ogg'))]
  return [Clip(str(path), f'klettres-{language}', language) for path, language in paths]


_READERS: dict[str, Callable[[pathlib.Path], list[Clip]]] = {
  'festvox-ru': festvox_ru,
  'asterisk-core-sounds-': asterisk,
  'fillets-ng-data': fillets,
  'tuxpaint-stamps-default': tuxpaint,
  'klettres-data': klettres,
}


def clips(root: str | os.PathLike, packages: Sequence[str] = tuple(PACKAGES)) -> list[Clip]:
  """Returns the clips of packages found below `root`.

  Args:
    root: '/' for installed packages, or the folder into which they were unpacked.
    packages: names of the packages.

  Raises:
    UserError: with the commands to get them, if packages are unknown or missing.
  """
  if unknown := set(packages) - PACKAGES.keys():
    raise UserError(
      f'packages has unknown names {sorted(unknown)}: choose from {", ".join(PACKAGES)}'
    )
  share = pathlib.Path(root) / 'usr/share'
  if missing := [name for name in packages if not (share / PACKAGES[name]).exists()]:
    raise UserError(
      f'{share} lacks {" ".join(missing)}. On Debian or Ubuntu: '
      f'apt-get download {" ".join(missing)}; '
      'for deb in *.deb; do dpkg-deb -x $deb FOLDER; done; then --set corpus.root=FOLDER'
    )
  readers = [
    read for start, read in _READERS.items() if any(name.startswith(start) for name in packages)
  ]
  return [clip for read in readers for clip in read(share)]


def read_labels(path: str | os.PathLike) -> list[tuple[float, str]]:
  """Returns [(end in seconds, phone)] of a Festival label file, whose header ends with a line '#'.

  Raises:
    UserError: naming the line, if it has no end and phone, or ends before the previous one.
  """
  with open(path, encoding='utf-8') as file:
    lines = file.read().splitlines()
  start = lines.index('#') + 1 if '#' in lines else 0
  labels, last = [], 0.0
  for number, line in enumerate(lines[start:], start + 1):
    try:
      end, _, phone = line.split()
      end = float(end)
    except ValueError:
      raise UserError(
        f'{path}, line {number}: {line!r} is not `end_seconds number phone`'
      ) from None
    if not last <= end < float('inf'):
      raise UserError(
        f'{path}, line {number}: {phone} ends at {end} s, the previous phone at {last} s'
      )
    labels.append((end, phone))
    last = end
  return labels
