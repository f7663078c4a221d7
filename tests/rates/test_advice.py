"""The advice as users get it: right where the truth is known, cautious where the estimate fails."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch, Episode
from metastep._errors import InputError
from metastep.adapt import GradientAdapter
from metastep.models import Objective, linear, mlp
from metastep.rates import RateAdvice, advise_rates, learned_start, no_higher_than_tried
from metastep.rates.alpha_curve import AlphaCurve
from metastep.tasks import AbstractTaskFamily, MixedLinear, Sinusoid

CENTRE, SPREAD, NOISE, SHOTS = np.array([1.0, -0.5, 0.0, 2.0]), 0.8, 0.5, 6
MODEL = linear((4,), 1)
OBJECTIVE = Objective.of(MODEL.apply, "regression")


def query_loss_of(objective, adapter):
    def query_loss(params, episode, alpha):
        gradient = jax.value_and_grad(objective.on(episode.support))
        return objective(adapter(gradient, params, alpha)[0], episode.query)

    return query_loss


FAMILY = MixedLinear(CENTRE, shots=SHOTS, queries=10, spread=SPREAD, noise=NOISE)
CURVE = ("alpha", "measured", "predicted")
QUERY_LOSS = query_loss_of(OBJECTIVE, GradientAdapter(1))


def advise(family, query_loss=QUERY_LOSS, params=None, seed=0, **options):
    params = MODEL.init(jax.random.key(0)) if params is None else params
    return advise_rates(OBJECTIVE, params, family, jax.random.key(seed), query_loss, **options)


@functools.cache
def advice_on_linear_tasks():
    return advise(FAMILY, num_tasks=4000)


def closed_form():
    """Slope, curvature and loss of the expected quadratic at w = 0, x ~ N(0, I), from E G^2 = K(K+d+1) I."""
    dim, signal = len(CENTRE), CENTRE @ CENTRE + SPREAD**2
    slope = 4 * signal
    curvature = 8 / SHOTS * ((SHOTS + dim + 1) * signal + dim * NOISE**2)
    return slope, curvature, signal + NOISE**2


def test_alpha_is_the_minimum_of_the_true_quadratic():
    # The 95 % interval doubled: a false alarm for fewer than one seed in 10,000.
    advice = advice_on_linear_tasks()
    slope, curvature, loss = closed_form()
    low, high = advice.alpha_interval
    assert low < advice.alpha < high
    assert abs(advice.alpha - slope / curvature) < high - low
    assert high - low < 0.1 * advice.alpha  # the test can tell
    assert advice.predicted_gain == pytest.approx(slope**2 / (2 * curvature * loss), rel=0.05)
    assert advice.num_tasks == 4000


def test_the_label_free_rate_is_h6_for_gaussian_inputs():
    # k1 s2 / (2 [(k1 + 1) s3 + s1 s2]) with s_j = tr I = d; from the first 32 tasks only.
    advice = advice_on_linear_tasks()
    dim = len(CENTRE)
    expected = SHOTS * dim / (2 * ((SHOTS + 1) * dim + dim**2))
    low, high = advice.label_free_interval
    assert low < advice.label_free_alpha < high
    assert abs(advice.label_free_alpha - expected) < high - low
    # p2^2 / (p1 p3) with E G = K I, E G^2 = K (K + d + 1) I.
    assert advice.label_free_gain == pytest.approx(SHOTS / (SHOTS + dim + 1), rel=0.15)


def test_the_support_rate_is_the_least_of_the_support_loss_itself():
    # w = 0, gradient (2/K) (G c + Phi' noise): moments of the Wishart matrix G, E G^3 among them.
    advice = advice_on_linear_tasks()
    dim, signal = len(CENTRE), CENTRE @ CENTRE + SPREAD**2
    second = SHOTS * (SHOTS + dim + 1)
    third = SHOTS * (SHOTS**2 + dim**2 + 3 * SHOTS * dim + 3 * SHOTS + 3 * dim + 4)
    slope = 4 / SHOTS**2 * (second * signal + NOISE**2 * SHOTS * dim)
    curvature = 8 / SHOTS**3 * (third * signal + NOISE**2 * second * dim)
    low, high = advice.support_interval
    assert low < advice.support_alpha < high
    assert abs(advice.support_alpha - slope / curvature) < high - low
    assert high - low < 0.1 * advice.support_alpha  # the test can tell


def measured(alpha_chosen: float, support_alpha: float, losses=(1.0, 0.5, 1.5, 4.0)) -> RateAdvice:
    """Advice that tried the rates 0, 1, 2 and 4."""
    rates = [0.0, 1.0, 2.0, 4.0]
    curve = AlphaCurve(rates, list(losses), [0.0] * 4, [0.0] * 4, [0.0] * 4)
    return dataclasses.replace(
        advice_on_linear_tasks(), alpha_chosen=alpha_chosen, alpha_reason="measured",
        support_alpha=support_alpha, curve=curve,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("support", "losses", "start"),
    [
        (0.5, (1.0, 0.5, 1.5, 4.0), 1.0),  # smaller: what was measured stays
        (2.0, (1.0, 0.5, 1.5, 4.0), 2.0),  # larger, and dearer before training than no step
        (3.0, (1.0, 0.5, 1.5, 4.0), 1.0),  # more than twice as dear: 2.75
        (9.0, (1.0, 0.5, 1.5, 1.9), 4.0),  # no further than what was tried
        (2.0, (1.0, 0.5, math.inf, math.inf), 1.0),
        (2.0, (1.0, 0.5, math.nan, math.nan), 1.0),
        (2.0, (-1.0, -1.5, -0.5, 9.0), 2.0),  # losses may be negative
        (2.0, (-1.0, -1.5, 0.5, 9.0), 1.0),
    ],
)
def test_a_learned_rate_starts_at_the_larger_of_the_two_unless_that_ruins_the_model(
    support, losses, start
):
    found, reason = learned_start(measured(1.0, support, losses))
    assert found == pytest.approx(start)
    assert reason.startswith("measured" if start == 1 else "the best rate for the support set")


@pytest.mark.parametrize(
    ("chosen", "support", "losses", "start"),
    [
        (2.0, 4.0, (1.0, 0.5, 1.5, 1.6), 1.0),  # the best of 0, 1, 2 and 4 after all steps
        (2.0, 4.0, (1.0, 2.0, 1.5, 1.4), 4.0),
        (1.0, 0.5, (1.0, 0.9, 0.5, 4.0), 1.0),  # lower already
        (2.0, 4.0, (1.0, 1.1, math.inf, math.nan), 1.0),  # never 0
    ],
)
def test_a_rate_that_stays_starts_no_higher_than_the_best_of_those_tried(
    chosen, support, losses, start
):
    advice = measured(chosen, support, losses)
    found, reason = no_higher_than_tried(advice, *learned_start(advice))
    assert found == pytest.approx(start)
    assert reason.startswith("of the rates tried") == (start < chosen)


def test_without_trouble_the_estimate_is_chosen():
    advice = advice_on_linear_tasks()
    assert advice.alpha_chosen == advice.alpha
    assert advice.warnings == []
    assert advice.alpha_reason == (
        "the label-aware rate minimises the quadratic approximation of the query loss along the inner "
        "gradient, averaged over tasks"
    )


def test_the_curve_is_the_quadratic_for_a_linear_model():
    # With squared error and a linear model nothing is approximated, so the two agree at every rate.
    curve = advice_on_linear_tasks().curve
    assert curve.alpha[0] == 0
    assert curve.ci95[0] == 0  # of the change against alpha = 0
    assert curve.alpha == sorted(curve.alpha)
    np.testing.assert_allclose(curve.measured, curve.predicted, rtol=1e-9)


def test_what_is_measured_is_least_near_alpha():
    advice = advice_on_linear_tasks()
    low, high = advice.alpha_interval
    measured, ci95 = np.array(advice.curve.measured), np.array(advice.curve.ci95)
    at = advice.curve.alpha.index(advice.alpha)
    assert measured[at] < measured[0] - ci95[at]
    assert measured[at] <= measured.min() + ci95[at]
    far = [i for i, alpha in enumerate(advice.curve.alpha) if alpha < low / 2 or alpha > 2 * high]
    assert measured[at] < measured[far].min()


def test_a_network_is_advised_a_rate_that_helps():
    model = mlp((1,), 1, hidden=(10,))
    objective, family = Objective.of(model.apply, "regression"), Sinusoid(shots=10, queries=10)
    advice = advise_rates(
        objective,
        model.init(jax.random.key(0)),
        family,
        jax.random.key(0),
        query_loss_of(objective, GradientAdapter(1)),
        num_tasks=32,
    )
    curve = {alpha: (m, p) for alpha, m, p in zip(*map(vars(advice.curve).get, CURVE), strict=True)}
    assert curve[advice.alpha_chosen][0] < 0.95 * curve[0][0]
    # Where the step is small, the quadratic is the truth: its slope has no approximation in it.
    (start, same), (measured, predicted) = list(curve.values())[:2]
    assert start == pytest.approx(same, rel=1e-10)
    assert measured - start == pytest.approx(predicted - start, rel=0.05)


def test_tasks_side_by_side_make_no_difference():
    all_at_once, one_by_one = (advise(Contrary(), num_tasks=2, tasks_at_once=n) for n in (None, 1))
    for name in ("alpha", "label_free_alpha", "alpha_chosen"):
        assert getattr(one_by_one, name) == pytest.approx(getattr(all_at_once, name), rel=1e-10)
    np.testing.assert_allclose(one_by_one.curve.measured, all_at_once.curve.measured, rtol=1e-10)
    assert advise(Contrary(), num_tasks=2, seed=1).alpha != all_at_once.alpha  # other tasks


def test_anil_is_advised_for_its_head():
    # With the body fixed and the head linear in its features, the measured curve is the quadratic again.
    model = mlp((1,), 1, hidden=(6,))
    objective, adapter = Objective.of(model.apply, "regression"), GradientAdapter(1, model.is_head)
    advice = advise_rates(
        objective,
        model.init(jax.random.key(1)),
        Sinusoid(shots=5, queries=5),
        jax.random.key(0),
        query_loss_of(objective, adapter),
        num_tasks=8,
        restrict=adapter.restrict,
    )
    np.testing.assert_allclose(advice.curve.measured, advice.curve.predicted, rtol=1e-9)


class Contrary(AbstractTaskFamily):
    """Tasks whose query labels are those of the support set with the sign turned round."""

    kind = "regression"
    input_shape = (4,)
    output_size = 1

    def sample(self, key):
        x = jax.random.normal(key, (16, 4))
        y = jnp.sum(x, axis=1, keepdims=True)
        return Episode(Batch(x[:8], y[:8]), Batch(x[8:], -y[8:]))


def test_when_support_and_query_disagree_the_label_free_rate_is_used():
    # A query loss that goes down all the same keeps the second safeguard out of the picture.
    advice = advise(Contrary(), lambda params, episode, alpha: -alpha, num_tasks=2)
    assert advice.alpha < 0
    assert advice.alpha_interval[1] < 0
    assert advice.predicted_gain == 0
    assert advice.label_free_alpha > 0
    assert advice.alpha_chosen == advice.label_free_alpha
    assert advice.alpha_reason == (
        "the gradients of support and query disagree at the starting parameters, so the label-aware rate "
        "is not positive; the label-free rate (H.6) is used"
    )
    assert advice.warnings == ["one inner step does not help yet at the starting parameters"]


def test_when_every_rate_makes_things_worse_the_least_harm_is_chosen():
    advice = advise(Contrary(), num_tasks=128)
    tried, measured = np.array(advice.curve.alpha[1:]), np.array(advice.curve.measured)
    assert (measured[1:] > measured[0]).all()
    assert advice.alpha_chosen == tried[0] == tried.min()
    assert len(advice.warnings) == 2
    assert advice.warnings[1] == (
        f"adapting at {advice.label_free_alpha:.3g} makes 100% of tasks worse, with a query loss of "
        f"{measured[advice.curve.alpha.index(advice.label_free_alpha)]:.4g} instead of {measured[0]:.4g}; "
        f"the best of the rates tried is {tried[0]:.3g}"
    )


@pytest.mark.parametrize("beyond", [np.nan, 100.0])
def test_a_rate_that_fails_the_check_gives_way_to_the_best_one_tried(beyond):
    # The loss falls until 0.1 and is lost beyond; the quadratic, which does not know, asks for 0.3.
    advice = advise(
        FAMILY, lambda p, e, alpha: jnp.where(alpha > 0.1, beyond, 1 - alpha), num_tasks=16
    )
    assert advice.alpha > 0.2
    assert advice.alpha_chosen == max(alpha for alpha in advice.curve.alpha if alpha <= 0.1)
    assert advice.alpha_reason.endswith(
        "; trying it out showed the quadratic to be too optimistic, so the best rate tried is used"
    )
    assert len(advice.warnings) == 1
    assert "makes 100% of tasks worse" in advice.warnings[0]
    assert advice.curve.worse == [float(alpha > 0.1) for alpha in advice.curve.alpha]


@pytest.mark.parametrize(("share", "is_used"), [(1.0, False), (0.9, False), (0.3, True)])
def test_a_rate_that_makes_most_tasks_worse_is_not_used_however_much_their_losses_scatter(
    share, is_used
):
    # Losses of diverged tasks are over many orders of magnitude: the interval of their mean begins below zero.
    def query_loss(params, episode, alpha):
        luck = jax.scipy.stats.norm.cdf(episode.query.x[0, 0])
        strayed = jnp.where((alpha > 0.1) & (luck < share), 1.0, 0.0)
        return 1 - alpha + strayed * jnp.exp(60 * (share - luck))

    advice = advise(FAMILY, query_loss, num_tasks=128)
    at = advice.curve.alpha.index(advice.alpha)
    assert advice.curve.measured[at] - advice.curve.ci95[at] < 1 < advice.curve.measured[at] / 1e3
    assert (advice.alpha_chosen == advice.alpha) == is_used
    assert bool(advice.warnings) != is_used


def test_where_labels_are_wide_the_rate_is_that_of_grown_outputs():
    model = mlp((4,), 1, hidden=(10,))
    objective, params = Objective.of(model.apply, "regression"), model.init(jax.random.key(0))
    family = MixedLinear(50 * CENTRE, shots=SHOTS, queries=10, spread=SPREAD, noise=NOISE)
    given = (
        objective,
        params,
        family,
        jax.random.key(1),
        query_loss_of(objective, GradientAdapter(1)),
    )
    narrow, wide = (advise_rates(*given, num_tasks=32, label_width=w) for w in (None, 110.0))
    assert narrow.grown is None
    assert narrow.alpha == wide.alpha
    assert wide.grown is not None
    assert wide.alpha_chosen == wide.grown.alpha < 0.1 * narrow.alpha_chosen
    assert wide.alpha_reason.startswith(
        "the label-aware rate where outputs are as wide as the labels, 110"
    )
    # Nor does a learned rate start at what would be right before outputs have grown.
    assert learned_start(wide)[0] == wide.alpha_chosen
    # A lower rate than what was measured and tried is never given up for a higher one.
    narrower = advise_rates(*given, num_tasks=32, label_width=1e-6)
    assert narrower.alpha_chosen == min(narrow.alpha_chosen, narrower.grown.alpha)


class Uncertain(Contrary):
    """The query labels agree with the support set in three tasks of four, and oppose it in the fourth."""

    def sample(self, key):
        episode = super().sample(key)
        sign = jnp.where(jax.random.bernoulli(key, 0.75), -1.0, 1.0)
        return Episode(episode.support, Batch(episode.query.x, sign * episode.query.y))


def test_an_interval_with_zero_in_it_is_pointed_out():
    # Of four such tasks one opposes: resampling draws two or more of it a quarter of the time.
    for seed in range(10):
        advice = advise(Uncertain(), lambda p, e, alpha: -alpha, num_tasks=4, seed=seed)
        if advice.alpha > 0 >= advice.alpha_interval[0]:
            break
    assert advice.warnings == ["the interval of the label-aware rate includes 0: sample more tasks"]


class Strays(MixedLinear):
    """One task in sixty comes in units of its own: inputs a hundred times as large."""

    def sample(self, key):
        episode = super().sample(key)
        stray = jax.random.uniform(jax.random.fold_in(key, 1)) < 1 / 60
        factor = jnp.where(stray, 100.0, 1.0)
        return jax.tree.map(
            lambda part: Batch(factor * part.x, part.y),
            episode,
            is_leaf=lambda part: isinstance(part, Batch),
        )


def test_a_few_strays_that_decide_the_rate_are_told_of():
    # Curvature along the gradient goes with the fourth power of the inputs, slope with the second: a stray
    # task has a rate of its own, 1e-4 of the others', and the weight of 1e8 of them. Resampling leaves out two of
    # 128 one time in seven, and then the rate is that of the others.
    given = {"shots": SHOTS, "queries": 10, "spread": SPREAD, "noise": NOISE}
    for seed in range(10):
        strays = advise(Strays(CENTRE, **given), num_tasks=128, seed=seed)
        if strays.alpha_interval[0] < 1e-3 < strays.alpha_interval[1]:
            break
    assert any("a few tasks far out of the ordinary decide it" in text for text in strays.warnings)
    assert not any("out of the ordinary" in text for text in advice_on_linear_tasks().warnings)


def absolute_error(outputs, y):
    return jnp.mean(jnp.abs(outputs - y))


def of_loss(loss, **options):
    """Advice for the linear model with another loss, and the loss at (alpha,) of the tasks it is checked on."""
    objective = Objective.of(MODEL.apply, "regression", loss)
    query_loss = query_loss_of(objective, GradientAdapter(1))
    given = objective, MODEL.init(jax.random.key(0)), options.pop("family", FAMILY)
    return advise_rates(*given, jax.random.key(0), query_loss, num_tasks=64, **options)


def test_a_loss_without_curvature_has_a_rate_that_was_found_by_trying():
    advice = of_loss(absolute_error)
    low, high = advice.alpha_interval
    assert 0 < low <= advice.alpha <= high < np.inf
    assert (advice.label_free_alpha, advice.label_free_interval) == (None, None)
    assert (advice.predicted_gain, advice.label_free_gain) == (None, None)
    assert advice.alpha_chosen == advice.alpha
    assert advice.alpha_reason.startswith("the loss has no curvature along the inner gradient")
    # Of those around it, none is better by more than a search by powers of two can tell.
    rates, losses = np.array(advice.curve.alpha), np.array(advice.curve.measured)
    best = rates[losses.argmin()]
    assert losses.min() < 0.9 * losses[0]
    assert best / 2 <= advice.alpha <= 2 * best
    # What a quadratic without curvature predicts is a straight line.
    slopes = np.diff(advice.curve.predicted) / np.diff(rates)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9)


def test_without_curvature_and_where_no_step_helps_the_support_set_decides():
    advice = of_loss(absolute_error, family=Contrary())
    assert advice.alpha == 0
    assert advice.support_alpha > 0
    assert advice.alpha_reason.startswith(
        "the loss has no curvature along the inner gradient, and of the rates tried none lowers"
    )
    assert advice.warnings[0] == "one inner step does not help yet at the starting parameters"


def test_without_curvature_and_where_no_rate_lowers_any_loss_one_has_to_be_given():
    objective = Objective.of(MODEL.apply, "regression", absolute_error)
    given = objective, MODEL.init(jax.random.key(0)), FAMILY, jax.random.key(0)
    with pytest.raises(
        InputError, match=r"no rate tried lowers it, .* give a rate yourself \(--alpha\)"
    ):
        advise_rates(*given, lambda params, episode, alpha: alpha, num_tasks=4)


def test_much_lower_rates_are_tried_where_there_is_a_little_curvature_that_does_not_tell():
    def nearly_straight(outputs, y):
        return absolute_error(outputs, y) + 1e-6 * jnp.mean(outputs**2)

    straight, bent = of_loss(absolute_error), of_loss(nearly_straight)
    assert bent.alpha > 1e4 * straight.alpha
    assert bent.alpha_chosen == pytest.approx(straight.alpha, rel=1)
    assert bent.label_free_alpha is not None
    assert bent.curve.alpha == sorted(bent.curve.alpha)
    losses = np.array(bent.curve.measured)
    assert losses.min() < 0.9 * losses[0]
    assert bent.alpha_chosen == bent.curve.alpha[losses.argmin()]


@pytest.mark.parametrize("num_tasks", [1, 2.0])
def test_two_tasks_are_the_least(num_tasks):
    with pytest.raises(InputError) as caught:
        advise(Contrary(), num_tasks=num_tasks)
    assert str(caught.value) == f"num_tasks is {num_tasks}; it must be a whole number of at least 2"


def test_parameters_that_are_not_finite_are_reported():
    params = {"head": {"weight": jnp.full((4, 1), jnp.nan)}}
    with pytest.raises(InputError, match="not finite at these parameters; check the data for huge"):
        advise(Contrary(), params=params, num_tasks=2)


def test_a_model_that_nothing_moves_is_reported():
    objective = Objective.of(lambda params, x: 0 * x[:, :1] @ params, "regression")
    with pytest.raises(
        InputError, match="no curvature along the inner gradient, and no slope either: every rate"
    ):
        advise_rates(
            objective,
            jnp.zeros((1, 1)),
            Contrary(),
            jax.random.key(0),
            lambda p, e, a: a,
            num_tasks=4,
        )
