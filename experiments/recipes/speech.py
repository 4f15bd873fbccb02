r"""Trains the released models on human speech that anyone can install: 9 hours in 23 languages.

  mkdir deb packages && cd deb
  apt-get download festvox-ru asterisk-core-sounds-{en,es,fr,it,ru}-g722 fillets-ng-data{,-cs,-nl} \
    tuxpaint-stamps-default klettres-data
  for deb in *.deb; do dpkg-deb -x $deb ../packages; done; cd ..
  pip install -e ".[speech]"
  python -m experiments.train --stage=all --recipe=speech --workdir=runs/speech \
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

The released models are these without SoundStorm: 10 M parameters together, 19 MB in half precision;
with it they would exceed the 20 MB of the package. The codec's layers all run at the frame rate
(nn/frame_rate.py), so that a step takes 0.3 s of one core; its encoder sees one frame ahead, so
that its latency is 40 ms. Differences from the paper are those of `tiny`, for the same reason.
Results are in docs/results/speech.md.
"""

from audiolm_jax.chain import SamplingConfig
from audiolm_jax.nn.discriminators import UNUSED
from audiolm_jax.nn.frame_rate import FrameRate
from audiolm_jax.nn.quantizer import RVQ
from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.sampling import ParallelRule, Rule
from audiolm_jax.stages import coarse, detector, semantic, soundstorm, soundstream, w2v_bert
from audiolm_jax.training.loop import TrainConfig
from audiolm_jax.training.monitor import RollbackConfig
from audiolm_jax.training.optimizers import OptimizerConfig

from ..corpora import Speech
from ..inputs import Audio, DetectorClips, Tokens
from ..recipe import DetectorClipsConfig, Evaluation, Recipe, SemanticTokens, StageRecipe

NUM_CLUSTERS = 512
NUM_COARSE = 4  # 2 kbit/s; there is no fine stage


def adam(learning_rate: float, num_steps: int, **options) -> OptimizerConfig:
  return OptimizerConfig(
    learning_rate=learning_rate,
    schedule='cosine',
    warmup_steps=200,
    total_steps=num_steps,
    clip_norm=1.0,
    **options,
  )


def train(batch_size: int, num_steps: int, optimizer, **options) -> TrainConfig:
  return TrainConfig(
    batch_size=batch_size,
    num_steps=num_steps,
    optimizer=optimizer,
    log_every=50,
    eval_every=500,
    save_every=500,
    max_to_keep=1,
    ema_decay=0.999,
    **options,
  )


def transformer(width: int, num_layers: int, dropout_rate: float = 0.1) -> TransformerConfig:
  return TransformerConfig(
    num_layers=num_layers,
    num_heads=4,
    width=width,
    mlp_width=4 * width,
    dropout_rate=dropout_rate,
    dtype='float32',
    remat=False,
  )


def codec_of(num_steps: int) -> StageRecipe:
  """Returns the codec: 12 levels of 1024 codes at 50 frames/s, 6 kbit/s, 3.5 M parameters."""
  model = soundstream.Config(
    crop_length=9600,
    network=FrameRate(width=256, num_blocks=5, expansion=2, overlap=320, lookahead=1),
    quantizer=RVQ(codebook_size=1024, embedding_dim=32, decay=0.98, dead_code_threshold=0.02),
    discriminators=UNUSED,
    spectral_windows=(128, 256, 512, 1024, 2048),
    loss_weights={'spectral': 0.08, 'waveform': 1.0, 'commitment': 0.1},
  )
  optimizer = {
    group: adam(1e-3, num_steps, b1=0.8, b2=0.99) for group in ('generator', 'discriminator')
  }
  return StageRecipe(
    model=model,
    data=Audio(),
    train=train(8, num_steps, optimizer, eval_batches=16, rollback=RollbackConfig()),
  )


def detector_of(clips: DetectorClips) -> StageRecipe:
  """Returns a detector of generated speech, or its control, by the clips that it learns from."""
  model = detector.Config(channels=(16, 32, 64, 64), num_mels=40, hop_length=320)
  return StageRecipe(model=model, data=clips, train=train(16, 1200, adam(3e-3, 1200)))


RECIPE = Recipe(
  corpus=Speech(root=''),
  stages={
    'soundstream': codec_of(9000),
    'w2v_bert': StageRecipe(
      model=w2v_bert.Config(
        num_mels=40,
        conv_channels=16,
        num_contrastive_layers=2,
        num_mlm_layers=2,
        width=128,
        num_heads=4,
        mlp_width=256,
        dropout=0.0,
        codebook_size=256,
        code_width=64,
        num_negatives=50,
        mask_probability=0.1,
        mask_span=5,
        feature_layer=1,
        crop_seconds=4.0,
        targets='clusters',
        unmasked_weight=0.1,
      ),
      data=Audio(),
      train=train(16, 3500, adam(2e-3, 3500, b2=0.98)),
    ),
    'semantic': StageRecipe(
      model=semantic.Config(
        crop_seconds=10.0,
        num_clusters=NUM_CLUSTERS,
        deduplicate=False,
        transformer=transformer(width=128, num_layers=3),
      ),
      data=Tokens(),
      train=train(16, 600, adam(2e-3, 600)),
    ),
    'coarse': StageRecipe(
      model=coarse.Config(
        crop_seconds=5.0,
        num_quantizers=NUM_COARSE,
        num_clusters=NUM_CLUSTERS,
        deduplicate=False,
        time_embedding=True,
        # Otherwise the model continues the previous codes, and hardly uses semantic tokens.
        aligned=True,
        code_dropout=0.2,
        transformer=transformer(width=192, num_layers=4, dropout_rate=0.0),
        depth=transformer(width=128, num_layers=1, dropout_rate=0.0),
      ),
      data=Tokens(),
      train=train(8, 2600, adam(2e-3, 2600, b2=0.98)),
      from_code_vectors=True,
    ),
    'soundstorm': StageRecipe(
      model=soundstorm.Config(
        crop_seconds=5.0,
        num_clusters=NUM_CLUSTERS,
        num_quantizers=4,
        num_layers=3,
        num_heads=4,
        width=128,
        mlp_width=256,
        dropout=0.1,
        dtype='float32',
        remat=False,
        level_skew=1.0,
      ),
      data=Tokens(),
      train=train(16, 1600, adam(2e-3, 1600)),
      from_code_vectors=True,
    ),
    'detector': detector_of(DetectorClips()),
    'detector_control': detector_of(DetectorClips(originals_only=True)),
  },
  semantic_tokens=SemanticTokens(layer=1, num_clusters=NUM_CLUSTERS, sample_seconds=10_000.0),
  sampling=SamplingConfig(
    soundstorm=ParallelRule(rule=Rule(0.8), noise=1.0, iterations=(16, 16, 16, 8))
  ),
  detector_clips=DetectorClipsConfig(num_train=96, num_validation=24, num_test=48, batch_size=24),
  evaluation=Evaluation(
    num_clips=32,
    num_prompts=32,
    num_naturalness_clips=16,
    prompt_seconds=3.0,
    seconds=7.0,
    carry_seconds=1.0,
    decoder_seconds=1200.0,
  ),
)
