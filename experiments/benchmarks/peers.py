"""Times GPT-2 of `transformers`, in the sizes of a Transformer of ours: training and decoding."""

import importlib.util
import os
from collections.abc import Callable

import numpy as np

from audiolm_jax.nn.transformer import TransformerConfig
from audiolm_jax.training.optimizers import OptimizerConfig

MISSING = (
  'torch and transformers are not installed (tests/requirements-oracle.txt): GPT-2 is not timed'
)


def installed() -> bool:
  """Returns whether torch and transformers can be imported."""
  return all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))


def _gpt2(config: TransformerConfig, vocabulary: int, length: int):
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  return torch, transformers.GPT2LMHeadModel(
    transformers.GPT2Config(
      vocab_size=vocabulary,
      n_positions=length,
      n_embd=config.width,
      n_layer=config.num_layers,
      n_head=config.num_heads,
      n_inner=config.mlp_width,
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
      bos_token_id=0,
      eos_token_id=None,
    )
  )


def train_step(
  config: TransformerConfig, vocabulary: int, length: int, rows: int, optimizer: OptimizerConfig
) -> Callable[[], None]:
  """Returns a function that runs a train step on random tokens: loss, gradients, clipping, Adam."""
  torch, model = _gpt2(config, vocabulary, length)
  adam = torch.optim.Adam(model.parameters(), optimizer.learning_rate)
  ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (rows, length)))

  def step():
    adam.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
    adam.step()

  return step


def decoder(
  config: TransformerConfig, vocabulary: int, prefix: int, new: int, rows: int
) -> Callable[[], None]:
  """Returns a function that samples `new` tokens per row after `prefix` ones."""
  torch, model = _gpt2(config, vocabulary, prefix + new)
  model.eval()
  ids = torch.zeros((rows, prefix), dtype=torch.long)

  def decode():
    with torch.inference_mode():
      model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=True,
        top_k=0,
        pad_token_id=0,
      )

  return decode
