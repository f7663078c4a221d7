"""Prescribed and learned rates, and the outer optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastep import MetaParams, PerStep
from metastep._errors import InputError
from metastep._trees import scale
from metastep.rates import (
    OPTIMIZERS,
    Factored,
    FactoredRate,
    FixedRate,
    LearnedRate,
    default_meta_lr,
    make_optimizer,
)

PARAMS = {"body": jnp.ones((3, 2)), "head": {"bias": jnp.ones(2), "weight": jnp.ones((2, 2))}}


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


@pytest.mark.parametrize(
    "value",
    [0.1, {"body": 0.1, "head": 0.2}, PerStep({"body": np.ones(3), "head": np.zeros(3)})],
    ids=["scalar", "per layer", "per step"],
)
def test_a_fixed_rate_is_what_was_given(value):
    rate = FixedRate(value)
    rates, state = rate.init(PARAMS)
    assert rates is None  # nothing for the outer optimiser
    alpha = rate.alpha(MetaParams(PARAMS), state)
    assert jax.tree.structure(alpha) == jax.tree.structure(value)
    for found, expected in zip(*map(jax.tree.leaves, (alpha, value)), strict=True):
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, expected)
    assert rate.update(state, None, None, None) is state


def test_a_new_fixed_rate_does_not_retrace():
    traces = []

    @jax.jit
    def read(rate):
        traces.append(None)
        return rate.alpha(MetaParams(PARAMS), rate.init(PARAMS)[1])

    assert [float(read(FixedRate(value))) for value in (0.1, -0.2)] == [0.1, -0.2]
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (LearnedRate(0.3, "model"), ()),
        (LearnedRate(0.3, "layer"), {"body": (), "head": {"bias": (), "weight": ()}}),
        (LearnedRate(0.3, "parameter"), shapes(PARAMS)),
        (FactoredRate(0.3), Factored((), shapes(PARAMS))),
        (FactoredRate(0.3, may_fall=False), Factored((), shapes(PARAMS))),
    ],
    ids=["model", "layer", "parameter", "factored", "rising"],
)
def test_learned_rates_start_as_given_and_fit_the_parameters(rate, expected):
    rates, state = rate.init(PARAMS)
    if getattr(rate, "may_fall", True):
        assert state is None
    else:
        assert float(state) == pytest.approx(np.log(0.3), rel=1e-14)
    assert shapes(rates) == expected
    alpha = rate.alpha(MetaParams(PARAMS, rates), state)
    for leaf in jax.tree.leaves(alpha):
        np.testing.assert_allclose(leaf, 0.3, rtol=1e-14)
    stepped = scale(alpha, PARAMS)
    for leaf, like in zip(*map(jax.tree.leaves, (stepped, PARAMS)), strict=True):
        np.testing.assert_allclose(leaf, np.full(like.shape, 0.3), rtol=1e-14)


def only_head(params):
    return {"body": False, "head": jax.tree.map(lambda leaf: True, params["head"])}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (LearnedRate(0.3, "layer", only_head), {"body": None, "head": {"bias": (), "weight": ()}}),
        (LearnedRate(0.3, "parameter", only_head), shapes(PARAMS) | {"body": None}),
        (FactoredRate(0.3, adapts=only_head), Factored((), shapes(PARAMS) | {"body": None})),
    ],
    ids=["layer", "parameter", "factored"],
)
def test_arrays_that_do_not_adapt_have_no_rate_to_learn(rate, expected):
    rates, state = rate.init(PARAMS)
    assert shapes(rates) == expected
    meta, state = rate.scaled(MetaParams(PARAMS, rates), state, jnp.asarray(0.5))
    alpha = rate.alpha(meta, state)
    stepped = scale(alpha, PARAMS)
    np.testing.assert_array_equal(stepped["body"], np.zeros((3, 2)))
    for leaf, like in zip(
        *(jax.tree.leaves(tree["head"]) for tree in (stepped, PARAMS)), strict=True
    ):
        np.testing.assert_allclose(leaf, np.full(like.shape, 0.15), rtol=1e-14)


@pytest.mark.parametrize("adapts", [None, lambda params: only_head(params) | {"act": None}])
@pytest.mark.parametrize("make", [
    lambda adapts: LearnedRate(0.3, "layer", adapts),
    lambda adapts: LearnedRate(0.3, "parameter", adapts),
    lambda adapts: FactoredRate(0.3, adapts=adapts),
], ids=["layer", "parameter", "factored"])  # fmt: skip
def test_what_is_no_parameter_of_a_module_has_no_rate(make, adapts):
    params = PARAMS | {"act": None}  # where Equinox's MLP keeps its activation
    rate = make(adapts)
    rates, state = rate.init(params)
    alpha = rate.alpha(MetaParams(params, rates), state)
    assert jax.tree.structure(alpha) == jax.tree.structure(params)


def test_a_shared_rate_and_factors_move_and_scale_together():
    rate = FactoredRate(0.3)
    rates, state = rate.init(PARAMS)
    total = lambda rates: sum(  # noqa: E731
        jnp.sum(leaf**2) for leaf in jax.tree.leaves(rate.alpha(MetaParams(PARAMS, rates), None))
    )
    slope = jax.grad(total)(rates)  # d alpha^2 / d log alpha = 2 alpha^2
    own = jax.tree.leaves(slope.own)
    for leaf in own:
        np.testing.assert_allclose(leaf, 2 * 0.3**2, rtol=1e-13)
    np.testing.assert_allclose(slope.shared, sum(jnp.sum(leaf) for leaf in own), rtol=1e-13)
    moved = Factored(rates.shared + 0.5, jax.tree.map(lambda leaf: leaf - 0.2, rates.own))
    meta, _ = rate.scaled(MetaParams(PARAMS, moved), state, jnp.asarray(0.5))
    for leaf in jax.tree.leaves(rate.alpha(meta, None)):
        np.testing.assert_allclose(leaf, 0.3 * np.exp(0.3) / 2, rtol=1e-13)


@pytest.mark.parametrize(("factor", "move", "ends"), [
    (1.0, 0.4, 0.3 * np.exp(0.4)),  # it may rise
    (1.0, -0.4, 0.3),  # and not fall below its start
    (0.25, -0.4, 0.3 / 4),  # which the guard lowers with it
    (0.25, 0.4, 0.3 / 4 * np.exp(0.4)),
])  # fmt: skip
def test_a_shared_rate_that_may_not_fall_stays_above_its_start(factor, move, ends):
    rate = FactoredRate(0.3, may_fall=False)
    rates, state = rate.init(PARAMS)
    meta, state = rate.scaled(MetaParams(PARAMS, rates), state, jnp.asarray(factor))
    own = jax.tree.map(lambda leaf: leaf - 2.0, meta.rates.own)
    found = rate.projected(MetaParams(PARAMS, Factored(meta.rates.shared + move, own)), state)
    np.testing.assert_allclose(jnp.exp(found.rates.shared), ends, rtol=1e-13)
    for leaf in jax.tree.leaves(found.rates.own):  # factors go where they like
        np.testing.assert_allclose(leaf, -2.0, rtol=1e-13)
    jax.tree.map(np.testing.assert_array_equal, found.params, PARAMS)


def test_a_shared_rate_falls_where_it_may():
    rate = FactoredRate(0.3)
    rates, state = rate.init(PARAMS)
    fallen = MetaParams(PARAMS, Factored(rates.shared - 0.4, rates.own))
    assert rate.projected(fallen, state) is fallen


@pytest.mark.parametrize("per", ["model", "layer", "parameter"])
def test_learned_rates_stay_positive_and_are_differentiable(per):
    rate = LearnedRate(0.3, per)
    rates, _ = rate.init(PARAMS)
    far = jax.tree.map(lambda leaf: leaf - 5, rates)
    leaves = jax.tree.leaves(rate.alpha(MetaParams(PARAMS, far), None))
    np.testing.assert_allclose(jnp.concatenate([jnp.ravel(a) for a in leaves]), 0.3 * np.exp(-5))
    total = lambda rates: sum(  # noqa: E731
        jnp.sum(leaf) for leaf in jax.tree.leaves(rate.alpha(MetaParams(PARAMS, rates), None))
    )
    for slope in jax.tree.leaves(jax.grad(total)(rates)):  # d exp(u) / du = alpha
        np.testing.assert_allclose(slope, 0.3, rtol=1e-14)


def test_learned_rates_have_the_precision_of_their_parameters():
    params = jax.tree.map(lambda leaf: leaf.astype("float32"), PARAMS)
    for rate in (LearnedRate(0.3, "layer"), LearnedRate(0.3, "parameter"), FactoredRate(0.3)):
        rates, _ = rate.init(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(rates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("start", [0.0, -0.25, np.nan, np.inf])
@pytest.mark.parametrize("kind", [LearnedRate, FactoredRate])
def test_a_learned_rate_must_start_above_zero(kind, start):
    # It is kept as a logarithm: anything else would be NaN before the first step.
    with pytest.raises(InputError, match=f"^start is {start}; it must be a finite number above 0$"):
        kind(start)


def test_a_learned_rate_can_be_made_within_compiled_code():
    made = jax.jit(lambda start: LearnedRate(start).init(PARAMS)[0])(jnp.asarray(0.5))
    assert float(made) == pytest.approx(np.log(0.5))


def test_granularities_are_named():
    with pytest.raises(InputError, match="per is 'head'; choose one of: layer, model, parameter"):
        LearnedRate(0.1, "head")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_meta_rate_is_data(name):
    # The rate is in the state, so that reading or changing it compiles nothing.
    traces = []
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.25])
    optimizer = make_optimizer(name, 0.1)

    @jax.jit
    def step(state):
        traces.append(None)
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradient, state, params)[0]

    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(params)
    state = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)
    first = step(state)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1)
    rate = jnp.asarray(0.2, state.hyperparams["learning_rate"].dtype)
    doubled = step(state._replace(hyperparams=state.hyperparams | {"learning_rate": rate}))
    assert len(traces) == 1
    np.testing.assert_allclose(doubled, 2 * first, rtol=1e-6)
    assert (first * gradient < 0).all()  # downhill


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("sgd", [0.1, 0.1, 0.1]), ("momentum", [0.1, 0.19, 0.271]), ("adam", [1.0, 1.0, 1.0])],
)
def test_steps_under_a_constant_gradient(name, sizes):
    # SGD: rate * gradient; momentum 0.9 adds up 1, 1.9, 2.71; Adam divides by the gradient's size.
    gradient = jnp.array([0.1])
    optimizer = make_optimizer(name, 1.0)
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(jnp.zeros(1))
        for size in sizes:
            updates, state = optimizer.update(gradient, state, jnp.zeros(1))
            assert float(updates[0]) == pytest.approx(-size, rel=1e-4)


def test_relative_steps_are_shares_of_the_size_an_array_starts_with(rng):
    # Adam's first step is its rate in every entry: what is left of the update is the size it was multiplied by.
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4))),
        "offset": jnp.zeros(4),
        "scale": jnp.ones(4),
        "start": jnp.zeros((4, 2)),
    }
    meta = MetaParams(params, rates=jnp.asarray(-3.0))
    gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), meta)
    optimizer = make_optimizer("relative-adam", 0.2)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradient, optimizer.init(meta), meta)
    expected = {
        "kernel": float(jnp.sqrt(jnp.mean(params["kernel"] ** 2))),
        "offset": 0.1,
        "scale": 0.1,
    }
    for name, size in (expected | {"start": 0.1}).items():
        np.testing.assert_allclose(np.abs(updates.params[name]), 0.2 * size, rtol=1e-4)
    assert abs(float(updates.rates)) == pytest.approx(0.2 * 2 / 3, rel=1e-4)


def test_the_size_of_a_vector_is_how_far_it_has_been_from_where_it_began(rng):
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 4))),
        "gain": jnp.ones(4),
        "offset": jnp.asarray(0.0),
    }
    meta = MetaParams(params, rates={"gain": jnp.full(4, -3.0)})
    gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), meta)
    optimizer = make_optimizer("relative-adam", 0.2)

    @jax.jit
    def step(state, meta):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradient, state, meta)

    updates, state = step(optimizer.init(meta), meta)
    far = {
        "kernel": 10 * params["kernel"],
        "gain": params["gain"] + jnp.asarray([3.0, -3, 3, -3]),
        "offset": jnp.asarray(-20.0),
    }
    away = MetaParams(far, {"gain": jnp.full(4, 9.0)})
    found = {2: step(state, away)}
    state = found[2][1]
    for count in range(3, 401):
        found[count] = step(state, meta)  # back where it began: the farthest counts
        state = found[count][1]
    for count, whole in {2: 1, 3: 1, 100: 1, 121: 10 / 11, 225: 2 / 3, 400: 1 / 2}.items():
        taken = found[count][0]
        for name, factor in {
            "kernel": 1,
            "gain": whole * 3 / 0.1,
            "offset": whole * 20 / 0.1,
        }.items():
            np.testing.assert_allclose(taken.params[name] / updates.params[name], factor, rtol=1e-3)
        np.testing.assert_allclose(taken.rates["gain"], updates.rates["gain"], rtol=1e-3)


@pytest.mark.parametrize("wrapped", [True, False])
def test_where_no_rate_is_learned_matrices_follow_too(rng, wrapped):
    kernel = jnp.asarray(rng.normal(size=(3, 4)))
    params = {"kernel": kernel, "start": jnp.zeros((4, 2))}
    meta = MetaParams(params, rates=None) if wrapped else params
    gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), meta)
    size = float(jnp.sqrt(jnp.mean(kernel**2)))
    # So far from where they began, as the root of the mean square.
    away = {"kernel": kernel + 3 * size * jnp.sign(kernel), "start": jnp.full((4, 2), -0.5)}
    optimizer = make_optimizer("relative-adam", 0.2)

    @jax.jit
    def step(state, params):
        with jax.numpy_dtype_promotion("standard"):
            at = MetaParams(params, None) if wrapped else params
            updates, state = optimizer.update(gradient, state, at)
        return (updates.params if wrapped else updates), state

    first, state = step(optimizer.init(meta), params)
    found = {2: step(state, away)}
    for count in range(3, 1601):
        found[count] = step(found[count - 1][1], params)
    for count, whole in {2: 1, 100: 1, 400: 1 / 2}.items():
        for name, factor in {"kernel": 3 * whole, "start": 5 * whole}.items():
            ratio = found[count][0][name] / first[name]
            np.testing.assert_allclose(ratio, factor, rtol=1e-3)
    # Never less than what it was at the start.
    np.testing.assert_allclose(found[1600][0]["kernel"] / first["kernel"], 1, rtol=1e-3)


def test_a_vector_that_went_nowhere_keeps_the_size_of_all_vectors():
    optimizer = make_optimizer("relative-adam", 0.2)
    meta, gradient = {"offset": jnp.zeros(3)}, {"offset": jnp.asarray([1.0, -1, 1])}
    state = optimizer.init(meta)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(150):
            updates, state = optimizer.update(gradient, state, meta)
    np.testing.assert_allclose(jnp.abs(updates["offset"]), 0.2 * 0.1, rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_has_a_rate_to_begin_with_and_a_reason(name):
    value, reason = default_meta_lr(name)
    assert 0 < value <= 0.1
    assert len(reason) > 20
    assert isinstance(make_optimizer(name, value), optax.GradientTransformation)


def test_a_short_run_takes_larger_steps_of_relative_adam_alone():
    lengths = (16, 1_000, 160_000)
    rates = [default_meta_lr("relative-adam", length, 10_000)[0] for length in lengths]
    np.testing.assert_allclose(rates, [0.1 * (1000 / n) ** 0.25 for n in lengths], rtol=1e-12)
    assert default_meta_lr("relative-adam")[0] == pytest.approx(0.1)
    assert default_meta_lr("adam", 16) == default_meta_lr("adam", 160_000)
    with pytest.raises(InputError, match="iterations is 0"):
        default_meta_lr("relative-adam", 0)


def test_few_tasks_a_step_limit_the_steps_of_short_runs():
    def rate(iterations, tasks_per_step):
        return default_meta_lr("relative-adam", iterations, tasks_per_step)[0]

    # A limit for each number of tasks, which the length of the run meets at 97.7 meta-steps for the usual 25.
    for tasks in (1, 4, 16):
        np.testing.assert_allclose(rate(20, tasks), 0.08 * tasks**0.25, rtol=1e-12)
    assert rate(97, 25) == pytest.approx(0.08 * 5**0.5) == default_meta_lr("relative-adam", 97)[0]
    assert rate(98, 25) == rate(98, 400) < rate(97, 25) < rate(97, 400)
    assert rate(10_000, 4) == rate(10_000, 25)
    assert default_meta_lr("adam", 50, 1) == default_meta_lr("adam", 50, 100)
    with pytest.raises(InputError, match="tasks_per_step is 0"):
        rate(50, 0)


@pytest.mark.parametrize("function", [default_meta_lr, lambda name: make_optimizer(name, 0.1)])
def test_unknown_optimisers_are_refused(function):
    with pytest.raises(InputError) as caught:
        function("lion")
    expected = (
        "optimizer is 'lion'; choose one of: adam, adamw, hypergradient, momentum, normalised-adam, "
        "relative-adam, rmsprop, sgd"
    )
    assert str(caught.value) == expected
