"""The evaluation suites: what a trained workdir reaches on held-out voices and texts, beside baselines."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from audiolm_jax import audio, generation, kmeans
from audiolm_jax.data import pipeline
from audiolm_jax.metrics import codec as codec_metrics
from audiolm_jax.metrics import language
from audiolm_jax.metrics import speech
from audiolm_jax.metrics import tokens as token_metrics
from audiolm_jax.stages import classifier, soundstream, w2v_bert
from audiolm_jax.stages.base import Feature, Variables
from experiments import corpora, sources, workspace
from experiments.recipe import Recipe

CODEC_LEVELS = (1, 4, 12)
CODEC_CROP_SECONDS = 4.0
LANGUAGE_MODELS = ('semantic', 'coarse', 'fine', 'acoustic_only')


def codec(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns SI-SDR (dB) and log-mel distance (nats) by the number of levels, and of an untrained codec and silence."""
  config, variables, _ = workspace.load_stage(workdir, 'soundstream')
  length = round(CODEC_CROP_SECONDS * config.sample_rate) // config.hop_length * config.hop_length
  batch_size = 8
  batches = pipeline.evaluation_batches(
      sources.corpus(recipe, 'test', workdir),
      {'waveform': Feature((length,), np.float32, config.sample_rate)},
      batch_size=batch_size,
      num_batches=-(-recipe.evaluation.num_clips // batch_size),
      seed=recipe.evaluation.seed,
  )
  levels = [n for n in CODEC_LEVELS if n <= config.num_quantizers]

  @functools.partial(jax.jit, static_argnums=2)
  def measure(variables, wave_BT, num_quantizers):
    codes_BFQ = soundstream.encode(config, variables, wave_BT, num_quantizers)
    return *distances(wave_BT, soundstream.decode(config, variables, codes_BFQ)), codes_BFQ

  def distances(wave_BT, estimate_BT):
    return (
        codec_metrics.si_sdr(wave_BT, estimate_BT),
        codec_metrics.log_mel_distance(wave_BT, estimate_BT, config.sample_rate),
    )

  def row(results) -> dict:
    si_sdr, mel = (np.concatenate([np.asarray(result[n]) for result in results]) for n in (0, 1))
    return {'si_sdr': float(si_sdr.mean()), 'mel_distance': float(mel.mean()), 'clips': len(mel)}

  waves = [batch['waveform'] for batch in batches]
  rows, codes_BFQ = {}, None
  for n in levels:
    results = [measure(variables, wave_BT, n) for wave_BT in waves]
    rows[f'{n} levels'] = row(results)
    codes_BFQ = np.concatenate([np.asarray(result[2]) for result in results])
  untrained = jax.jit(lambda key: config.make().init(key))(jax.random.key(1))
  rows['untrained, all levels'] = row([measure(untrained, wave_BT, config.num_quantizers) for wave_BT in waves])
  rows['silence'] = row([jax.jit(distances)(wave_BT, jnp.zeros_like(wave_BT)) for wave_BT in waves])
  perplexity_Q = codec_metrics.codebook_perplexity(jnp.asarray(codes_BFQ), config.codebook_size)
  return {'rows': rows, 'perplexity': [float(x) for x in perplexity_Q], 'codebook_size': config.codebook_size}


def tokens(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns how well semantic tokens follow phones, beside k-means (same K) on the log-mel that w2v-BERT reads."""
  config, variables, _ = workspace.load_stage(workdir, 'w2v_bert')
  quantizer, metadata = workspace.load_semantic_quantizer(workdir)
  num_clusters = len(quantizer.centroids_KD)
  training, test = (sources.corpus(recipe, split, workdir) for split in ('train', 'test'))
  test = corpora.Subset(test, recipe.evaluation.num_clips, seed=recipe.evaluation.seed)
  layer = int(metadata['layer'])
  extractors = {
      'w2v-BERT': lambda wave_BT: w2v_bert.features(config, variables, wave_BT, layer),
      'raw log-mel, averaged': functools.partial(_log_mel_features, config, stack=False, normalize=False),
      'raw log-mel, stacked': functools.partial(_log_mel_features, config, stack=True, normalize=False),
      'normalized log-mel, stacked': functools.partial(_log_mel_features, config, stack=True, normalize=True),
  }
  rows = {}
  phones_N = np.concatenate([example['phones'] for example in test])
  speakers_N = np.concatenate([np.full(len(example['phones']), example['speaker']) for example in test])
  for name, extractor in extractors.items():
    extract = functools.partial(sources.map_frames, jax.jit(extractor), hop_length=config.hop_length)
    own = quantizer
    if name != 'w2v-BERT':
      own = sources.fit_clusters(extract, training, config, recipe.semantic_tokens)
    frames_ND = np.concatenate(list(extract(test, config.sample_rate)))
    tokens_N = np.asarray(kmeans.assign(own, jnp.asarray(frames_ND)[None])[0])
    rows[name] = {
        'phone_purity': token_metrics.phone_purity(tokens_N, phones_N),
        'phone_nmi': token_metrics.normalized_mutual_information(tokens_N, phones_N),
        'speaker_nmi': token_metrics.normalized_mutual_information(tokens_N, speakers_N),
    }
  return {'rows': rows, 'num_clusters': num_clusters, 'frames': len(phones_N)}


def _log_mel_features(config: w2v_bert.Config, wave_BT, *, stack: bool, normalize: bool):
  """Returns log-mel frames at the rate of the tokens: the frames of 10 ms in each 40 ms averaged, or side by side."""
  if normalize:  # over the utterance, as w2v-BERT reads them
    log_mel_BFM, _ = w2v_bert.normalized_log_mel(config, wave_BT)
  else:
    log_mel_BFM = audio.log_mel_spectrogram(
        jnp.pad(wave_BT, ((0, 0), (0, config.window_length - config.mel_hop_length))),
        sample_rate=config.sample_rate, window_length=config.window_length, hop_length=config.mel_hop_length,
        num_mels=config.num_mels, fft_length=512,
    )
  batch, frames, bands = log_mel_BFM.shape
  groups_BSNM = log_mel_BFM.reshape(batch, -1, w2v_bert.SUBSAMPLING, bands)
  return groups_BSNM.reshape(batch, groups_BSNM.shape[1], -1) if stack else groups_BSNM.mean(axis=2)


def language_models(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns held-out nats per token of each language model, beside unigram and bigram of the same tokens."""
  rows = {}
  for name in LANGUAGE_MODELS:
    if not (workdir / name).is_dir():
      continue
    config, variables, _ = workspace.load_stage(workdir, name)
    stage = config.make()
    options = dict(batch_size=8, seed=recipe.evaluation.seed)
    make = functools.partial(pipeline.evaluation_batches, features=stage.batch, **options)
    held_out = make(workspace.token_source(workdir, 'test'), num_batches=8)
    training_source = workspace.token_source(workdir, 'train')
    # Twice round the training tokens in random crops: the baselines see what the model saw.
    training = make(training_source, num_batches=max(1, 2 * len(training_source) // 8))
    targets = lambda batches: np.concatenate([np.asarray(config.prefix_and_target(batch)[1]) for batch in batches])
    counts = language.fit(targets(training), config.language_model.vocabulary.target_size)
    evaluate = jax.jit(lambda params, batch: stage.loss(params, variables.state, batch, None)[0])
    test = targets(held_out)
    rows[name] = {
        'nats': float(np.mean([evaluate(variables.params, batch) for batch in held_out])),
        'unigram': language.unigram_nats(counts, test),
        'bigram': language.bigram_nats(counts, test),
        'tokens': int((test >= 0).sum()),
    }
  return {'rows': rows}


def continuation(recipe: Recipe, workdir: pathlib.Path) -> dict:
  """Returns who speaks in continuations of held-out voices, and whether what they say obeys the number grammar."""
  settings = recipe.evaluation
  _, judged = sources.held_out_voices(recipe, workdir)
  counting = [example for example in judged if example['kind'] == 'counting']
  prompts = [counting[index % len(counting)] for index in range(settings.num_prompts)]
  rate = workspace.load_stage(workdir, 'soundstream')[0].sample_rate
  start, end = (round(seconds * rate) for seconds in (settings.prompt_seconds, settings.prompt_seconds + settings.seconds))
  prompt_BT, num_samples_B = workspace.stacked([example['waveform'][:start] for example in prompts])
  waves = {'original, through the codec': [e['waveform'][:end] for e in sources.reconstructions(prompts, workdir)]}
  for label, coarse in (('continuation', 'coarse'), ('acoustic-only continuation', 'acoustic_only')):
    if not (workdir / coarse).is_dir():
      continue
    models = workspace.load_models(workdir, coarse=coarse)
    result = generation.continue_audio(
        models, jax.random.key(settings.seed), prompt_BT, num_samples_B, seconds=settings.seconds,
        sampling=recipe.sampling, carry_seconds=settings.carry_seconds,
    )
    waves[label] = list(np.asarray(result.wave_BT)[:, :end])
  speakers, numbers = (workspace.load_stage(workdir, name)[:2] for name in ('speaker', 'numbers'))
  labels = np.array([int(example['label']) for example in prompts])
  steps = [speech.counting_step(example['text'].split()) for example in prompts]
  rows = {}
  for label, clips in waves.items():
    new = [clip[start:] for clip in clips]
    rows[label] = {
        'speaker_accuracy': float(np.mean([_speaker(*speakers, clip) for clip in new] == labels)),
        **speech.grammar_scores([_numbers(*numbers, clip) for clip in new], steps),
    }
  whole = sources.reconstructions(counting, workdir)
  said = [[speech.NUMBERS.index(word) for word in example['text'].split()] for example in whole]
  error_rate = speech.word_error_rate([_numbers(*numbers, example['waveform']) for example in whole], said)
  return {
      'rows': rows,
      'chance_speaker': 1 / speakers[0].num_classes,
      'chance_step': 1 / len(speech.NUMBERS),
      'recognizer_word_error_rate': error_rate,
      'prompts': len(prompts),
      'seconds': settings.seconds,
  }


def _speaker(config: classifier.Config, variables: Variables, clip_T: np.ndarray) -> int:
  """Returns the voice of a clip: the largest mean log-probability over its crops."""
  length = round(config.crop_seconds * config.sample_rate)
  crops = np.stack([clip_T[start : start + length] for start in range(0, len(clip_T) - length + 1, length)])
  return int(_log_probabilities(config, variables, crops).mean(axis=0).argmax())


def _numbers(config: classifier.Config, variables: Variables, clip_T: np.ndarray) -> list[int]:
  """Returns the numbers heard in a clip."""
  windows = speech.windows(clip_T, round(config.crop_seconds * config.sample_rate), round(0.05 * config.sample_rate))
  return speech.decode_numbers(_log_probabilities(config, variables, windows))


def _log_probabilities(config: classifier.Config, variables: Variables, crops_NT: np.ndarray) -> np.ndarray:
  bucket = 64  # windows at a time: one compilation for clips of any length
  padded_NT = np.pad(crops_NT, ((0, -len(crops_NT) % bucket), (0, 0)))
  parts = [_classify(config, variables, padded_NT[n : n + bucket]) for n in range(0, len(padded_NT), bucket)]
  return np.concatenate([np.asarray(part) for part in parts])[: len(crops_NT)]


@functools.partial(jax.jit, static_argnums=0)
def _classify(config, variables, wave_BT):
  return jax.nn.log_softmax(classifier.logits(config, variables, wave_BT))


SUITES = {'codec': codec, 'tokens': tokens, 'language': language_models, 'continuation': continuation}


def path(workdir: pathlib.Path, suite: str) -> pathlib.Path:
  return workdir / 'evaluation' / f'{suite}.json'


def load(workdir: pathlib.Path) -> dict:
  """Returns the results that are there, by suite."""
  return {name: json.loads(path(workdir, name).read_text()) for name in SUITES if path(workdir, name).is_file()}


def table(report: dict) -> str:
  """Returns the report as plain text, one block a suite."""
  lines = []
  for suite, content in report.items():
    rows = content['rows']
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows) + 2
    facts = ', '.join(f'{name} {_cell(value)}' for name, value in content.items() if name not in ('rows', 'perplexity'))
    lines += [f'\n{suite} ({facts})' if facts else f'\n{suite}']
    lines += [' ' * width + ''.join(f'{column:>18}' for column in columns)]
    lines += [f'{name:<{width}}' + ''.join(f'{_cell(row[c]):>18}' for c in columns) for name, row in rows.items()]
    if 'perplexity' in content:
      lines += ['codebook perplexity by level: ' + ' '.join(f'{value:.0f}' for value in content['perplexity'])]
  return '\n'.join(lines)


def _cell(value) -> str:
  return f'{value:.3f}' if isinstance(value, float) else str(value)
