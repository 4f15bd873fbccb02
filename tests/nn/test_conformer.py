import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiolm_jax.nn import conformer

STACK = dict(num_heads=2, mlp_width=32, kernel_size=5)


@pytest.fixture(scope='module')
def stack():
  """A stack of 3 blocks of width 16, its parameters, and an input of two examples of 12 frames."""
  x_BLD = jax.random.normal(jax.random.key(1), (2, 12, 16))
  boxed = jax.jit(conformer.Conformer(num_layers=3, **STACK).init)(jax.random.key(0), x_BLD)[
    'params'
  ]
  return boxed, nn.meta.unbox(boxed), x_BLD


def test_scores_of_rotated_vectors_depend_on_distance_alone():
  query, key = jax.random.normal(jax.random.key(0), (2, 8))
  turned = conformer.rotate(jnp.broadcast_to(jnp.stack([query, key])[:, None, None], (2, 20, 1, 8)))
  scores = np.asarray(turned[0, :, 0] @ turned[1, :, 0].T)
  for distance in (-3, 0, 7):
    diagonal = np.diagonal(scores, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
  assert abs(scores[0, 7] - scores[0, 0]) > 1e-2
  np.testing.assert_allclose(scores[0, 0], query @ key, rtol=1e-5)


def apply(model, params, x_BLD, mask_BL=None, **options):
  """Applies a model in one compiled program: a program for each operation takes longer to compile."""
  function = jax.jit(lambda params, *inputs: model.apply({'params': params}, *inputs, **options))
  return function(params, x_BLD, mask_BL)


def test_odd_head_width_is_refused():
  with pytest.raises(ValueError, match='even'):
    conformer.rotate(jnp.zeros((1, 2, 1, 3)))


def test_scan_equals_a_loop_over_the_blocks(stack):
  _, params, x_BLD = stack
  out, hidden_NBLD = apply(conformer.Conformer(num_layers=3, **STACK), params, x_BLD)
  assert hidden_NBLD.shape == (3, 2, 12, 16)
  for layer in range(3):
    block = jax.tree.map(lambda p: p[layer], params['layers'])
    x_BLD, _ = apply(conformer.ConformerBlock(**STACK), block, x_BLD)
    np.testing.assert_allclose(hidden_NBLD[layer], x_BLD, atol=1e-5)
  np.testing.assert_array_equal(out, hidden_NBLD[-1])


def test_the_leading_slice_of_the_parameters_is_a_shorter_stack(stack):
  _, params, x_BLD = stack
  _, hidden_NBLD = apply(conformer.Conformer(num_layers=3, **STACK), params, x_BLD)
  leading = jax.tree.map(lambda p: p[:2], params)
  short, _ = apply(conformer.Conformer(num_layers=2, **STACK), leading, x_BLD)
  np.testing.assert_allclose(short, hidden_NBLD[1], atol=1e-5)


def test_depthwise_convolution_is_numpys():
  rng = np.random.default_rng(0)
  x_BLD, kernel_ND = (
    rng.normal(size=(2, 12, 3)).astype(np.float32),
    rng.normal(size=(5, 3)).astype(np.float32),
  )
  got = conformer.convolve_depthwise(jnp.asarray(x_BLD), jnp.asarray(kernel_ND))
  for example in range(2):
    for d in range(3):
      expected_L = np.convolve(x_BLD[example, :, d], kernel_ND[::-1, d], mode='same')
      np.testing.assert_allclose(got[example, :, d], expected_L, atol=1e-5)
  with pytest.raises(ValueError, match='odd'):
    conformer.convolve_depthwise(jnp.asarray(x_BLD), jnp.asarray(kernel_ND[:4]))


def test_padding_influences_nothing(stack):
  _, params, x_BLD = stack
  model = conformer.Conformer(num_layers=3, **STACK)
  short, _ = apply(model, params, x_BLD[:, :8])
  mask_BL = jnp.broadcast_to(jnp.arange(12) < 8, (2, 12))
  padded, _ = apply(model, params, x_BLD, mask_BL)
  np.testing.assert_allclose(padded[:, :8], short, atol=1e-5)


def test_every_parameter_has_axis_names_and_layers_come_first(stack):
  boxed, params, _ = stack
  boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
  assert len(boxes) == len(jax.tree.leaves(params))
  for box in boxes:
    assert isinstance(box, nn.Partitioned)
    assert box.names[0] == 'layers' and len(box.names) == box.value.ndim


def test_remat_changes_no_gradient_and_dropout_needs_its_key(stack):
  _, params, x_BLD = stack

  def gradient(remat):
    model = conformer.Conformer(num_layers=3, remat=remat, **STACK)
    weights = jnp.arange(16.0)  # the sum of a layer norm alone has no gradient
    return jax.jit(
      jax.grad(lambda p: jnp.mean(jnp.square(model.apply({'params': p}, x_BLD)[0] @ weights)))
    )(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    gradient(False),
    gradient(True),
  )
  model = conformer.Conformer(num_layers=3, dropout=0.5, **STACK)
  still = [apply(model, params, x_BLD)[0] for _ in range(2)]
  noisy = apply(model, params, x_BLD, rngs={'dropout': jax.random.key(3)})[0]
  np.testing.assert_array_equal(*still)
  assert np.abs(noisy - still[0]).mean() > 0.05
