"""Makes optimizers of frozen configs: one for all parameters, or one for each top-level group."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from audiolm_jax import checks
from audiolm_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """One chain: clip by the global norm of the group, scale by `name`'s rule, decay the weights,
  follow `schedule`.

  Steps count updates of the parameters (with gradient accumulation: not micro-batches). Raises
  ValueError for a value that is not legal, and for some that do not go together.
  """

  name: str = 'adam'  # adam | adamw | adafactor
  learning_rate: float = 1e-4  # the peak, reached after the warm-up
  # constant | cosine (to 0 at total_steps) | inverse_sqrt (from the end of the warm-up)
  schedule: str = 'constant'
  # linear from 0; step 0 has 1 / warmup_steps of the peak, so that no step is wasted
  warmup_steps: int = 0
  total_steps: int | None = None  # cosine only, the warm-up included
  b1: float = 0.9  # adam, adamw
  b2: float = 0.999  # adam, adamw
  weight_decay: float = 0.0  # adamw, adafactor: per unit of learning rate
  clip_norm: float | None = None  # of the gradients of the whole group

  def __post_init__(self):
    checks.fields(
      self,
      name=checks.one_of('adam', 'adamw', 'adafactor'),
      learning_rate=checks.NOT_NEGATIVE,
      schedule=checks.one_of('constant', 'cosine', 'inverse_sqrt'),
      warmup_steps=checks.whole(0),
      total_steps=checks.optional(checks.WHOLE),
      b1=checks.BELOW_ONE,
      b2=checks.BELOW_ONE,
      weight_decay=checks.NOT_NEGATIVE,
      clip_norm=checks.optional(checks.POSITIVE),
    )
    if self.schedule == 'cosine' and (
      self.total_steps is None or self.total_steps <= self.warmup_steps
    ):
      raise UserError(
        f'total_steps={self.total_steps} with warmup_steps={self.warmup_steps}: cosine needs a larger total_steps'
      )
    if self.name == 'adam' and self.weight_decay:
      raise UserError(f'weight_decay={self.weight_decay} with adam: use adamw')


Optimizer = OptimizerConfig | Mapping[str, OptimizerConfig] | optax.GradientTransformation


def learning_rate(config: OptimizerConfig) -> Callable[[ArrayLike], ArrayLike]:
  """Returns the learning rate as a function of the number of updates done so far."""
  warmup, peak = config.warmup_steps, config.learning_rate
  if config.schedule == 'constant':
    body = optax.constant_schedule(peak)
  elif config.schedule == 'cosine':
    body = optax.cosine_decay_schedule(peak, config.total_steps - warmup)
  else:
    start = max(warmup, 1)
    # join_schedules asks before 0 too
    body = lambda count: peak * jnp.sqrt(start / (start + jnp.maximum(count, 0)))
  if not warmup:
    return body
  rise = lambda count: peak * (count + 1) / warmup
  return optax.join_schedules([rise, body], [warmup])


def make(config: Optimizer, accumulate_steps: int = 1) -> optax.GradientTransformation:
  """Returns the optimizer of `config`; a mapping gives every top-level group of the parameters its
  own, a transformation is used as it is.

  `accumulate_steps` micro-batches are averaged into one update. The transformation's `init` and
  `update` raise ValueError when a mapping misses a group of the parameters or names one that they
  do not have.
  """
  checks.values(accumulate_steps=(accumulate_steps, checks.WHOLE))
  if isinstance(config, optax.GradientTransformation):
    transformation = config
  elif isinstance(config, Mapping):
    transformation = optax.partition(
      {group: _chain(one) for group, one in config.items()}, lambda params: _labels(config, params)
    )
  else:
    transformation = _chain(config)
  if accumulate_steps > 1:
    transformation = optax.MultiSteps(transformation, accumulate_steps).gradient_transformation()
  return transformation


def learning_rates(config: Optimizer, num_updates: ArrayLike) -> dict[str, ArrayLike]:
  """Returns the learning rates after `num_updates` updates: 'learning_rate', or
  'learning_rate/<group>' of each; {} for a transformation, which does not tell.
  """
  if isinstance(config, optax.GradientTransformation):
    return {}
  if not isinstance(config, Mapping):
    return {'learning_rate': learning_rate(config)(num_updates)}
  return {
    f'learning_rate/{group}': learning_rate(one)(num_updates) for group, one in config.items()
  }


def _labels(config: Mapping[str, OptimizerConfig], params) -> dict[str, str]:
  missing, invented = sorted(set(params) - set(config)), sorted(set(config) - set(params))
  if missing or invented:
    raise UserError(
      f'optimizer groups {sorted(config)} do not match the parameter groups {sorted(params)}: '
      f'missing {missing}, unknown {invented}'
    )
  return {group: group for group in params}  # a prefix of the tree is enough


def _chain(config: OptimizerConfig) -> optax.GradientTransformation:
  rate = learning_rate(config)
  if config.name == 'adam':
    rule = optax.adam(rate, config.b1, config.b2)
  elif config.name == 'adamw':
    rule = optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay)
  else:
    # optax decays by the plain rate: multiplied by the peak it means what it means for adamw.
    decay = config.weight_decay * config.learning_rate
    rule = optax.adafactor(rate, multiply_by_parameter_scale=False, weight_decay_rate=decay or None)
  if config.clip_norm is None:
    return rule
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def group_norms(tree) -> dict[str, jax.Array]:
  """Returns the global norm of every top-level group of a tree of parameters or gradients."""
  return {group: optax.tree.norm(subtree) for group, subtree in tree.items()}
