"""People's speech that anyone can install: 9 hours in 23 languages, 9.5 with LibriSpeech.

  mkdir deb packages && cd deb
  apt-get download festvox-ru asterisk-core-sounds-{en,es,fr,it,ru}-g722 fillets-ng-data{,-cs,-nl} \
    tuxpaint-stamps-default klettres-data
  for deb in *.deb; do dpkg-deb -x $deb ../packages; done; cd ..
  pip install -e ".[speech]"
  python -m experiments.train --stage=soundstream --recipe=speech --workdir=runs/speech \
    --set corpus.root=packages --set corpus.librispeech=/data/LibriSpeech/train-clean-100

0.6 GB from Debian's mirrors (Debian 12; no root is needed). Where the packages are installed by
`apt-get install` the root is `/`. LibriSpeech (openslr.org/12) is optional: for the numbers in the
documents one utterance of each of the 251 speakers of train-clean-100 is enough, 52 minutes.

What is in it, after pauses at both ends are cut and clips of one voice joined to 6 s (16 kHz FLAC
below WORKDIR/corpus, 0.6 GB, made once, in minutes):

  festvox-ru                1.5 h   one speaker; texts and phone labels         BSD-like
  asterisk-core-sounds-*    1.7 h   three professional speakers                 CC BY(-SA) 3.0
  fillets-ng-data-*         2.6 h   two leads each in Czech and Dutch; texts    GPL-2
  tuxpaint-stamps-default   2.8 h   a volunteer for each of 11 languages; texts GPL-2+
  klettres-data             0.2 h   a volunteer for each of 14 languages        GPL-2+
  LibriSpeech               0.7 h   205 speakers                                CC BY 4.0

The recordings are data with licences of their own: none of them is in this repository.

Held out: all voices that speak da, de, hu, it or lt (0.6 h: a volunteer may have spoken for two
packages, but in one language), LibriSpeech's speakers with a number divisible by 5, and, as a split
of its own, a tenth of the recordings with phone labels ('labelled': recordings never heard, of a
voice that was). Their phones in context are items for ABX:

  python -m experiments.evaluate --suite=tokens --recipe=speech --workdir=runs/speech \
    --data runs/speech/corpus/speech-*/labelled --subset=labelled

Left out are sounds that are no speech (by name, or without a line in a script), silent clips, 550
clips of KLettres whose Ogg stream has no end (Malayalam, Arabic), five roles of fillets-ng under
noise or disguised. DNSMOS OVRL of two to four clips a voice: festvox-ru and Asterisk 3.3, Tux Paint
2.4 to 3.2, KLettres 2.3 to 3.2, fillets-ng 2.2 to 2.5 (its Dutch has nothing above 4 kHz).
"""

import dataclasses

from experiments.corpora import Speech
from experiments.recipes import small_codec_folder

RECIPE = dataclasses.replace(
  small_codec_folder.RECIPE,
  corpus=Speech(root=''),
  speaker=None,  # of eight voices, and
  numbers=None,  # of spoken numbers: both are the synthesized corpus's
)
