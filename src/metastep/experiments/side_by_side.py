"""One function called for several names, each in a process of its own, several at a time."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from metastep.experiments.core import Tell


@dataclasses.dataclass(frozen=True)
class Died:
    """Instead of what a call returns: its process ended before it did.

    Attributes
    ----------
    status : exit status of the process; minus the signal that ended it
    """

    status: int | None

    def __str__(self) -> str:
        """What happened, in words."""
        if self.status is None or self.status >= 0:
            return f"its process ended with exit status {self.status}"
        name = signal.Signals(-self.status).name
        hint = "; is there too little memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"


@dataclasses.dataclass(frozen=True)
class _Returned:
    value: Any


def side_by_side(
    work: Callable[[str, Tell], Any],
    names: Sequence[str],
    jobs: int,
    tell: Callable[[str], Tell],
) -> Iterator[tuple[str, Any]]:
    """Call `work(name, told)` for every name; yield (name, what it returned or `Died`) as they end.

    Parameters
    ----------
    work : can be pickled, as can what it returns; what it tells is told here
    names : begun in this order
    jobs : how many at a time
    tell : name -> what its `told` calls are passed on to

    Processes are spawned: a script that calls this does so under `if __name__ == "__main__"`. Leaving the iterator
    ends those that still run.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(names)
    running: dict[Any, tuple[str, BaseProcess, Tell]] = {}  # by connection
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_call, args=(work, name, theirs), name=name)
                process.start()
                theirs.close()  # so that its end is seen when the process is gone
                running[mine] = name, process, tell(name)
            for connection in wait(list(running)):
                name, process, told = running[connection]
                message = _received(connection, process)
                if isinstance(message, tuple):
                    told(*message)
                    continue
                del running[connection]
                process.join()
                yield name, message.value if isinstance(message, _Returned) else message
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.join()


def _received(connection: Any, process: BaseProcess) -> tuple | _Returned | Died:
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return Died(process.exitcode)


def _call(work: Callable[[str, Tell], Any], name: str, connection: Connection) -> None:
    """In the process of its own."""
    # Ctrl-C goes to all of a terminal's processes; ours are ended by the one that started them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def told(text: str, done: int, total: int) -> None:
        try:
            connection.send((text, done, total))
        except OSError:  # nobody is there any more
            os._exit(1)

    returned = work(name, told)
    with contextlib.suppress(OSError):
        connection.send(_Returned(returned))
    connection.close()
