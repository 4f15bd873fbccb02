"""Makes the sounds and the picture of the README from what the demo wrote.

python -m experiments.demo --seconds=3 --output=runs/readme
python docs/sounds/make.py runs/readme
"""

import pathlib
import sys

from PIL import Image  # comes with matplotlib

from audiolm_jax import audio
from experiments.evaluations import pictures

VOICE = 'librispeech_4830-25898-0000'  # of the release's examples
RATE = 16_000  # Hz
PROMPT_SECONDS, SECONDS = 3.0, 6.0
WIDTH, COLORS = 800, 32  # of the picture, which stays small
TITLES = {
  'prompt': 'three seconds of a voice, through the codec',
  'autoregressive': 'continued by the language models from the line on',
}


def main(demo: pathlib.Path, folder: pathlib.Path):
  """Writes a FLAC for each of TITLES and spectrograms.png into a folder."""
  waves = {
    name: audio.load(demo / f'{VOICE}_{name}.wav', RATE)[: round(SECONDS * RATE)] for name in TITLES
  }
  for name, wave_T in waves.items():
    audio.save(folder / f'{name}.flac', wave_T, RATE, overwrite=True)
  marks = {TITLES[name]: PROMPT_SECONDS for name in TITLES if name != 'prompt'}
  titled = {TITLES[name]: wave_T for name, wave_T in waves.items()}
  picture = folder / 'spectrograms.png'
  pictures.save_spectrograms(picture, titled, RATE, marks=marks)
  with Image.open(picture) as drawn:
    small = drawn.convert('RGB').resize((WIDTH, WIDTH * drawn.height // drawn.width))
  small.quantize(COLORS).save(picture, optimize=True)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent)
