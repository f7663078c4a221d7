"""A memory limit: sizes as written, what compiled programs report, and the choice of the fastest that fits."""

import dataclasses
from typing import ClassVar

import pytest

from metastep._errors import InputError
from metastep._records import read_json
from metastep.metagrad import DERIVATIVES, Exact, algorithm
from metastep.models import Objective, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.tasks import Sinusoid
from metastep.train import Learner, RunFolder, TrainConfig, memory, train
from metastep.train.config import check_config
from metastep.train.memory import Footprint, fit, footprint
from metastep.train.sizes import parse_bytes, show_bytes


def learner_of(name="maml", steps=20, tasks=8, tasks_at_once=None):
    model = mlp((1,), 1, hidden=(12,))
    return Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=algorithm(name).adapter(model, steps),
        meta_gradient=algorithm(name).meta_gradient(),
        rate=FixedRate(0.01),
        optimizer=make_optimizer("sgd", 1e-2),
        tasks_per_step=tasks,
        tasks_at_once=tasks_at_once,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5GiB", 3 * 2**29),
        ("4096", 4096),
        ("64k", 64_000),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "2TB", "-1GB", "0", "1.2.3GB", "0.1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(
        InputError, match=r"--memory-limit is .*; give a size such as 2GB, 500MB or"
    ):
        parse_bytes(text)


def test_sizes_are_shown_with_three_figures():
    assert [show_bytes(n) for n in (1.2345e9, 650_330_824, 1500, 12)] == [
        "1.23 GB", "650 MB", "1.5 kB", "12 B",
    ]  # fmt: skip


def test_lean_derivatives_need_less_memory():
    # 20 inner steps of a small network on 50 examples: plain keeps 20 times the activations of one.
    family = Sinusoid(shots=50, queries=10)
    needed = {
        derivative: footprint(
            dataclasses.replace(learner_of(), meta_gradient=Exact(derivative)), family
        )
        for derivative in DERIVATIVES
    }
    for derivative in ("checkpointed", "forward"):
        assert needed[derivative].temporary < needed["plain"].temporary / 2
        assert needed[derivative].arguments == needed["plain"].arguments > 0


class Compiler:
    """Says what each candidate needs, and remembers which were asked for: 100 bytes a task, less if lean."""

    SHARES: ClassVar = {"plain": 100, "checkpointed": 50, "forward": 40}

    def __init__(self, monkeypatch):
        self.asked = []
        monkeypatch.setattr(memory, "footprint", self)

    def __call__(self, learner, family):
        rule, width = learner.meta_gradient, learner.tasks_at_once or learner.tasks_per_step
        name = getattr(rule, "derivative", "plain")
        self.asked.append((name, width))
        return Footprint(self.SHARES[name] * width, 0, 0)


@pytest.mark.parametrize(
    ("limit", "options", "chosen"),
    [
        (800, {}, ("plain", None)),
        (799, {}, ("checkpointed", None)),
        (399, {}, ("forward", None)),
        (319, {}, ("plain", 2)),
        (100, {}, ("checkpointed", 2)),
        (79, {}, ("checkpointed", 1)),
        (40, {}, ("forward", 1)),
        (399, {"any_width": False}, ("forward", None)),
        (319, {"any_derivative": False}, ("plain", 2)),
        (
            199,
            {"tasks_here": 4, "any_derivative": False},
            ("plain", 1),
        ),  # a share of 4 has widths 4 and 1
    ],
)
def test_the_fastest_that_fits_is_chosen(monkeypatch, limit, options, chosen):
    Compiler(monkeypatch)
    found = fit(learner_of(), None, limit, **options).learner
    assert (found.meta_gradient.derivative, found.tasks_at_once) == chosen


def test_the_reason_names_what_was_chosen_and_what_did_not_fit(monkeypatch):
    Compiler(monkeypatch)
    assert fit(learner_of(), None, 399).reason == (
        "forward derivatives, all tasks at once needs 320 B of the 399 B allowed; plain derivatives, all tasks at "
        "once would need 800 B"
    )


def test_when_nothing_fits_the_narrowest_say_so(monkeypatch):
    compiler = Compiler(monkeypatch)
    message = (
        r"--memory-limit 39 B is too little: forward derivatives, 1 task at once, the leanest way to train, needs "
        r"40 B; raise the limit, or lower --tasks-per-step"
    )
    with pytest.raises(InputError, match=message):
        fit(learner_of(), None, 39)
    assert compiler.asked == [("forward", 1), ("checkpointed", 1), ("plain", 1)]


def test_the_last_derivative_need_not_be_the_leanest(monkeypatch):
    # On CPU, checkpointed needs a little less than forward where there are many inner steps.
    compiler = Compiler(monkeypatch)
    monkeypatch.setattr(Compiler, "SHARES", {"plain": 100, "checkpointed": 40, "forward": 41})
    found = fit(learner_of(), None, 40)
    assert (found.learner.meta_gradient.derivative, found.learner.tasks_at_once) == (
        "checkpointed",
        1,
    )
    assert len(set(compiler.asked)) == len(compiler.asked)  # nothing is compiled twice


def test_first_order_rules_have_only_tasks_to_save_on(monkeypatch):
    compiler = Compiler(monkeypatch)
    assert fit(learner_of("fomaml"), None, 250).learner.tasks_at_once == 2
    assert compiler.asked == [("plain", 1), ("plain", 8), ("plain", 2)]


def test_a_run_keeps_to_its_limit_and_says_how(tmp_path, monkeypatch):
    Compiler(monkeypatch)
    options = {
        "tasks": "sinusoid", "hidden": (8,), "shots": 4, "alpha": 0.01, "iterations": 2, "tasks_per_step": 4,
    }  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    train(TrainConfig(**options, memory_limit="250"), folder)
    kept, rates = folder.read_config()[0], read_json(folder.rates)
    assert (kept.derivative, kept.tasks_at_once) == ("checkpointed", None)
    assert rates["memory_bytes"] == 200
    assert "plain derivatives, all tasks at once would need 400 B" in rates["memory_reason"]
    with pytest.raises(InputError, match="--memory-limit 1 B is too little"):
        train(TrainConfig(**options, memory_limit="1"), RunFolder(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_derivatives_are_for_those_that_differentiate():
    check_config(TrainConfig(tasks="sinusoid", algorithm="anil", derivative="forward"))
    with pytest.raises(InputError, match="--derivative forward is for maml and anil; reptile does"):
        check_config(TrainConfig(tasks="sinusoid", algorithm="reptile", derivative="forward"))
    with pytest.raises(InputError, match="--derivative is 'reverse'; choose one of: auto, checkp"):
        check_config(TrainConfig(tasks="sinusoid", derivative="reverse"))
    with pytest.raises(InputError, match="--memory-limit is 'all of it'"):
        check_config(TrainConfig(tasks="sinusoid", memory_limit="all of it"))
