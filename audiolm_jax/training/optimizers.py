"""Makes optimizers from frozen configs: one for all parameters, or one per top-level group."""

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
  """Configures one optimizer: gradient clipping, update rule, weight decay and schedule.

  Steps are updates of the parameters, not micro-batches.

  Fields:
    name: 'adam', 'adamw' or 'adafactor'.
    learning_rate: peak, reached after the warm-up.
    schedule: 'constant', 'cosine' (to 0 at total_steps) or 'inverse_sqrt' (from the end of the
      warm-up).
    warmup_steps: steps of a linear rise from peak / warmup_steps at step 0, which is not 0 so that
      the first step is not wasted.
    total_steps: end of the cosine, counted from step 0; for 'cosine' only.
    b1: decay of the first moment (adam, adamw).
    b2: decay of the second moment (adam, adamw).
    weight_decay: weight decay per unit of learning rate (adamw, adafactor).
    clip_norm: largest global norm of the gradients of the group; None: no clipping.

  Raises:
    UserError: if a value is out of range, or values contradict one another.
  """

  name: str = 'adam'
  learning_rate: float = 1e-4
  schedule: str = 'constant'
  warmup_steps: int = 0
  total_steps: int | None = None
  b1: float = 0.9
  b2: float = 0.999
  weight_decay: float = 0.0
  clip_norm: float | None = None

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
        f'total_steps={self.total_steps} with warmup_steps={self.warmup_steps}: cosine needs a '
        'larger total_steps'
      )
    if self.name == 'adam' and self.weight_decay:
      raise UserError(f'weight_decay={self.weight_decay} with adam: use adamw')


Optimizer = OptimizerConfig | Mapping[str, OptimizerConfig] | optax.GradientTransformation


def learning_rate(config: OptimizerConfig) -> Callable[[ArrayLike], ArrayLike]:
  """Returns the learning rate as a function of the number of updates done.

  Args:
    config: schedule and peak.
  """
  warmup, peak = config.warmup_steps, config.learning_rate
  if config.schedule == 'constant':
    body = optax.constant_schedule(peak)
  elif config.schedule == 'cosine':
    body = optax.cosine_decay_schedule(peak, config.total_steps - warmup)
  else:
    start = max(warmup, 1)
    # join_schedules also evaluates negative counts.
    body = lambda count: peak * jnp.sqrt(start / (start + jnp.maximum(count, 0)))
  if not warmup:
    return body
  rise = lambda count: peak * (count + 1) / warmup
  return optax.join_schedules([rise, body], [warmup])


def make(config: Optimizer, accumulate_steps: int = 1) -> optax.GradientTransformation:
  """Returns the optimizer that a config defines.

  Args:
    config: config of one optimizer, configs by top-level group of the parameters, or a
      transformation to use as it is.
    accumulate_steps: number of micro-batches whose gradients are averaged into one update.

  Returns:
    Transformation. Its `init` and `update` raise UserError if the groups of a mapping differ from
    those of the parameters.
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
  """Returns the learning rates after `num_updates` updates, by name for the log.

  The name is 'learning_rate', or 'learning_rate/<group>' with a mapping. A transformation does not
  state its rate, so the result is {}.

  Args:
    config: config, mapping of groups to configs, or optax transformation.
    num_updates: number of updates done.
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
  return {group: group for group in params}  # optax accepts a prefix of the tree


def _chain(config: OptimizerConfig) -> optax.GradientTransformation:
  rate = learning_rate(config)
  if config.name == 'adam':
    rule = optax.adam(rate, config.b1, config.b2)
  elif config.name == 'adamw':
    rule = optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay)
  else:
    # optax does not multiply adafactor's decay by the learning rate. With this factor the field
    # means the same as for adamw.
    decay = config.weight_decay * config.learning_rate
    rule = optax.adafactor(rate, multiply_by_parameter_scale=False, weight_decay_rate=decay or None)
  if config.clip_norm is None:
    return rule
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def group_norms(tree) -> dict[str, jax.Array]:
  """Returns the global norm of each top-level group of a tree of parameters or gradients.

  Args:
    tree: mapping of groups to trees of arrays.
  """
  return {group: optax.tree.norm(subtree) for group, subtree in tree.items()}
