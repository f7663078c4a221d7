"""The entry point: verbs, exit statuses, and what a user sees of an error."""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from metastep._errors import ProcessLostError, UserError

PROGRAM = "metastep"

DESCRIPTION = """Meta-learning whose learning rates come from theory and measurement.

  metastep rates sinusoid                   what alpha should be, before any training
  metastep train sinusoid --out RUN         meta-train at that rate, with a report
  metastep evaluate RUN                     600 held-out tasks
  metastep adapt RUN --support A.csv --query B.csv --out P.csv
  metastep reproduce all --out DIR          the papers' figures, and which claims hold
  metastep data info my_sensors.csv

`metastep VERB --help` has the options of a verb and an example."""

_SUMMARIES = {
    "rates": "Estimate the adaptation rate of tasks and model before any training.",
    "train": "Meta-train, with measured rates unless others are given.",
    "evaluate": "Judge a run on held-out tasks.",
    "adapt": "Adapt a trained run to one new task and predict.",
    "reproduce": "Reproduce the papers' figures and tables, and test their claims.",
    "data": "Fetch data, or look at it.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb.

    Exit status 0: done; 2: something the user can mend; 3: another process was lost; 130: interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        _print_overview()
        return
    if given[0] == "--version":
        import metastep

        print(f"{PROGRAM} {metastep.__version__}")
        return
    try:
        with _no_garbage():
            verb = _verb(given)
        verb(given[1:])
    except ProcessLostError as error:
        print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr, flush=True)
        os._exit(3)  # a farewell would wait for the one that is lost
    except UserError as error:
        print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Import without collecting garbage, of which imports leave none: looking for it is a quarter of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is there now stays
        gc.enable()


def _verb(command: list[str]) -> Callable[[list[str]], Any]:
    name = command[0]
    if name not in _SUMMARIES:
        known = ", ".join(_SUMMARIES)
        raise UserError(f"there is no verb {name!r}; choose one of: {known} (see {PROGRAM} --help)")
    if name == "reproduce":  # its --list needs no jax
        from metastep.cli.reproduce import reproduce

        return reproduce
    from metastep.cli.process import settle_process

    settle_process(command)
    from metastep.cli import verbs

    return getattr(verbs, name)


def _print_overview() -> None:
    width = max(map(len, _SUMMARIES))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in _SUMMARIES.items())
    print(f"usage: {PROGRAM} VERB [options]\n\n{DESCRIPTION}\n\nverbs:\n{verbs}")


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())
