"""Every refusal names the argument, what was given and what to do; tracing skips the values only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep.theory import _inputs as inputs

GOOD = np.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inputs.check_features("phi", None), "phi is None; it must be an array"),
        (lambda: inputs.check_features("phi", {"x": 1}), "phi is not an array of real numbers"),
        (lambda: inputs.check_features("phi", 1j * GOOD), "phi has dtype complex128"),
        (lambda: inputs.check_features("phi", GOOD[0]), r"phi has shape \(3, 4\); it must have 3"),
        (lambda: inputs.check_features("phi", GOOD[:0]), "its axis 'tasks' must not be empty"),
        (lambda: inputs.check_features("phi", GOOD[:, :0]), "its axis 'shots' must not be empty"),
        (lambda: inputs.check_features("phi", GOOD[:, :, :0]), "its axis 'dim' must not be empty"),
        (lambda: inputs.check_features("phi", GOOD * np.nan), "phi holds 24 NaN or infinite"),
        (
            lambda: inputs.check_query_features("phi_query", GOOD[:1], jnp.ones((2, 3, 4))),
            "phi_query has shape .* its tasks and dim must be those of the support features, 2 and 4",
        ),
        (
            lambda: inputs.check_optima("optima", GOOD[0], jnp.ones((2, 3, 4))),
            r"optima has shape \(3, 4\); it must have shape \(2, 4\)",
        ),
        (lambda: inputs.check_scalar("alpha", [1.0]), "alpha has shape .* a single number"),
        (lambda: inputs.check_nonnegative("noise_var", -1.0), "noise_var is -1; it must not be"),
        (lambda: inputs.check_nonnegative("v", [1.0, -2.0]), "v is an array with the entry -2"),
        (lambda: inputs.check_positive_values("variance", 0.0), "variance is 0; it must be above"),
        (lambda: inputs.check_eigenvalues("eigenvalues", [0.0]), "eigenvalues are all 0"),
        (lambda: inputs.check_eigenvalues("eigenvalues", []), "at least one eigenvalue"),
        (
            lambda: inputs.check_symmetric("gram", np.ones((2, 3))),
            "gram .* must be a square matrix",
        ),
        (lambda: inputs.check_symmetric("gram", np.eye(2), 3), "gram .* must be a 3 x 3 matrix"),
        (
            lambda: inputs.check_symmetric("gram", [[1.0, 2.0], [0.0, 1.0]]),
            r"gram is not symmetric: .* up to 2; pass \(gram \+ gram.T\) / 2",
        ),
        (
            lambda: inputs.check_covariance("task_cov", [[1.0, 2.0], [2.0, 1.0]]),
            "task_cov has the negative eigenvalue -1",
        ),
        (lambda: inputs.check_weights("weights", [0.0, 0.0], 2), "weights are all 0"),
        (lambda: inputs.check_weights("weights", [1.0], 2), r"weights has shape \(1,\)"),
        (lambda: inputs.check_not_all_zero("phi", jnp.zeros(2)), "phi is zero everywhere"),
        (lambda: inputs.check_raw_moments("m", [1.0, 0.0], 6), "m holds 2 moments; E x.0"),
        (lambda: inputs.check_raw_moments("m", [2.0, 0, 1], 2), r"m\[0\] is 2; it is E x\^0"),
        (lambda: inputs.check_raw_moments("m", [1.0, 0, -1], 2), r"m\[2\] is negative"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_values_are_checked_where_known_and_shapes_always():
    assert jax.jit(lambda x: inputs.check_nonnegative("x", x))(-1.0) == -1
    with pytest.raises(InputError, match="3 axes"):
        jax.jit(lambda x: inputs.check_features("phi", x))(jnp.ones((2, 2)))


def test_types_are_widened_never_narrowed():
    assert inputs.as_float_array("x", [1, 2]).dtype == jnp.float64
    assert inputs.as_float_array("x", np.float32(1)).dtype == jnp.float32
    assert inputs.as_float_array("x", jnp.ones(1, jnp.bfloat16)).dtype == jnp.float32
    wide, narrow, none = inputs.to_common_dtype(jnp.ones(2), jnp.ones(2, jnp.float32), None)
    assert wide.dtype == narrow.dtype == jnp.float64
    assert none is None
    vector, scalar = inputs.to_common_dtype(jnp.ones(2, jnp.float32), jnp.asarray(1.0))
    assert vector.dtype == scalar.dtype == jnp.float32  # a number does not widen an array


def test_moments_may_start_at_zero_or_one():
    from_one = inputs.check_raw_moments("m", [0.0, 1.0, 0.0, 3.0, 0.0, 15.0], 6)
    from_zero = inputs.check_raw_moments("m", [1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 7.0], 6)
    np.testing.assert_array_equal(from_one, from_zero)
