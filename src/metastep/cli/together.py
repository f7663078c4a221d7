"""What the command line does differently when it is one of several processes: only process 0 speaks."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from metastep._errors import ProcessLostError, UserError
from metastep.train.crew import Crew


@contextmanager
def taking_part(crew: Crew) -> Iterator[None]:
    """Let a run end as a whole.

    An error that all processes agree on is printed by process 0 alone. One that hits a single process ends it at
    once, without the farewell that the runtime would wait for, so that the others notice.
    """
    if crew.size == 1:
        yield
        return
    try:
        with _stdout_kept_clean():
            yield
    except ProcessLostError:
        raise
    except UserError:
        if crew.leads:
            raise
        sys.exit(2)
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


@contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send to stderr what libraries print on stdout, where results go: Gloo says there whom it is connected to."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
