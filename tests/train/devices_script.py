"""Run by test_devices.py with 8 virtual devices: prints, as JSON, how far their training is from that of one."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metastep.metagrad import algorithm
from metastep.models import Objective, conv4, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.rates.online import EstimatedRate
from metastep.tasks import FewShot, Sinusoid
from metastep.train import Learner, initial_state
from metastep.train.checkpoint import Checkpoints
from metastep.train.devices import local, make_mesh, replicate
from metastep.train.evaluate import evaluate
from metastep.train.step import compile_advance


def sinusoid(rate, tasks_at_once=None, tasks=16):
    model, family = mlp((1,), 1, hidden=(6,)), Sinusoid(shots=4, queries=3)
    return _learner("maml", model, "regression", rate, tasks, tasks_at_once), family


def anil_on_images():
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    family = FewShot(images, np.full(3, 4), ways=3, shots=1, queries=2)
    model = conv4((8, 8, 1), 3, filters=2)
    return _learner("anil", model, "classification", FixedRate(0.3), 8, 1), family


def _learner(name, model, kind, rate, tasks, tasks_at_once):
    return Learner(
        model=model,
        objective=Objective.of(model.apply, kind),
        adapter=algorithm(name).adapter(model, 1),
        meta_gradient=algorithm(name).meta_gradient(),
        rate=rate,
        optimizer=make_optimizer("adam", 1e-2),
        tasks_per_step=tasks,
        tasks_at_once=tasks_at_once,
        clip_tasks=1.0,  # half of the tasks are cut
    )


def advanced(learner, family, state, *stops):
    """The state after a dispatch to each stop, and how many programs that took."""
    run, key = compile_advance(learner), jax.random.key(5)
    for until in stops:
        state = run(*replicate(learner.mesh, (family, key, state, jnp.asarray(until))))
    return state, run


def on(devices, learner):
    """The same learner with its tasks dealt out."""
    return dataclasses.replace(learner, mesh=make_mesh(devices, learner.tasks_per_step))


def furthest(found, expected):
    """The largest relative difference of any array, in its own largest entry."""
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(np.max(np.abs(b)), 1e-30))
        for a, b in pairs
        if np.asarray(b).size and np.isfinite(b).all()
    )


def compare_images():
    """ANIL on a small Conv4, a task on each device."""
    learner, family = anil_on_images()
    start = initial_state(learner, jax.random.key(1))
    expected, _ = advanced(learner, family, start, 1, 3)
    spread = on(8, learner)
    found, run = advanced(spread, family, start, 1, 3)
    talk = {"collectives": collectives(spread, family, run, found)}
    return {"anil on images": report(found, expected, start, run) | talk}


def compare_sinusoids(folder):
    """A rate that looks at several tasks, and tasks one after another; then a checkpoint of it on 2 and on 1."""
    rate = EstimatedRate(jnp.asarray(0.05), "label-aware", num_tasks=3)
    learner, family = sinusoid(rate, tasks_at_once=1)
    start = initial_state(learner, jax.random.key(1))
    expected, _ = advanced(learner, family, start, 1, 3)
    found, run = advanced(on(8, learner), family, start, 1, 3)
    results = {"online rate": report(found, expected, start, run)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, local(on(8, learner).mesh, found))
    kept = checkpoints.restore(start)
    checkpoints.close()
    further, _ = advanced(learner, family, expected, 5)
    for devices in (2, 1):
        resumed, run = advanced(on(devices, learner), family, kept, 5)
        results[f"resumed on {devices}"] = report(resumed, further, kept, run)
    return results


def collectives(learner, family, run, state):
    """How often devices talk in a meta-step: names of collectives in the compiled program, and their number."""
    arguments = replicate(learner.mesh, (family, jax.random.key(5), state, jnp.asarray(3)))
    text = run.lower(*arguments).compile().as_text()
    names = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in names}


def report(found, expected, start, run):
    """How far off the devices are, beside how far training went."""
    return {
        "error": furthest(jax.device_get(found), expected),
        "moved": furthest(start.meta.params, expected.meta.params),
        "programs": run.program.jitted.compiled(),
        "devices": len(jax.tree.leaves(found)[0].sharding.device_set),
    }


def compare_evaluation():
    """Held-out tasks whose number the devices do not divide."""
    learner, family = sinusoid(FixedRate(0.05))
    params, key = initial_state(learner, jax.random.key(1)).meta.params, jax.random.key(3)
    one, many = (
        evaluate(which, params, jnp.asarray(0.05), family, key, num_tasks=11)
        for which in (learner, on(8, learner))
    )
    pairs = zip(one.curve, many.curve, strict=True)
    return {"evaluation": {"error": max(abs(a.loss.mean / b.loss.mean - 1) for a, b in pairs)}}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps(compare_sinusoids(folder) | compare_images() | compare_evaluation()))
