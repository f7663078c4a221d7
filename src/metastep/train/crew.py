"""The processes of a run: how they find each other, what they decide together, and what is left when one is lost.

Process 0 leads: it alone reads checkpoints, writes files and prints. Whatever hangs on a clock, a signal or a file is
decided by it, or by all together, before anybody acts on it: processes that do different things wait for each other
for ever.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from metastep._errors import InputError, ProcessLostError, UserError, check_count
from metastep.train.devices import make_mesh

Tree = TypeVar("Tree")
Result = TypeVar("Result")

# What the runtimes of CPU and GPU say when the other end of a collective is gone.
_SIGNS_OF_LOSS = ("gloo", "nccl", "connection closed", "connection reset", "coordination service")
_GO_ON = "start all processes again with --resume, as many of them as there are now"
_LONGEST_ERROR = 2_000  # bytes of a message that is passed on

# Seconds that processes wait for each other at the start.
_PATIENCE = 300

# Prints the last line it was given, once whoever gives them is gone; an empty one is nothing to say.
_LAST_WORDS = """
import sys
last = ""
for line in sys.stdin:
    last = line.strip()
if last:
    print(last, file=sys.stderr)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrewConfig:
    """On how many devices and processes a run is computed; none of it changes what is computed."""

    devices: int | None = None
    """Devices of each process to deal the tasks of a meta-step out to; their number must divide --tasks-per-step.
    Default: all accelerators (or as many as deal the tasks out evenly); 1 on CPU."""
    distributed: bool = False
    """This is one of several processes that SLURM (srun) or Open MPI (mpirun) started: how many there are, and
    which of them this is, is taken from there."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no launcher says it; give --processes and --process-id too."""
    processes: int | None = None
    """How many processes there are, with --coordinator."""
    process_id: int | None = None
    """Which of them this is, from 0, with --coordinator."""
    heartbeat: int = 60
    """Seconds after which a process that gives no sign of life is taken for lost, and the run ends."""


def check_crew(config: CrewConfig) -> None:
    """Raise an `InputError` that names the first option that cannot be used."""
    if config.devices is not None:
        check_count("--devices", config.devices)
    check_count("--heartbeat", config.heartbeat, minimum=10)
    together = {"--processes": config.processes, "--process-id": config.process_id}
    if config.coordinator is None:
        for name, value in together.items():
            if value is not None:
                raise InputError(f"{name} needs --coordinator HOST:PORT, the address of process 0")
        return
    missing = [name for name, value in together.items() if value is None]
    if missing:
        raise InputError(f"--coordinator needs {' and '.join(missing)} too")
    processes, index = config.processes or 0, config.process_id or 0
    check_count("--processes", processes)
    check_count("--process-id", index, minimum=0)
    if index >= processes:
        raise InputError(
            f"--process-id is {index}, but {processes} processes are numbered from 0 to {processes - 1}"
        )
    if not config.coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator is {config.coordinator!r}; give HOST:PORT of process 0")


@dataclasses.dataclass(frozen=True)
class Crew:
    """The processes of a run, as one of them sees them; alone by default.

    Attributes
    ----------
    index, size : which process this is, of how many
    devices : of each process; None for the default
    """

    index: int = 0
    size: int = 1
    devices: int | None = None

    @property
    def leads(self) -> bool:
        """Whether this process reads, writes and prints."""
        return self.index == 0

    def mesh(self, tasks_per_step: int) -> Mesh | None:
        """The devices of all processes; None for a single one."""
        return make_mesh(self.devices, tasks_per_step)

    def agree(self, stop: bool, steps: int, save: bool) -> tuple[bool, int, bool]:
        """What to do next: stop if any process was asked to; for the rest, the clock of process 0 counts."""
        if self.size == 1:
            return stop, steps, save
        wishes = multihost_utils.process_allgather(np.array([stop, steps, save], np.int32))
        return bool(wishes[:, 0].any()), int(wishes[0, 1]), bool(wishes[0, 2])

    def same(self, tree: Tree) -> Tree:
        """The arrays of process 0, everywhere."""
        if self.size == 1:
            return tree
        return jax.tree.map(jax.numpy.asarray, multihost_utils.broadcast_one_to_all(tree))

    def from_leader(self, function: Callable[[], Result]) -> Result:
        """What `function` returns on process 0, where alone it is called; it must fit into JSON.

        Raises
        ------
        UserError
            On every process, when it raises one on process 0.
        """
        if self.size == 1:
            return function()
        record: dict[str, Any] = {}
        if self.leads:
            try:
                record = {"value": function()}
            except UserError as error:
                self._tell(json.dumps({"error": str(error)}))
                raise
        record = json.loads(self._tell(json.dumps(record)))
        if "error" in record:
            raise UserError(record["error"])
        return record["value"]

    def together(self, function: Callable[[], Result]) -> Result:
        """What `function` returns on each process.

        Raises
        ------
        UserError
            On every process, when it raises one on any of them.
        """
        if self.size == 1:
            return function()
        result, message = None, b""
        try:
            result = function()
        except UserError as error:
            message = str(error).encode()[:_LONGEST_ERROR]
        padded = np.frombuffer(message.ljust(_LONGEST_ERROR, b"\0"), np.uint8)
        for index, row in enumerate(np.asarray(multihost_utils.process_allgather(padded))):
            if row[0]:
                text = row.tobytes().rstrip(b"\0").decode(errors="replace")
                raise UserError(text if self.size == 1 else f"process {index}: {text}")
        return result  # pyright: ignore[reportReturnType]

    def check_same(self, what: str, fingerprint: Callable[[], str]) -> None:
        """Raise on every process unless all have the same `fingerprint` of `what`."""
        if self.size == 1:
            return
        mine = fingerprint()
        wanted = self.from_leader(lambda: mine)

        def compare() -> None:
            if mine != wanted:
                raise InputError(
                    f"its {what} differ from those of process 0; give every process the same files and options"
                )

        self.together(compare)

    def _tell(self, text: str) -> str:
        """The text of process 0, everywhere."""
        mine = np.frombuffer(text.encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(mine))))
        padded = mine if self.leads else np.zeros(length, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes().decode()

    @contextmanager
    def watched(self, kept: Callable[[], int | None]) -> Iterator[None]:
        """Turn the loss of another process into one line, whichever way it comes to light.

        Most losses break a connection, and surface here as an error. When process 0 is lost, or one that is only
        silent, the runtime ends this process itself; then a small process of its own, which outlives it, has the
        last word.

        Parameters
        ----------
        kept : the iteration of the last checkpoint, asked of process 0 when needed

        Raises
        ------
        ProcessLostError
        """
        if self.size == 1:
            yield
            return
        with _last_words(self._epitaph()):
            try:
                yield
            except UserError:
                raise
            except Exception as error:
                if not any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS):
                    raise
                raise ProcessLostError(self._obituary(error, kept())) from error

    def _obituary(self, error: Exception, kept: int | None) -> str:
        lost = f"process {1 - self.index}" if self.size == 2 else "another process"
        sign = str(error).splitlines()[0].rpartition("] ")[2][:120]
        said = f"process {self.index} of {self.size}: {lost} was lost ({sign})"
        if self.leads and kept is None:
            return f"{said}; nothing was saved yet: start all processes again"
        what = (
            f"checkpoint of iteration {kept}" if self.leads else "last checkpoint, with process 0,"
        )
        return f"{said}; the {what} is kept: {_GO_ON}"

    def _epitaph(self) -> str:
        return (
            f"metastep: process {self.index} of {self.size} was ended from outside, or by the runtime because "
            f"{'another process' if self.leads else 'process 0 or another one'} was lost; the last checkpoint is "
            f"kept: {_GO_ON}"
        )


ALONE = Crew()


@contextmanager
def _last_words(text: str) -> Iterator[None]:
    """Have `text` printed on stderr if this process ends before it leaves the context."""
    command = [sys.executable, "-I", "-S", "-c", _LAST_WORDS]
    witness = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert witness.stdin is not None
    witness.stdin.write(text + "\n")
    witness.stdin.flush()
    try:
        yield
    finally:
        witness.stdin.write("\n")
        witness.stdin.close()
        witness.wait()


def join(config: CrewConfig) -> Crew:
    """Meet the other processes; alone when no option says that there are any. Before anything else touches JAX.

    Raises
    ------
    InputError
        When the options do not fit together, or the others cannot be reached.
    """
    check_crew(config)
    if not (config.distributed or config.coordinator):
        return Crew(devices=config.devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours to handle
    where = config.coordinator or "the address its launcher gave"
    unmet = (
        f"the other processes cannot be met at {where}; check that process 0 runs there, that its port is free and "
        f"reachable, and that as many processes were started as were announced"
    )
    try:
        with _last_words(f"metastep: {unmet}"):  # the runtime gives up by ending the process
            jax.distributed.initialize(
                config.coordinator,
                config.processes,
                config.process_id,
                cluster_detection_method="deactivate" if config.coordinator else None,
                heartbeat_timeout_seconds=config.heartbeat,
                initialization_timeout=_PATIENCE,
            )
            index, size = jax.process_index(), jax.process_count()
    except ValueError as error:
        raise InputError(
            f"--distributed finds no SLURM or Open MPI job around this process ({str(error).splitlines()[0]}); "
            f"start it with srun or mpirun, or give --coordinator, --processes and --process-id"
        ) from error
    except RuntimeError as error:
        raise InputError(f"{unmet} ({str(error).splitlines()[0][:160]})") from error
    return Crew(index, size, config.devices)
