"""The norm of the meta-gradient: unbiased, covered by its interval, and shown by the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from metastep import Batch, Episode
from metastep._errors import InputError
from metastep.adapt import GradientAdapter
from metastep.cli import main
from metastep.metagrad import Exact, FirstOrder, JointTraining
from metastep.models import Model, Objective, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.report import tables
from metastep.tasks import AbstractTaskFamily, Sinusoid
from metastep.train import Learner, RunFolder, certify_run, gradient_norm, load_run
from metastep.train.stationarity import compile_blocks, squared_norm_interval

DIM, ALPHA = 3, 0.3
CENTRE = np.array([1.0, -2.0, 0.5])


class Means(AbstractTaskFamily):
    """f(w; x) = (1/2) |w - x|^2 with x normal about a centre of the task: grad F = (1 - alpha)^2 (w - CENTRE)."""

    kind = "regression"
    input_shape = (DIM,)
    output_size = DIM

    def sample(self, key):
        centre_key, *keys = jax.random.split(key, 3)
        centre = jnp.asarray(CENTRE) + jax.random.normal(centre_key, (DIM,))
        support, query = (
            Batch(centre + 2 * jax.random.normal(k, (n, DIM)), jnp.zeros((n, DIM)))
            for k, n in zip(keys, (4, 6), strict=True)
        )
        return Episode(support, query)


def half_squares(outputs, targets):
    return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1)) / 2


def learner(meta_gradient=None, tasks_at_once=None, model=None, objective=None):
    model = model or Model(init=lambda key: jnp.zeros(DIM), apply=lambda w, x: w - x)
    return Learner(
        model=model,
        objective=objective or Objective(model.apply, half_squares),
        adapter=GradientAdapter(1),
        meta_gradient=meta_gradient or Exact(),
        rate=FixedRate(jnp.asarray(ALPHA)),
        optimizer=make_optimizer("sgd", 0.1),
        tasks_per_step=5,
        tasks_at_once=tasks_at_once,
    )


def measure(w, seed=0, num_tasks=320, **options):
    return gradient_norm(
        learner(),
        w,
        jnp.asarray(ALPHA),
        Means(),
        jax.random.key(seed),
        num_tasks=num_tasks,
        **options,
    )


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.6])
def test_the_estimate_is_unbiased_and_its_interval_covers(distance):
    # 200 data sets each. Bias: 4 standard errors, a false alarm in 16,000. Coverage is 93 to 98 % by a larger
    # simulation; 200 draws have a standard error of 1.6 %, so that 88 % is 3 of them away.
    compiled = compile_blocks(learner())
    w = jnp.asarray(CENTRE + distance * np.array([0.6, 0.0, -0.8]))
    truth = (1 - ALPHA) ** 2 * distance
    found = [measure(w, seed, compiled=compiled) for seed in range(200)]
    squares = np.array([one.squared_norm for one in found])
    assert abs(squares.mean() - truth**2) < 4 * squares.std(ddof=1) / np.sqrt(len(squares))
    covered = np.mean(
        [one.interval[0] <= truth + 1e-12 <= one.interval[1] + 2e-12 for one in found]
    )
    assert covered >= 0.88
    assert all(one.norm == np.sqrt(max(one.squared_norm, 0)) for one in found)
    if distance == 0:
        assert 0.3 < np.mean(squares < 0) < 0.8  # the plain squared norm of the mean never is
        assert all(one.norm == 0 for one in found if one.squared_norm < 0)
    if distance == 0.6:
        assert np.mean([one.interval[0] > 0 for one in found]) > 0.99  # the test has power


def test_a_rate_for_each_parameter_is_that_of_the_adaptation():
    # As learned rates are: grad F = (1 - alpha_i)^2 (w - CENTRE)_i, entry by entry.
    alpha, w = jnp.array([0.1, 0.5, 0.9]), jnp.zeros(DIM)
    expected = np.linalg.norm((1 - np.asarray(alpha)) ** 2 * CENTRE)
    found = gradient_norm(learner(), w, alpha, Means(), jax.random.key(0), num_tasks=4096)
    assert found.interval[0] <= expected <= found.interval[1]
    assert found.interval[1] < 1.2 * found.interval[0]


def test_more_tasks_narrow_the_interval():
    w = jnp.asarray(CENTRE + 1.0)
    few, many = (measure(w, num_tasks=n).interval for n in (64, 6400))
    assert 4 < (few[1] - few[0]) / (many[1] - many[0]) < 25  # 10 for a hundred times the tasks


def test_it_is_the_mean_over_pairs_of_blocks_of_exact_meta_gradients():
    model = mlp((1,), 1, hidden=(5,))
    objective = Objective.of(model.apply, "regression")
    params, family = model.init(jax.random.key(0)), Sinusoid(shots=3, queries=4)
    key = jax.random.key(7)
    maml = learner(model=model, objective=objective, tasks_at_once=2)
    found = gradient_norm(maml, params, jnp.asarray(0.05), family, key, num_tasks=30)
    assert found.num_tasks == 32  # 30 make 8 blocks of 4

    def loss(params, key):
        episode = family.sample(key)
        inner = jax.grad(objective.on(episode.support))(params)
        adapted = jax.tree.map(lambda w, g: w - 0.05 * g, params, inner)
        return objective(adapted, episode.query)

    keys = jax.random.split(key, (8, 4)).reshape(-1)
    losses, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(params, keys)
    flat = np.concatenate(
        [np.reshape(leaf, (32, -1)) for leaf in jax.tree.leaves(gradients)], axis=1
    )
    means = flat.reshape(8, 4, -1).mean(axis=1)
    pairs = [means[i] @ means[j] for i in range(8) for j in range(8) if i != j]
    assert found.squared_norm == pytest.approx(np.mean(pairs), rel=1e-9)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-10)
    # Whatever the run was trained with, the gradient is the exact one.
    first_order = learner(FirstOrder(), model=model, objective=objective)
    same = gradient_norm(first_order, params, jnp.asarray(0.05), family, key, num_tasks=30)
    assert same.squared_norm == pytest.approx(found.squared_norm, rel=1e-9)


def test_joint_training_is_judged_without_adaptation():
    w = jnp.asarray(CENTRE + np.array([3.0, 0, 0]))
    found = gradient_norm(
        learner(JointTraining()), w, jnp.asarray(ALPHA), Means(), jax.random.key(0), num_tasks=640
    )
    assert found.interval[0] < 3 < found.interval[1]  # and not 3 (1 - alpha)^2 = 1.47
    assert found.interval[0] > 2.5


def test_the_interval_of_vectors_that_are_all_the_same_is_a_point():
    vectors = np.tile([3.0, 4.0], (8, 1))
    assert squared_norm_interval(vectors @ vectors.T) == pytest.approx((25, 25, 25))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(
        InputError, match=r"num_tasks is 15; it must be a whole number of at least 16"
    ):
        measure(jnp.zeros(DIM), num_tasks=15)
    with pytest.raises(InputError) as caught:
        measure(jnp.full(DIM, jnp.inf))
    assert str(caught.value) == (
        "the meta-gradient is not finite at these parameters: lower alpha, or check the data for huge values"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stationarity") / "run"
    arguments = "train sinusoid --iterations 60 --hidden 8 --alpha 1e-5 --seed 3 --out"
    main([*arguments.split(), str(folder)])
    return folder


def test_a_run_gets_its_certificate_on_the_command_line(run, capsys):
    capsys.readouterr()
    main(["evaluate", str(run), "--num-tasks", "128", "--stationarity", "--json"])
    found = json.loads(capsys.readouterr().out)["stationarity"]
    assert found["interval"][0] <= found["norm"] <= found["interval"][1]
    assert found["num_tasks"] == 128
    assert found["split"] == "train"
    assert found["relative"] == pytest.approx(found["norm"] / found["initial_norm"])
    assert found["loss"] < found["initial_loss"]
    assert found["alpha"] == pytest.approx(1e-5)
    # At so small a rate the theorem holds; its promises are there, and loose.
    assert found["floor"] > found["norm"]
    assert found["iteration_bound"] > 60
    assert found["bias_bound"] > 0
    assert found["reason"].endswith("these bounds are safe rather than sharp")
    assert set(found["constants"]) >= {"smoothness", "hessian_lipschitz", "sigma", "sigma_tilde"}
    assert "gradient_norms" not in found["constants"]


def test_beyond_the_range_of_the_theorem_nothing_is_promised(run, capsys):
    certificate = certify_run(load_run(RunFolder(run)), num_tasks=16, alpha=10.0)
    assert certificate.alpha == 10
    assert certificate.floor is None
    assert certificate.iteration_bound is None
    assert certificate.bias_bound is None
    assert "the lemma holds up to 1/(smoothness)" in certificate.reason


def test_a_run_with_learned_rates_gets_its_certificate_without_the_theorems(tmp_path):
    arguments = (
        "train sinusoid --iterations 60 --hidden 8 --rate shared-meta-sgd --alpha 1e-2 --out"
    )
    main([*arguments.split(), str(tmp_path / "run")])
    run = load_run(RunFolder(tmp_path / "run"))
    found = certify_run(run, num_tasks=64)
    assert found.norm < found.initial_norm
    assert found.floor is None
    rates = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.alpha)])
    assert found.alpha == pytest.approx(np.exp(np.log(rates).mean()), rel=1e-6)
    assert "one adaptation rate, not one per layer or step" in found.reason


def test_the_table_shows_it():
    found = {
        "norm": 0.25,
        "interval": [0.125, 0.5],
        "initial_norm": 8.0,
        "initial_interval": [7.0, 9.0],
        "num_tasks": 608,
        "split": "train",
        "floor": None,
        "reason": "the theorem holds up to alpha = 0.01",
    }
    console = Console(width=120)
    with console.capture() as capture:
        console.print(tables.evaluation_table({"stationarity": found}))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "gradient norm |∇F| │ 0.25 │ [0.125, 0.5]" in lines
    assert "the same before training │ 8 │ [7, 9]" in lines
    assert "measured on │ 608 train tasks │" in lines
    assert "theory: the theorem holds up to alpha = 0.01" in lines
    assert not any("promises nothing" in line for line in lines)
    assert "stationarity" not in str(tables.evaluation_table({}))
