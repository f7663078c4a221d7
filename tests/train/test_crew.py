"""Several processes over loopback: they train as one does, refuse options that do not fit, and survive a loss."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from metastep._errors import InputError, ProcessLostError, UserError
from metastep._records import read_json
from metastep.train import Checkpoints, RunFolder, TrainConfig, initial_state, resume, train
from metastep.train.build import build_learner
from metastep.train.crew import _LAST_WORDS, Crew, CrewConfig, check_crew

OPTIONS = {
    "tasks": "sinusoid", "hidden": (6,), "shots": 4, "tasks_per_step": 4, "alpha": 0.05,
    "meta_lr": 1e-2, "eval_every": 8, "log_every": 2, "eval_tasks": 3,
}  # fmt: skip
ARGUMENTS = [
    "train", "sinusoid", "--hidden", "6", "--shots", "4", "--tasks-per-step", "4", "--alpha", "0.05",
    "--meta-lr", "1e-2", "--eval-every", "8", "--log-every", "2", "--eval-tasks", "3", "--json",
    "--iterations", "100000", "--checkpoint-seconds", "0.2", "--heartbeat", "10",
]  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_pair(out, follower_out):
    """Two processes of one run; only the first one's folder is to be written to."""
    where = f"127.0.0.1:{free_port()}"
    code = "from metastep.cli import main; main()"
    pair = []
    for index, folder in enumerate((out, follower_out)):
        place = ["--coordinator", where, "--processes", "2", "--process-id", str(index)]
        command = [sys.executable, "-c", code, *ARGUMENTS, "--out", str(folder), *place]
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        pair.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    return pair


def wait_for_checkpoint(folder, pair, iteration):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and all(process.poll() is None for process in pair):
        steps = [int(p.name) for p in folder.checkpoints.glob("*") if p.name.isdigit()]
        if steps and max(steps) >= iteration:
            return
        time.sleep(0.05)
    for process in pair:
        process.kill()
    pytest.fail("\n".join(process.communicate()[1][-1500:] for process in pair))


def trained(folder):
    """Iteration, parameters and optimiser of the newest checkpoint."""
    config, description, _ = folder.read_config()
    rates = read_json(folder.rates)
    learner = build_learner(config, description, rates["alpha_chosen"], rates["meta_lr"])
    checkpoints = Checkpoints(folder.checkpoints)
    state = checkpoints.restore(initial_state(learner, jax.random.key(0)))
    checkpoints.close()
    return int(state.iteration), jax.tree.leaves((state.meta, state.optimizer_state))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_two_processes_equal_one_and_survive_as_a_checkpoint(tmp_path, victim):
    folder, follower = RunFolder(tmp_path / "run"), tmp_path / "follower"
    pair = start_pair(folder.path, follower)
    wait_for_checkpoint(folder, pair, 8)
    pair[victim].kill()
    (_, _), (out, said) = (pair[i].communicate(timeout=90) for i in (victim, 1 - victim))
    assert pair[victim].returncode == -signal.SIGKILL
    assert out == ""
    assert not follower.exists()
    if victim == 1:
        assert pair[0].returncode == 3
        line = said.strip().splitlines()[-1]
        assert line.startswith("metastep: process 0 of 2: process 1 was lost (")
        assert "start all processes again with --resume" in line
        assert f"the checkpoint of iteration {trained(folder)[0]} is kept" in line
    else:  # the runtime itself ends those that lose process 0; which of two lines comes is a race
        assert pair[1].returncode not in (0, 2)
        assert "metastep: process 1 of 2" in said
        assert "start all processes again with --resume" in said
        assert trained(folder)[0] >= 8
        return

    # What two processes had computed until then is what one computes, and one can go on from it.
    iteration, found = trained(folder)
    alone = RunFolder(tmp_path / "alone")
    train(TrainConfig(**OPTIONS, iterations=iteration), alone)
    expected = trained(alone)[1]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert resume(folder, iterations=iteration + 2).iterations == iteration + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 2}, "--processes needs --coordinator HOST:PORT, the address of process 0"),
        ({"process_id": 0}, "--process-id needs --coordinator"),
        ({"coordinator": "a:1"}, "--coordinator needs --processes and --process-id too"),
        ({"coordinator": "a:1", "processes": 2}, "--coordinator needs --process-id too"),
        (
            {"coordinator": "a:1", "processes": 2, "process_id": 2},
            "--process-id is 2, but 2 processes are numbered from 0 to 1",
        ),
        (
            {"coordinator": "a", "processes": 2, "process_id": 0},
            "--coordinator is 'a'; give HOST:PORT of process 0",
        ),
        ({"devices": 0}, "--devices is 0; it must be a whole number of at least 1"),
        ({"heartbeat": 1}, "--heartbeat is 1; it must be a whole number of at least 10"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(InputError, match=message):
        check_crew(CrewConfig(**options))


def test_without_a_launcher_the_command_says_so(tmp_path):
    code = "from metastep.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "sinusoid", "--distributed", "--out", tmp_path / "r"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--distributed finds no SLURM or Open MPI job around this process" in done.stderr
    assert "or give --coordinator, --processes and --process-id" in done.stderr


def launched_by(launcher, index, job):
    """The environment that a launcher of two processes on this machine gives to one of them."""
    if launcher == "SLURM":
        return {
            "SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
        }  # fmt: skip
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job * 2**12}.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["SLURM", "Open MPI"])
def test_processes_find_each_other_by_what_a_launcher_tells_them(launcher):
    code = (
        "from metastep.train import CrewConfig, join; crew = join(CrewConfig(distributed=True));"
        "from jax.experimental import multihost_utils as utils; import numpy as np;"
        "print(crew.index, crew.size, int(utils.process_allgather(np.int32(crew.index)).sum()))"
    )
    # JAX takes one of the last 4,096 ports, by the number of the job.
    job = next(j for j in range(os.getpid(), os.getpid() + 99) if port_is_free(61440 + j % 4096))
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | launched_by(launcher, index, job),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    said = [process.communicate(timeout=200)[0].splitlines()[-1] for process in pair]
    assert said == ["0 2 1", "1 2 1"]


def port_is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun, of Open MPI 4")
def test_the_open_mpi_line_of_the_guide(tmp_path):
    folder = RunFolder(tmp_path / "run")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    code = "from metastep.cli import main; main()"
    arguments = [*ARGUMENTS, "--distributed", "--iterations", "6", "--out", str(folder.path)]
    done = subprocess.run(
        ["mpirun", "-np", "2", "--oversubscribe", sys.executable, "-c", code, *arguments],
        env=os.environ | as_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["iterations"] == 6  # of both processes one prints
    iteration, found = trained(folder)
    alone = RunFolder(tmp_path / "alone")
    train(TrainConfig(**OPTIONS, iterations=6), alone)
    assert iteration == 6
    for a, b in zip(found, trained(alone)[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


class Wire:
    """Stands in for the other processes: replays what they would contribute to each exchange."""

    def __init__(self, monkeypatch, others=(), from_leader=None):
        self.others, self.from_leader = list(others), list(from_leader or [])
        where = "metastep.train.crew.multihost_utils"
        monkeypatch.setattr(f"{where}.process_allgather", self.allgather)
        monkeypatch.setattr(f"{where}.broadcast_one_to_all", self.broadcast)

    def allgather(self, mine):
        theirs = self.others.pop(0)
        padded = np.zeros_like(mine) if theirs is None else np.resize(theirs, mine.shape)
        return np.stack([mine, padded.astype(mine.dtype)])

    def broadcast(self, mine):
        return self.from_leader.pop(0) if self.from_leader else mine


def test_any_process_can_stop_but_the_clock_is_that_of_process_0(monkeypatch):
    Wire(monkeypatch, others=[np.array([1, 99, 0])])
    assert Crew(0, 2).agree(False, 7, True) == (True, 7, True)


def test_errors_reach_every_process(monkeypatch):
    text = b"no such file"
    Wire(monkeypatch, others=[np.frombuffer(text.ljust(2000, b"\0"), np.uint8)])
    with pytest.raises(UserError, match=r"^process 1: no such file$"):
        Crew(0, 2).together(lambda: "fine here")

    record = json.dumps({"error": "disk full"}).encode()
    Wire(monkeypatch, from_leader=[np.int32(len(record)), np.frombuffer(record, np.uint8)])
    with pytest.raises(UserError, match=r"^disk full$"):
        Crew(1, 2).from_leader(lambda: pytest.fail("only process 0 may be asked"))

    record = json.dumps({"value": "abc"}).encode()
    told = [np.int32(len(record)), np.frombuffer(record, np.uint8)]
    Wire(monkeypatch, others=[None], from_leader=told)
    with pytest.raises(UserError, match="process 0: its tasks differ from those of process 0"):
        Crew(1, 2).check_same("tasks", lambda: "abd")


def test_a_lost_connection_is_one_line_and_a_bug_stays_a_bug():
    lost = ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:5] Connection closed by peer [h]:5")
    start, end = (
        r"another process was lost \(Connection closed by peer \[h\]:5\); ",
        "with --resume",
    )
    for index, kept, what in (
        (0, 40, f"the checkpoint of iteration 40 is kept: start all processes again {end}"),
        (0, None, "nothing was saved yet: start all processes again$"),
        (2, None, "the last checkpoint, with process 0, is kept: start all"),
    ):
        line = f"^process {index} of 3: {start}{what}"
        with pytest.raises(ProcessLostError, match=line), Crew(index, 3).watched(lambda k=kept: k):
            raise lost
    with pytest.raises(ZeroDivisionError), Crew(0, 2).watched(lambda: 40):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="Gloo"), Crew().watched(lambda: 40):  # nobody to lose
        raise lost


@pytest.mark.parametrize(("given", "said"), [("gone\n", "gone\n"), ("gone\n\n", "")])
def test_the_last_words_are_said_only_without_a_farewell(given, said):
    # The end of its input is all that the witness sees of a process that was killed.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAST_WORDS],
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == said
