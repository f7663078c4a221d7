"""Tasks dealt out to devices: the same training as on one, with every way of mapping tasks and setting rates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from metastep._errors import InputError
from metastep.train import RunFolder, TrainConfig, train
from metastep.train.crew import Crew
from metastep.train.devices import make_mesh

TOLERANCE = 1e-9  # in float64: the devices add up the tasks in another order


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    """What devices_script.py found; one process for all cases, since each has to start JAX anew."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    script = Path(__file__).with_name("devices_script.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path_factory.mktemp("runs")],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["online rate", "anil on images"])
def test_eight_devices_equal_one(on_eight, case):
    # Power: training moved the parameters by orders of magnitude more than the tolerance.
    found = on_eight[case]
    assert found["devices"] == 8
    assert found["moved"] > 1e-3
    assert found["error"] < TOLERANCE
    assert (
        found["programs"] == 1
    )  # the second dispatch, and another number of steps, compile nothing


def test_devices_talk_as_little_as_they_can(on_eight):
    # One sum of all gradients, and the outcomes; in particular, drawing the tasks takes no exchange.
    talk = on_eight["anil on images"]["collectives"]
    assert talk.pop("all-reduce") == 1
    assert 1 <= talk.pop("all-gather") <= 4  # loss, loss before, metric, length of the gradient
    assert not any(talk.values())


def test_evaluation_on_tasks_that_do_not_come_out_even(on_eight):
    assert on_eight["evaluation"]["error"] < TOLERANCE


@pytest.mark.parametrize("devices", [2, 1])
def test_a_checkpoint_of_eight_devices_resumes_on_fewer(on_eight, devices):
    found = on_eight[f"resumed on {devices}"]
    assert found["devices"] == devices
    assert found["moved"] > 1e-3
    assert found["error"] < TOLERANCE


class Device:
    """Enough of a device to choose from."""

    def __init__(self, process_index, platform="gpu"):
        self.process_index, self.platform = process_index, platform


def test_the_default_takes_accelerators_that_share_evenly(monkeypatch):
    monkeypatch.setattr("metastep.train.devices.Mesh", lambda devices, axes: devices.size)
    eight = [Device(0) for _ in range(8)]
    assert make_mesh(None, 32, eight) == 8
    assert make_mesh(None, 25, eight) == 5
    assert make_mesh(None, 7, [Device(0)] * 4) is None
    two_hosts = [Device(process) for process in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert make_mesh(None, 24, two_hosts) == 8
    assert make_mesh(None, 4, two_hosts) == 4
    assert make_mesh(None, 16, [Device(0, "cpu")] * 8) is None  # virtual devices are asked for
    assert make_mesh(2, 8, [Device(p) for p in (1, 0, 1, 0, 0)]) == 4


@pytest.mark.parametrize(
    ("devices", "tasks", "among", "message"),
    [
        (0, 8, [Device(0)], "--devices is 0; it must be a whole number of at least 1"),
        (2, 8, [Device(0, "cpu")], "only 1 here; .*--xla_force_host_platform_device_count=2"),
        (
            4,
            8,
            [Device(0)] * 2,
            "--devices is 4, but there are only 2 here; lower it, or start more",
        ),
        (
            3,
            8,
            [Device(0)] * 4,
            "--tasks-per-step 8 cannot be dealt out evenly to 3 devices; make it a",
        ),
        (2, 6, [Device(0), Device(0), Device(1), Device(1)], "2 devices in each of 2 processes"),
    ],
)
def test_devices_that_cannot_be_used(devices, tasks, among, message):
    with pytest.raises(InputError, match=message):
        make_mesh(devices, tasks, among)


def test_too_many_devices_write_nothing(tmp_path):
    config = TrainConfig(tasks="sinusoid", alpha=0.01, tasks_per_step=64, iterations=2)
    with pytest.raises(InputError, match="--devices is 64"):
        train(config, RunFolder(tmp_path / "run"), crew=Crew(devices=64))
    assert not (tmp_path / "run").exists()


def test_one_device_needs_no_mesh():
    assert make_mesh(None, 25) is None
    assert make_mesh(1, 25, jax.devices()[:1]) is None
