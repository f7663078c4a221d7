"""Fallah's constants against problems that have them in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from metastep import Batch, Episode, theory
from metastep._errors import InputError
from metastep.models import Objective
from metastep.rates import estimate_smoothness, fallah_step
from metastep.tasks import AbstractTaskFamily

DIM = 3
SPREAD, NOISE, SHARPNESS_NOISE, THIRD = 1.5, 0.8, 0.4, 0.7
BASE = np.array([1.0, 2.0, 4.0])


class Cubics(AbstractTaskFamily):
    """f(w; z) = (1/2) s_z (w' B w) - z'w + (THIRD/6) w_1^3, with s_z = 1 + noise, z = centre + noise.

    H(w; z) = s_z B + THIRD w_1 e_1 e_1', so that at w = 0: L is the norm of B times the mean of s over the task's
    examples, rho = THIRD (along e_1), the gradient on an example is -z, and sigma_H = SHARPNESS_NOISE ||B||.
    """

    spread: Array = eqx.field(default=SPREAD, converter=jnp.asarray)
    kind = "regression"
    input_shape = (DIM,)
    output_size = 1

    def sample(self, key):
        centre_key, *keys = jax.random.split(key, 3)
        centre = self.spread * jax.random.normal(centre_key, (DIM,))
        return Episode(*(self.batch(k, centre, n) for k, n in zip(keys, (5, 8), strict=True)))

    def batch(self, key, centre, count):
        linear_key, sharp_key = jax.random.split(key)
        linear = centre + NOISE * jax.random.normal(linear_key, (count, DIM))
        return Batch(linear, 1 + SHARPNESS_NOISE * jax.random.normal(sharp_key, (count, 1)))


def cubic(w, batch):
    square = jnp.asarray(BASE, w.dtype) @ w**2 / 2
    return jnp.mean(batch.y) * square - jnp.mean(batch.x, axis=0) @ w + THIRD / 6 * w[0] ** 3


class Direct(Objective):
    """An objective that is a function of parameters and batch, without outputs between."""

    def __call__(self, params, batch):
        return cubic(params, batch)


OBJECTIVE = Direct(lambda w, x: x, lambda outputs, y: jnp.zeros(()))


def estimate(num_tasks=16, spread=SPREAD, w=None, **options):
    w = jnp.zeros(DIM) if w is None else w
    family, key = Cubics(spread), jax.random.key(0)
    return estimate_smoothness(OBJECTIVE, w, family, key, num_tasks=num_tasks, **options)


def test_constants_with_a_closed_form_are_found():
    # 3,000 tasks: relative standard errors of sigma and sigma~ about 1.1 % (9,000 squares each), of sigma_H
    # 1.3 % over 12,000 dependent squares; 5 % is more than 3 of them.
    found = estimate(3000)
    assert found.sigma == pytest.approx(SPREAD * np.sqrt(DIM), rel=0.05)
    assert found.sigma_tilde == pytest.approx(NOISE * np.sqrt(DIM), rel=0.05)
    assert found.sigma_hessian == pytest.approx(SHARPNESS_NOISE * BASE.max(), rel=0.05)
    # The Hessian changes along e_1 alone: no direction sees more than THIRD, and some of 9,000 nearly all.
    assert 0.98 * THIRD < found.hessian_lipschitz <= THIRD * (1 + 1e-6)
    # The largest of 3,000 means over 13 examples lies 3 to 5 standard deviations above 1.
    deviation = SHARPNESS_NOISE / np.sqrt(13)
    assert 1 + 3 * deviation < found.smoothness / BASE.max() < 1 + 5 * deviation
    assert found.num_tasks == 3000 == len(found.gradient_norms)
    expected = np.sqrt(DIM * (SPREAD**2 + NOISE**2 / 13))
    assert np.sqrt(np.mean(np.square(found.gradient_norms))) == pytest.approx(expected, rel=0.05)
    assert found.warnings == []


def test_the_spread_of_tasks_is_apart_from_the_noise_of_examples():
    # Tasks all alike: what their gradients differ by is sigma~^2 / (D_in + D_o), and is taken off.
    found = estimate(3000, spread=0.0)
    assert found.sigma_tilde == pytest.approx(NOISE * np.sqrt(DIM), rel=0.05)
    assert found.sigma**2 < 0.1 * found.sigma_tilde**2 / 13


def test_side_by_side_and_distance_make_no_difference_to_a_cubic():
    one, other = estimate(), estimate(tasks_at_once=7)
    assert one.smoothness == pytest.approx(other.smoothness, rel=1e-9)
    assert one.sigma == pytest.approx(other.sigma, rel=1e-9)
    near, far = (estimate(w=jnp.ones(DIM), distance=d) for d in (1e-3, 1.0))
    assert near.hessian_lipschitz == pytest.approx(far.hessian_lipschitz, rel=1e-6)


def test_the_step_is_that_of_the_theory():
    constants = estimate()
    for algorithm, limit in (("maml", 6), ("fomaml", 10), ("hfmaml", 6)):
        alpha = 0.9 / (limit * constants.smoothness)
        step = fallah_step(constants, alpha, algorithm)
        options = {
            "alpha": alpha,
            "smoothness": constants.smoothness,
            "hessian_lipschitz": constants.hessian_lipschitz,
        }
        norms = np.array(constants.gradient_norms)
        assert step.beta == pytest.approx(float(theory.meta_step_size(algorithm, norms, **options)))
        assert step.local_smoothness == pytest.approx(
            float(theory.meta_smoothness(norms, **options))
        )
        assert step.covered
        assert step.alpha == alpha
        too_large = fallah_step(constants, 3 * alpha, algorithm)
        assert not too_large.covered
        assert too_large.alpha == pytest.approx(alpha / 0.9)
        assert too_large.reason == (
            f"the theorem covers alpha up to {alpha / 0.9:.3g}, not {3 * alpha:.3g}; beta is that of the largest "
            f"it covers"
        )


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(
        InputError, match=r"num_tasks is 1; it must be a whole number of at least 2"
    ):
        estimate(1)
    with pytest.raises(InputError, match=r"distance is 0; it must be a finite number above 0"):
        estimate(distance=0)
    with pytest.raises(InputError) as caught:
        estimate(w=jnp.full(DIM, jnp.nan))
    assert str(caught.value) == (
        "the derivatives of the loss are not finite at these parameters; check the data for huge values"
    )
    with pytest.raises(InputError, match="algorithm is 'sgd'; choose one of: fomaml, hfmaml, maml"):
        fallah_step(estimate(), 0.1, "sgd")
    with pytest.raises(InputError, match="alpha"):
        fallah_step(estimate(), -0.1)
