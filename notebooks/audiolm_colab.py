# %% [markdown]
# # AudioLM in JAX: hear it, change it, train it
#
# This notebook continues recorded voices by small trained models (10 M parameters), first examples,
# then your own voice. It shows the codec at several bit rates, says the same words in other voices,
# trains one model further on your recordings, trains a detector of generated speech and asks it
# about all sounds, and exports the result.
#
# What the packaged models add sounds like speech in a foreign language, with part of the voice, and
# says no words: they are small, and were trained for five hours of one CPU core.
#
# Choose *Runtime > Change runtime type*: a TPU or a GPU computes everything within minutes, a CPU
# works with shorter sounds. Then run the cells in order.

# %% [markdown]
# ## Install
#
# `REPOSITORY` is the address of the Git repository that this notebook is from. If it is empty, the
# cell asks for a file: the repository as a ZIP, or a wheel of it.
#
# The kernel has already imported numpy, so a constraint file keeps pip from replacing it, and the
# runtime need not be restarted.

# %% tags=["colab"]
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np

REPOSITORY = ''  # @param {type: "string"}

if REPOSITORY:
  source = f'git+{REPOSITORY}'
else:
  from google.colab import files

  source = pathlib.Path(next(iter(files.upload()))).absolute().as_uri()
pathlib.Path('constraints.txt').write_text(f'numpy=={np.__version__}\n')
gpu = shutil.which('nvidia-smi')
status = subprocess.run([gpu], capture_output=True, text=True).stdout if gpu else ''
wanted = [f'audiolm_jax[plot] @ {source}']
if importlib.util.find_spec('libtpu'):  # part of Colab's TPU runtime, where it is too old
  wanted = [f'audiolm_jax[plot,tpu] @ {source}']
elif cuda := re.search(r'CUDA Version: (\d+)', status):
  wanted.append(f'jax[cuda{cuda[1]}]')
subprocess.run(
  [sys.executable, '-m', 'pip', 'install', '--quiet', '-c', 'constraints.txt', *wanted], check=True
)

# %% [markdown]
# ## Check this machine
#
# Optional, about five minutes: trains every stage for six steps on noise, generates, and compares
# the attention kernels with plain attention. On a TPU it is the first cell to run, because two
# processes cannot share a chip. Paste its report into an issue if something is wrong.

# %%
import subprocess

CHECK = False  # @param {type: "boolean"}

if CHECK:
  command = ['audiolm', 'smoke', '--workdir=smoke']
  print(subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout)

# %% [markdown]
# ## Which device is this?

# %%
import jax

device = jax.devices()[0]
print(f'{jax.device_count()} x {device.device_kind}, JAX {jax.__version__}')
ON_CPU = device.platform == 'cpu'
if ON_CPU:
  print('No TPU or GPU: sounds are shorter, and training takes fewer steps.')
PROMPT_SECONDS = 3.0
SECONDS = 2.0 if ON_CPU else 7.0  # of new audio

# %% [markdown]
# ## Trained models
#
# One call loads the release that is part of the package. A folder or the name of a repository of
# the Hugging Face hub load other ones.

# %%
import audiolm_jax
from audiolm_jax import release

RELEASE = release.PACKAGED  # @param {type: "raw"}

models = audiolm_jax.from_pretrained(RELEASE)
codec, rate = models.tokenizer.codec, models.tokenizer.sample_rate
print(f'{rate} Hz; codec: {codec.num_quantizers} levels, {codec.bit_rate() / 1000:.1f} kbit/s')
for name in ('semantic', 'coarse', 'fine', 'soundstorm'):
  if (model := getattr(models, name)) is not None:
    count = sum(leaf.size for leaf in jax.tree.leaves(model.variables.params))
    print(f'{name}: {count / 1e6:.1f} M parameters')

# %% [markdown]
# Two helpers: a player, which also keeps the sounds for the detector below, and a picture of the
# sound with a line where new audio begins.

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython import display

heard = []  # title, waveform, and the second at which generated audio begins (or infinity)


def play(title, wave_T, new=float('inf')):
  heard.append((title, np.asarray(wave_T), new))
  display.display(display.Markdown(f'**{title}**'), display.Audio(np.asarray(wave_T), rate=rate))


def show(title, wave_T, line=None):
  figure, axis = plt.subplots(figsize=(9, 2.5), layout='constrained')
  axis.specgram(np.asarray(wave_T) + 1e-6, NFFT=512, noverlap=352, Fs=rate, cmap='magma')
  if line is not None:
    axis.axvline(line, color='white', linestyle='--')
  axis.set(title=title, xlabel='seconds', ylabel='Hz')
  display.display(figure)
  plt.close(figure)


# %% [markdown]
# ## Continue a voice
#
# The models have never heard the speakers of these examples. They get the first three seconds, no
# text, and continue by each path that the release has: SoundStorm makes the acoustic tokens in
# parallel, language models one after the other. The first run compiles; run the cell again to see
# the speed.

# %%
import time

from audiolm_jax import audio

SEED = 0  # @param {type: "integer"}

PATHS = {
  'SoundStorm': ('soundstorm', models.soundstorm),
  'Language models': ('autoregressive', models.coarse),
}


def load(path, seconds=PROMPT_SECONDS):
  return audio.load(path, rate)[: round(seconds * rate)]


def continued(prompt_T, seed=SEED):
  """Plays the prompt and its continuations."""
  play('Prompt', prompt_T)
  for title, (acoustic, model) in PATHS.items():
    if model is None:  # not part of this release
      continue
    begun = time.time()
    result = audiolm_jax.continue_audio(
      models, jax.random.key(seed), prompt_T[None], seconds=SECONDS, acoustic=acoustic
    )
    took = time.time() - begun
    line = result.prompt_frames_B[0] * codec.hop_length / rate
    play(f'{title}: {SECONDS:g} s of new audio in {took:.1f} s', result.wave_BT[0], new=line)
    show(title, result.wave_BT[0], line)


examples = sorted((release.fetch(RELEASE) / 'examples').glob('*.flac'))
for path in examples[:1] if ON_CPU else examples:
  print(path.stem)
  continued(load(path))

# %% [markdown]
# ## Your own voice
#
# `record` asks the browser for the microphone and records four seconds, `upload` takes a WAV, FLAC,
# OGG or MP3 file. The browser itself converts the recording to the sample rate of the models.

# %%
import base64

SOURCE = 'example'  # @param ["example", "record", "upload"]

RECORDER = """
async () => {
  const media = await navigator.mediaDevices.getUserMedia({audio: true});
  const recorder = new MediaRecorder(media), chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const stopped = new Promise((resolve) => recorder.onstop = resolve);
  recorder.start();
  await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS));
  recorder.stop();
  await stopped;
  media.getTracks().forEach((track) => track.stop());
  const bytes = await new Blob(chunks).arrayBuffer();
  const heard = await new AudioContext().decodeAudioData(bytes);
  const offline = new OfflineAudioContext(1, Math.ceil(heard.duration * RATE), RATE);
  const source = offline.createBufferSource();
  source.buffer = heard;
  source.connect(offline.destination);
  source.start();
  const mono = (await offline.startRendering()).getChannelData(0);
  const data = new Uint8Array(mono.buffer);
  let text = '';
  for (let i = 0; i < data.length; i += 8192)
    text += String.fromCharCode(...data.subarray(i, i + 8192));
  return btoa(text);
}
"""


def record(seconds=4.0, path='recording.wav'):
  """Returns the path of a WAV of what the browser's microphone hears."""
  from google.colab import output

  script = RECORDER.replace('SECONDS', str(seconds)).replace('RATE', str(rate))
  encoded = output.eval_js(f'({script.strip()})()')
  audio.save(path, np.frombuffer(base64.b64decode(encoded), np.float32), rate, overwrite=True)
  return path


def upload():
  """Returns the path of a file from your machine."""
  from google.colab import files

  return next(iter(files.upload()))


if SOURCE == 'record':
  mine = record()
elif SOURCE == 'upload':
  mine = upload()
else:
  mine = examples[-1]
continued(load(mine))

# %% [markdown]
# ## The codec
#
# Each level of codes adds detail and bits. Listen from the original down to one level.

# %%
wave_T = load(mine)
play('Original', wave_T)
for levels in sorted({1, 2, 4, 8, codec.num_quantizers}, reverse=True):
  if levels <= codec.num_quantizers:
    title = f'{levels} of {codec.num_quantizers} levels, {codec.bit_rate(levels) / 1000:.2f} kbit/s'
    play(title, codec.reconstruct(wave_T[None], levels=levels)[0])

# %% [markdown]
# ## Can you tell?
#
# A blind comparison: one of A and B is the original, the other has passed through the codec with
# `LEVELS` levels. Listen, set `ORIGINAL` in the cell below to the one that you take for the
# original, and run that cell. Run both cells several times: by guessing, half of the answers are
# right.

# %%
LEVELS = codec.num_quantizers  # @param {type: "raw"}

sounds = [('original', wave_T), ('codec', codec.reconstruct(wave_T[None], levels=LEVELS)[0])]
pair = dict(zip('AB', np.random.default_rng().permutation(2)))  # letter: number of the sound
for letter, number in pair.items():
  play(letter, sounds[number][1])

# %%
ORIGINAL = 'A'  # @param ["A", "B"]

answers = globals().get('answers', [])
if pair:  # a pair counts once
  answers.append(sounds[pair.pop(ORIGINAL)][0] == 'original')
  pair.clear()
print(f'{"Right" if answers[-1] else "Wrong"}. {sum(answers)} of {len(answers)} answers are right.')

# %% [markdown]
# ## The same words in other voices
#
# Semantic tokens represent what is said, acoustic tokens how it sounds. From semantic tokens alone,
# the acoustic models sample a voice; after the tokens and codes of another speaker, they continue
# in that speaker's voice. Of the packaged models expect the rhythm, not the words.

# %%
ACOUSTIC = 'autoregressive' if models.soundstorm is None else 'soundstorm'

words_BS, _ = models.tokenizer.encode(load(mine)[None])
play('The words', load(mine))
for seed in range(2):
  result = audiolm_jax.generate_acoustics(models, jax.random.key(seed), words_BS, acoustic=ACOUSTIC)
  play(f'A sampled voice ({seed})', result.wave_BT[0], new=0)

voice_T = load(examples[0])
voice_BS, voice_BFQ = models.tokenizer.encode(voice_T[None])
result = audiolm_jax.generate_acoustics(
  models,
  jax.random.key(SEED),
  np.concatenate([voice_BS, words_BS], axis=1),
  voice_BFQ,
  acoustic=ACOUSTIC,
)
play('Another speaker', voice_T)
spoken_T = result.wave_BT[0, result.prompt_frames_B[0] * codec.hop_length :]
play('The words by that speaker', spoken_T, new=0)

# %% [markdown]
# ## Train on your own recordings
#
# Continues the training of one acoustic model on recordings in FOLDER (the examples, if it is
# empty). Minutes of one voice suffice to hear a difference; a few examples only show that it works.
# Checkpoints go to WORKDIR. On Google Drive they survive a disconnect (mount it first:
# `google.colab.drive.mount('/content/drive')`); the same cell then resumes.

# %%
import functools
import pathlib

from audiolm_jax import tokenizer
from audiolm_jax.data import folders, pipeline
from audiolm_jax.training import checkpoints, loop, optimizers

FOLDER = ''  # @param {type: "string"}
WORKDIR = 'finetuned'  # @param {type: "string"}
STEPS = 40 if ON_CPU else 400
BATCH_SIZE = 4 if ON_CPU else 16

recordings = folders.find(FOLDER) if FOLDER else [*examples, mine]
data = [
  {'semantic': semantic_S, 'codes': codes_FQ}
  for _, semantic_S, codes_FQ in tokenizer.files(models.tokenizer, recordings)
]
STAGE = 'coarse' if models.soundstorm is None else 'soundstorm'
model = getattr(models, STAGE)
start = pathlib.Path(WORKDIR) / 'start'  # the released weights, as a checkpoint to begin with
if not checkpoints.steps(start):
  audiolm_jax.save_variables(start, model.config, model.variables, model.metadata)

losses = {}
live = display.display(display.Markdown('Compiling'), display_id=True)


def report(event):
  """Draws the loss at each log of the training loop."""
  if 'loss' not in event['metrics']:
    return
  losses[event['step']] = event['metrics']['loss']
  figure, axis = plt.subplots(figsize=(6, 2.5), layout='constrained')
  axis.plot(list(losses), list(losses.values()), marker='.')
  axis.set(title=STAGE, xlabel='step', ylabel='loss')
  live.update(figure)
  plt.close(figure)


stage = model.config.make()
trained = loop.train(
  stage,
  model.config,
  loop.TrainConfig(
    batch_size=BATCH_SIZE,
    num_steps=STEPS,
    optimizer=optimizers.OptimizerConfig(learning_rate=3e-4, warmup_steps=10, clip_norm=1.0),
    log_every=max(1, STEPS // 40),
    save_every=max(1, STEPS // 4),
    max_to_keep=1,
    tensorboard=False,
  ),
  make_batches=functools.partial(
    pipeline.batches, data, stage.batch, batch_size=BATCH_SIZE, seed=0
  ),
  workdir=pathlib.Path(WORKDIR) / STAGE,
  fingerprints=models.tokenizer.fingerprints,
  init_from=start,
  report=report,
)
print(f'step {trained.step}, {trained.goodput:.0%} of the time in steps')
finetuned = models._replace(**{STAGE: model._replace(variables=trained.variables)})

# %% [markdown]
# Before and after, with the same key:

# %%
for title, chain in (('Before', models), ('After', finetuned)):
  result = audiolm_jax.continue_audio(
    chain, jax.random.key(SEED), load(mine)[None], seconds=SECONDS, acoustic=ACOUSTIC
  )
  play(title, result.wave_BT[0], new=result.prompt_frames_B[0] * codec.hop_length / rate)

# %% [markdown]
# ## Was it generated?
#
# The released models come without a detector of generated speech, so this cell trains one: it tells
# originals from continuations, by the second. Both have passed through the codec, or it would go by
# the codec's traces. It learns from all of `recordings` but your own, and from other continuations
# than those above. Then it judges every sound of this notebook; bars mark where generated audio
# begins. The estimates are not calibrated. After a few examples it knows these models' sound and
# little else; with hours in FOLDER, and held-out voices, it becomes the detector that
# `audiolm detect` uses.

# %%
import tempfile

import jax.numpy as jnp

from audiolm_jax.stages import detector

DETECTOR_STEPS = 60 if ON_CPU else 300
NUM_RECORDINGS = 2 if ON_CPU else 16
TAKES = 2  # continuations of each recording by each path

config = detector.Config(
  sample_rate=rate,
  crop_seconds=min(SECONDS, 1.0),
  channels=(16, 32, 64, 64),
  num_mels=40,
  hop_length=320,
)
crop_length = config.crop_length
pairs = []
for path in [path for path in recordings if path != mine][:NUM_RECORDINGS]:
  prompt_T = load(path)
  coded_T = np.asarray(codec.reconstruct(prompt_T[None])[0])
  original = {'waveform': coded_T, 'label': detector.ORIGINAL}
  for take in range(TAKES):
    for acoustic in [acoustic for acoustic, model in PATHS.values() if model is not None]:
      key = jax.random.key(SEED + 1 + take)
      result = audiolm_jax.continue_audio(
        models, key, prompt_T[None], seconds=SECONDS, acoustic=acoustic
      )
      new_T = result.wave_BT[0, result.prompt_frames_B[0] * codec.hop_length :]
      pairs += [original, {'waveform': new_T, 'label': detector.GENERATED}]

learned = loop.train(
  config.make(),
  config,
  loop.TrainConfig(
    batch_size=16,
    num_steps=DETECTOR_STEPS,
    optimizer=optimizers.OptimizerConfig(learning_rate=1e-3, warmup_steps=10, clip_norm=1.0),
    tensorboard=False,
  ),
  make_batches=functools.partial(
    pipeline.batches, pairs, config.make().batch, batch_size=16, seed=0
  ),
  workdir=pathlib.Path(tempfile.mkdtemp()) / 'detector',  # new: it learns these pairs only
)

judged = [sound for sound in heard if len(sound[1]) >= crop_length]
crops = [wave_T[: len(wave_T) // crop_length * crop_length] for _, wave_T, _ in judged]
crops_NT = jnp.asarray(np.concatenate(crops), jnp.float32).reshape(-1, crop_length)
log_odds_N = detector.log_odds(config, learned.variables, crops_NT)
scores = iter(np.asarray(jax.nn.sigmoid(log_odds_N)))
answers_of_detector = []
for (title, _, new), wave_T in zip(judged, crops):
  line = ''
  for start in np.arange(0, len(wave_T), crop_length) / rate:
    end, score = start + crop_length / rate, next(scores)
    line += (' | ' if start <= new < end else '  ') + f'{score:.2f}'
    if start >= new or end <= new:  # else it is both
      answers_of_detector.append((score > 0.5) == (start >= new))
  print(f'{title[:40]:40}{line}')
print(f'{sum(answers_of_detector)} of {len(answers_of_detector)} seconds are recognized.')

# %% [markdown]
# ## Export
#
# A release is a folder of safetensors. `audiolm_jax.from_pretrained('my_release')` loads it
# anywhere, and `audiolm_jax.push_to_hub('my_release', 'owner/name')` publishes it.

# %%
import shutil

shutil.rmtree('my_release', ignore_errors=True)
audiolm_jax.save_pretrained(finetuned, 'my_release')
archive = shutil.make_archive('my_release', 'zip', '.', 'my_release')
again = audiolm_jax.from_pretrained('my_release')
print(f'{archive}: {pathlib.Path(archive).stat().st_size / 1e6:.1f} MB')

# %% tags=["colab"]
from google.colab import files

files.download(archive)
