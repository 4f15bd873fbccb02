r"""Trains the small codec on human speech that anyone can install: 9 hours in 23 languages.

  mkdir deb packages && cd deb
  apt-get download festvox-ru asterisk-core-sounds-{en,es,fr,it,ru}-g722 fillets-ng-data{,-cs,-nl} \
    tuxpaint-stamps-default klettres-data
  for deb in *.deb; do dpkg-deb -x $deb ../packages; done; cd ..
  pip install -e ".[speech]"
  python -m experiments.train --stage=soundstream --recipe=speech --workdir=runs/speech \
    --set corpus.root=packages --set corpus.librispeech=/data/LibriSpeech/train-clean-100

Downloads 0.6 GB from Debian's mirrors (Debian 12), without root permissions. For packages installed
by `apt-get install`, the root is `/`. LibriSpeech (openslr.org/12) is optional: the documented
results use one utterance of each of the 251 speakers of train-clean-100, 52 minutes.

Contents, after trimming pauses and joining clips of one voice to 6 s (16 kHz FLAC below
WORKDIR/corpus, 0.6 GB, prepared once within minutes):

  festvox-ru                1.5 h   one speaker; texts and phone labels           BSD-like
  asterisk-core-sounds-*    1.7 h   three professional speakers                   CC BY(-SA) 3.0
  fillets-ng-data-*         2.6 h   two leads each in Czech and Dutch; texts      GPL-2
  tuxpaint-stamps-default   2.8 h   a volunteer for each of 11 languages; texts   GPL-2+
  klettres-data             0.2 h   a volunteer for each of 14 languages          GPL-2+
  LibriSpeech               0.7 h   205 speakers                                  CC BY 4.0

The recordings have their own licences and are not part of this repository.

Held out are all voices in da, de, hu, it or lt (0.6 h: a volunteer may have recorded for two
packages, but in one language), LibriSpeech's speakers with a number divisible by 5, and, in a
separate split, a tenth of the recordings with phone labels ('labelled': unseen recordings of a
training voice). Their phones in context are items for ABX:

  python -m experiments.evaluate --suite=tokens --recipe=speech --workdir=runs/speech \
    --data runs/speech/corpus/speech-*/labelled --subset=labelled

Excluded are sounds other than speech (by name, or without a line in a script), silent clips, 550
clips of KLettres whose Ogg stream has no end (Malayalam, Arabic), and five roles of fillets-ng with
noise or disguised voices. DNSMOS OVRL of two to four clips per voice: festvox-ru and Asterisk 3.3,
Tux Paint 2.4 to 3.2, KLettres 2.3 to 3.2, fillets-ng 2.2 to 2.5 (its Dutch has nothing above 4
kHz).
"""

import dataclasses

from ..corpora import Speech
from . import small_codec_folder

RECIPE = dataclasses.replace(
  small_codec_folder.RECIPE,
  corpus=Speech(root=''),
  speaker=None,  # needs the eight test voices of the synthesized corpus
  numbers=None,  # needs its spoken numbers
)
