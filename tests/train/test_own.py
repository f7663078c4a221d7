"""Tasks, models and losses of the user's own go all the way, from text or as objects: rates, training, adapting."""

import dataclasses
import textwrap
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metastep import Batch, Episode, MetaParams
from metastep._errors import DataError, InputError
from metastep._records import read_json
from metastep.models import Model, Objective, from_equinox, mlp
from metastep.tasks import AbstractTaskFamily, Sinusoid, TaskSplits
from metastep.train import (
    RunFolder,
    TrainConfig,
    adapt_and_predict,
    build_model,
    evaluate_run,
    load_run,
    load_tasks,
    measure_rates,
    resume,
    train,
)
from metastep.train.build import build_learner
from metastep.train.config import check_config
from metastep.train.edges import measure_edges
from metastep.train.learner import mean_alpha
from metastep.train.own import in_words, own_model, own_tasks, plain_options, with_own
from metastep.train.references import is_own, load_reference

SMALL = {"tasks_per_step": 3, "iterations": 30, "eval_every": 10, "eval_tasks": 4, "alpha": 0.02}

CODE = """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from metastep import Batch, Episode
    from metastep.models import Model
    from metastep.tasks import AbstractTaskFamily


    class Lines(AbstractTaskFamily):
        kind = "regression"
        input_shape = (2,)
        output_size = 1
        shots: int = eqx.field(static=True, default=6)

        def sample(self, key):
            slope_key, x_key = jax.random.split(key)
            x = jax.random.normal(x_key, (2 * self.shots, 2))
            y = x @ jax.random.normal(slope_key, (2, 1))
            return Episode(Batch(x[::2], y[::2]), Batch(x[1::2], y[1::2]))


    def bump(input_shape, output_size):
        def init(key):
            return {"w": jax.random.normal(key, (*input_shape, output_size)), "c": jnp.ones(())}

        return Model(init, lambda p, x: p["c"] * jnp.tanh(x @ p["w"]), name="bump")


    def absolute(outputs, targets):
        return jnp.mean(jnp.sqrt(jnp.square(outputs - targets) + 1e-2))


    seven = 7
"""


class Lines(AbstractTaskFamily):
    """Straight lines through the origin of a plane."""

    kind = "regression"
    input_shape = (2,)
    output_size = 1
    shots: int = eqx.field(static=True, default=6)

    def sample(self, key) -> Episode:
        slope_key, x_key = jax.random.split(key)
        x = jax.random.normal(x_key, (2 * self.shots, 2))
        y = x @ jax.random.normal(slope_key, (2, 1))
        return Episode(Batch(x[::2], y[::2]), Batch(x[1::2], y[1::2]))


class Sides(AbstractTaskFamily):
    """On which side of a line a point lies; `labels` says of which type the answer is."""

    kind = "classification"
    input_shape = (2,)
    output_size = 2
    labels: str = eqx.field(static=True, default="int")

    def sample(self, key) -> Episode:
        x = jax.random.normal(key, (8, 2))
        y = (x[:, 0] > 0).astype(self.labels)
        return Episode(Batch(x[:4], y[:4]), Batch(x[4:], y[4:]))


def bump(input_shape, output_size) -> Model:
    def init(key):
        return {"w": jax.random.normal(key, (*input_shape, output_size)), "c": jnp.ones(())}

    return Model(init, lambda p, x: p["c"] * jnp.tanh(x @ p["w"]), name="bump")


def absolute(outputs, targets):
    return jnp.mean(jnp.sqrt(jnp.square(outputs - targets) + 1e-2))


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "lines.py"
    path.write_text(textwrap.dedent(CODE))
    return str(path)


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_file_and_the_object_train_to_the_same_bits(code, tmp_path):
    by_name = {"tasks": f"{code}:Lines", "model": f"{code}:bump", "loss": f"{code}:absolute"}
    handed = {"tasks": Lines(), "model": bump((2,), 1), "loss": absolute}
    runs = []
    for name, own in (("text", by_name), ("objects", handed)):
        train(TrainConfig(**own, **SMALL), RunFolder(tmp_path / name))
        again = handed if name == "objects" else {}
        runs.append(load_run(RunFolder(tmp_path / name), **again))
    assert jax.tree.structure(runs[0].params) == jax.tree.structure(
        bump((2,), 1).init(jax.random.key(0))
    )
    for one, other in zip(*(leaves(run.params) for run in runs), strict=True):
        np.testing.assert_array_equal(one, other)
    judged = [evaluate_run(run, num_tasks=20)[0].after.loss.mean for run in runs]
    assert judged[0] == judged[1]


def test_the_loss_of_the_users_own_is_the_one_that_counts(tmp_path):
    own = {"tasks": Lines(), "model": bump((2,), 1), "loss": absolute}
    train(TrainConfig(**own, **SMALL), RunFolder(tmp_path / "run"))
    run = load_run(RunFolder(tmp_path / "run"), **own)
    batch = Lines().sample(jax.random.key(3)).support
    outputs = run.learner.model.apply(run.params, batch.x)
    expected = np.mean(np.sqrt((np.asarray(outputs) - np.asarray(batch.y)) ** 2 + 1e-2))
    np.testing.assert_allclose(run.learner.objective(run.params, batch), expected, rtol=1e-5)


def test_rates_are_measured_for_the_users_own(code):
    by_name = TrainConfig(tasks=f"{code}:Lines", model=f"{code}:bump", loss=f"{code}:absolute")
    handed = TrainConfig(tasks=Lines, model=bump, loss=absolute)
    found = [measure_rates(c, load_tasks(c), num_tasks=16).alpha_chosen for c in (by_name, handed)]
    assert found[0] == found[1]
    usual = dataclasses.replace(handed, loss="auto")
    assert measure_rates(usual, load_tasks(usual), num_tasks=16).alpha_chosen != found[0]


def _own_backward(times):
    """tanh with a backward pass of its own, as hand-written kernels have."""
    function = jax.custom_vjp(jnp.tanh)
    function.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda y, g: (times(1 - y * y, g),))
    return function


def _looped(slope, g):
    """slope * g by a loop of unknown length, which JAX does not differentiate backwards."""
    return jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, slope * s[1]), (0, g))[1]


@pytest.mark.parametrize(
    ("times", "algorithm", "tolerance"),
    [(jnp.multiply, "maml", 1e-9), (jnp.multiply, "anil", 1e-9), (_looped, "fomaml", 1e-5)],
)
def test_a_model_without_a_forward_derivative_gets_the_same_rates(times, algorithm, tolerance):
    def measured(activation):
        config = TrainConfig(
            tasks="sinusoid", model=mlp((1,), 1, (8, 8), activation), algorithm=algorithm
        )
        return measure_rates(config, load_tasks(config), num_tasks=16)

    found, expected = measured(_own_backward(times)), measured(jnp.tanh)
    for name in ("alpha", "label_free_alpha", "support_alpha"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=tolerance)


def test_nothing_given_is_enough_for_a_model_without_a_second_derivative(tmp_path):
    """Algorithms of the first order need one gradient, and measuring alpha no more than outputs beside it."""
    config = TrainConfig(
        tasks="sinusoid", model=mlp((1,), 1, (8, 8), _own_backward(_looped)),
        algorithm="fomaml", steps=2, **(SMALL | {"alpha": "auto"}),
    )  # fmt: skip
    judged = train(config, RunFolder(tmp_path / "run")).validation
    assert judged is not None
    assert np.isfinite(judged["loss"])
    edges = measure_edges(config, load_tasks(config), 0.01)
    assert edges["alpha_max"] > 0
    assert edges["beta_max"] is None
    assert edges["beta_max_reason"].startswith("not measured: the model's own backward pass")


def test_a_stopped_run_of_objects_resumes_to_the_same_bits(tmp_path):
    own = {"tasks": Lines(), "model": bump}
    steady = {
        "meta_lr": 0.01,
        "schedule": "constant",
    }  # which do not depend on the length of the run
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    train(TrainConfig(**own, **SMALL, **steady), whole)
    train(TrainConfig(**own, **(SMALL | {"iterations": 12}), **steady), parts)
    with pytest.raises(InputError, match=r"Lines \(handed over in Python\).*hand it over again"):
        resume(parts, iterations=30)
    resume(parts, iterations=30, **own)
    ends = [load_run(folder, "latest", **own) for folder in (whole, parts)]
    for one, other in zip(*(leaves(run.params) for run in ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_adapting_needs_the_model_but_no_tasks(tmp_path):
    train(TrainConfig(tasks=Lines(), model=bump, **SMALL), RunFolder(tmp_path / "run"))
    run = load_run(RunFolder(tmp_path / "run"), model=bump)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    predictions = adapt_and_predict(run, x, x[:, :1], x).predictions
    assert predictions.shape == (6, 1)
    with pytest.raises(InputError, match=r"tasks: the run knows Lines"):
        evaluate_run(run, num_tasks=4)


def test_something_else_cannot_be_handed_over_for_a_run(tmp_path):
    train(TrainConfig(tasks=Lines(), model=bump, **SMALL), RunFolder(tmp_path / "run"))
    with pytest.raises(InputError, match=r"trained with bump .* not with mlp-40-40"):
        load_run(RunFolder(tmp_path / "run"), model=mlp((2,), 1))
    with pytest.raises(InputError, match="loss: the run was trained with auto"):
        load_run(RunFolder(tmp_path / "run"), model=bump, loss=absolute)


def test_records_name_objects_and_hold_them_not(tmp_path):
    config = TrainConfig(tasks=Lines, model=bump((2,), 1), loss=absolute)
    plain = plain_options(config)
    assert [plain[name].split()[0] for name in ("tasks", "model", "loss")] == [
        "Lines",
        "bump",
        "absolute",
    ]
    again = with_own(TrainConfig(**plain), tasks=Lines(), model=bump, loss=absolute)
    assert again.model is bump
    train(dataclasses.replace(config, **SMALL), RunFolder(tmp_path / "run"))
    assert read_json(tmp_path / "run" / "config.json")["train"]["model"] == in_words(bump)


def test_sizes_are_set_where_the_tasks_have_them():
    config = TrainConfig(tasks=Lines, shots=9)
    assert own_tasks(config).train.sample(jax.random.key(0)).support.x.shape == (9, 2)
    with pytest.raises(InputError, match=r"--ways 3: the tasks Lines have no field 'ways'"):
        own_tasks(TrainConfig(tasks=Lines, ways=3))
    assert load_tasks(TrainConfig(tasks=Lines)).description["shots"] == 6
    assert load_tasks(TrainConfig(tasks=Sides)).description["queries"] == 4  # counted, not said


def test_partial_functions_are_as_good_as_functions():
    config = TrainConfig(tasks=partial(Lines, shots=4), model=partial(mlp, hidden=(3,)))
    found = load_tasks(config)
    assert found.description["shots"] == 4
    assert build_model(config, found.description).name == "mlp-3"
    assert in_words(config.tasks) == in_words(Lines)
    with pytest.raises(InputError, match=r"Lines\(\) failed: TypeError"):
        load_tasks(TrainConfig(tasks=partial(Lines, nonsense=4)))


def test_splits_keep_their_parts_apart():
    splits = TaskSplits(Lines(shots=4), Lines(shots=5), Lines(shots=7), "three")
    found = load_tasks(TrainConfig(tasks=splits))
    assert [
        part.shots for part in (found.splits.train, found.splits.validation, found.splits.test)
    ] == [4, 5, 7]
    assert found.description["name"] == "three"


def test_the_usual_model_meets_tasks_of_the_users_own(tmp_path):
    train(TrainConfig(tasks=Sides(), **SMALL), RunFolder(tmp_path / "run"))
    evaluation, _ = evaluate_run(load_run(RunFolder(tmp_path / "run"), tasks=Sides()), num_tasks=20)
    assert evaluation.after.accuracy is not None


def test_a_model_of_the_users_own_meets_the_usual_tasks(code, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(TrainConfig(tasks="sinusoid", model=f"{code}:bump", **SMALL), folder)
    assert load_run(folder).learner.model.name == "bump"


def test_an_equinox_module_is_a_model(rng):
    model = from_equinox(lambda key: eqx.nn.MLP(2, 1, 8, 2, key=key), name="eqx-mlp")
    params = model.init(jax.random.key(1))
    x = jnp.asarray(rng.normal(size=(5, 2)))
    expected = jax.vmap(eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(1)))(x)
    np.testing.assert_array_equal(model.apply(params, x), expected)
    learner = build_learner(
        TrainConfig(tasks=Lines, model=model, rate="shared-meta-sgd", optimizer="relative-adam"),
        load_tasks(TrainConfig(tasks=Lines)).description,
        0.01,
        0.1,
    )
    meta, _ = learner.rate.init(params)
    assert len(jax.tree.leaves(meta.own)) == len(jax.tree.leaves(params)) == 6
    # Its activation, which is no array, does not count as a rate of 0.
    assert float(mean_alpha(learner, MetaParams(params, meta), None)) == pytest.approx(0.01)


def test_flax_modules_are_models_as_the_guide_says():
    net = nn.Dense(1, param_dtype=float)
    with jax.numpy_dtype_promotion("standard"):  # Flax does not do with less
        model = own_model(Model(lambda key: net.init(key, jnp.ones((1, 1))), net.apply), (1,), 1)
        params = model.init(jax.random.key(0))
        outputs = model.apply(params, jnp.ones((3, 1)))
    np.testing.assert_allclose(outputs, np.full((3, 1), params["params"]["kernel"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("nets.py:wide", True), ("a/b/nets.py:wide", True), ("package.module:name", True), ("mlp", False),
        ("data/sensors.csv", False), ("nets.py", False), ("nets.py:", False), ("C:\\data\\x.csv", False),
        ("nets.py:not a name", False), ("Lines (handed over in Python)", True),
    ],
)  # fmt: skip
def test_what_is_a_reference(text, own):
    assert is_own(text) is own


def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data:x").mkdir()
    assert not is_own("data:x")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "has no 'nothing'; it has eqx, jax, jnp"),
        ("seven", "are of type int; hand over an AbstractTaskFamily"),
        ("bump", r"bump\(\) failed: TypeError: .*missing 2 required positional arguments"),
    ],
)
def test_tasks_that_are_none_are_refused(code, name, message):
    with pytest.raises(InputError, match=message):
        load_tasks(TrainConfig(tasks=f"{code}:{name}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"failed: SyntaxError: invalid syntax \(broken.py, line 1\)$"),
        ("x = 1\ny = 1 / 0\n", r"failed: ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("import no_such_thing_at_all\n", "failed: ModuleNotFoundError: .*no_such_thing_at_all"),
    ],
)  # fmt: skip
def test_code_that_does_not_load_says_where(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_reference(f"{path}:f")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.py does not exist"):
        load_reference(f"{tmp_path}/none.py:f")


def test_files_beside_it_can_be_imported(tmp_path):
    (tmp_path / "sizes_beside.py").write_text("WIDTH = 3\n")
    (tmp_path / "nets_beside.py").write_text("from sizes_beside import WIDTH as width\n")
    assert load_reference(f"{tmp_path}/nets_beside.py:width") == 3


@dataclasses.dataclass(frozen=True)
class _Wrong:
    """A field of `Lines` or a way to sample that does not fit, and what is said of it."""

    changes: dict
    message: str


@pytest.mark.parametrize(
    "wrong",
    [
        _Wrong({"input_shape": (3,)}, r"examples of shape \(2,\), but input_shape is \(3,\)"),
        _Wrong({"sample": lambda self, key: key}, "gives .*; it must give an Episode"),
        _Wrong({"sample": lambda self, key: key.x}, r"Lines.sample failed: AttributeError: .*line \d+\)"),
        _Wrong({"kind": "classification"}, r"targets of shape \(6, 1\) and type float\d\d"),
    ],
)  # fmt: skip
def test_tasks_that_are_not_as_they_say_are_refused(wrong):
    family = type("Lines", (Lines,), wrong.changes)
    with pytest.raises(InputError, match=wrong.message):
        load_tasks(TrainConfig(tasks=family))


def test_labels_must_be_whole_numbers():
    with pytest.raises(InputError, match="needs one whole number for each example"):
        load_tasks(TrainConfig(tasks=Sides(labels="float32")))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(lambda key: {}, lambda p, x: x), "parameters of type none"),
        (Model(lambda key: jnp.ones(3, int), lambda p, x: x), r"parameters of type int\d\d; all must be"),
        (Model(lambda key: jnp.ones(3), lambda p, x: x @ p), "apply of the model model .* failed: TypeError"),
        (Model(lambda key: jnp.ones(2), lambda p, x: x @ p), r"outputs of shape \(2,\) of 2 examples"),
        (lambda shape, size: 3, "is of type int; hand over a Model"),
        (7, "is of type int; hand over a Model"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        own_model(model, (2,), 1)


def test_names_that_are_no_model_are_refused():
    with pytest.raises(
        InputError, match=r"--model is 'resnet'; choose one of: auto, linear, mlp, conv4; or FILE"
    ):
        check_config(TrainConfig(tasks="sinusoid", model="resnet"))
    with pytest.raises(InputError, match=r"--loss is 'huber'; choose one of: auto; or FILE"):
        check_config(TrainConfig(tasks="sinusoid", loss="huber"))


def test_an_objective_takes_another_loss():
    batch = Sinusoid().sample(jax.random.key(0)).support
    model = mlp((1,), 1)
    params = model.init(jax.random.key(0))
    objective = Objective.of(model.apply, "regression", absolute)
    np.testing.assert_allclose(
        objective(params, batch), absolute(model.apply(params, batch.x), batch.y)
    )
