"""The one sentence at the head of a report: what was run and what came out."""

import math
from typing import Any

from metastep.report._format import as_number, count, estimate, number, plain, plural
from metastep.report.folder import Run

ALGORITHMS = {
    "maml": "MAML",
    "fomaml": "First-order MAML",
    "hfmaml": "Hessian-free MAML",
    "anil": "ANIL",
    "reptile": "Reptile",
    "metasgd": "Meta-SGD",
    "imaml": "Implicit MAML",
    "erm": "ERM (joint training without adaptation)",
}


def what_was_run(run: Run) -> str:
    """Algorithm, model, tasks and length of training, as far as they are recorded."""
    train = run.config.get("train") or {}
    algorithm = plain(train.get("algorithm", "a meta-learner"))
    subject = ALGORITHMS.get(algorithm, algorithm)
    name = train.get("model")
    model = "" if name in (None, "auto") else f" {_article(plain(name))} model"
    iterations = as_number(run.status.get("iterations", _last_iteration(run)))
    length = f" for {plural(int(iterations), 'iteration')}" if math.isfinite(iterations) else ""
    return f"{subject} meta-trained{model} on {task_name(run)}{_protocol(run)}{length}"


def task_name(run: Run) -> str:
    """The name of the tasks, as recorded."""
    tasks = run.config.get("tasks")
    name = tasks.get("name") if isinstance(tasks, dict) else tasks
    return plain(name) if name else "unnamed tasks"


def _article(name: str) -> str:
    """The name behind its article, for names that are read out letter by letter too."""
    return f"an {name}" if name[:1] in "aeio" or name.startswith("mlp") else f"a {name}"


def _protocol(run: Run) -> str:
    """Ways and shots: as resolved with the tasks, else as asked for."""
    tasks, train = run.config.get("tasks"), run.config.get("train") or {}
    described = tasks if isinstance(tasks, dict) else {}
    ways, shots = (described.get(key) or train.get(key) for key in ("ways", "shots"))
    if described.get("kind") == "classification" and ways and shots:
        return f" ({plain(ways)}-way {plain(shots)}-shot)"
    return f" ({plain(shots)}-shot)" if shots else ""


def _last_iteration(run: Run) -> Any:
    return run.rows[-1]["iteration"] if run.rows else None


def what_came_out(run: Run) -> str:
    """The best evidence there is: the evaluation, else the last finite training row."""
    if run.evaluation:
        return _evaluated(run)
    for row in reversed(run.rows):
        if math.isfinite(as_number(row.get("loss"))):
            before = as_number(row.get("loss_before"))
            start = f"from {number(before)} " if math.isfinite(before) else ""
            return (
                f"at iteration {count(row['iteration'])} adaptation took the loss of the training "
                f"tasks {start}to {number(row['loss'])}; the run has not been evaluated on "
                "held-out tasks"
            )
    if run.rows:
        return "the training loss was not finite in any logged row"
    return "no training row was logged and the run has not been evaluated"


def _evaluated(run: Run) -> str:
    record = run.evaluation
    before = record.get("before") or {}
    tasks = f"{count(record['num_tasks'])} " if "num_tasks" in record else ""
    steps = f"{plural(record['steps'], 'inner step')} " if "steps" in record else "adaptation "
    verb = "takes" if record.get("steps", 1) == 1 else "take"
    is_accuracy = record.get("accuracy") is not None
    key = "accuracy" if is_accuracy else "loss"
    known = before.get(key) is not None
    start = f"from {estimate(before[key], as_percent=is_accuracy)} " if known else ""
    end = estimate(record.get(key), as_percent=is_accuracy)
    name = "accuracy" if is_accuracy else "query loss"
    return f"on {tasks}held-out tasks {steps}{verb} the {name} {start}to {end}"


def how_it_ended(run: Run) -> tuple[str, str]:
    """The status word and a sentence, empty for a run that finished."""
    word = plain(run.status.get("status", "unknown"))
    reached = count(run.status.get("iterations", _last_iteration(run)))
    wanted = (run.config.get("train") or {}).get("iterations")
    place = f"at iteration {reached}" + (f" of {count(wanted)}" if wanted is not None else "")
    message = plain(run.status.get("message") or "")
    sentences = {
        "running": f"Training was still running {place} when this report was written.",
        "interrupted": f"Training was interrupted {place}; --resume continues it.",
        "diverged": f"Training diverged {place}.",
    }
    default = (
        "How the run ended is not recorded (status.json is missing)." if not run.status else ""
    )
    sentence = sentences.get(word, default)
    if sentence and message:
        return word, f"{sentence.rstrip('.')}: {message}"
    return word, sentence or message


def sentence(run: Run) -> str:
    """What was run, the rate it adapted with, and what came out."""
    given = (run.config.get("train") or {}).get("alpha")  # "auto", or the number asked for
    alpha = as_number(run.rates.get("alpha_chosen", given))
    rate = f", adapting at α\u00a0=\u00a0{number(alpha)}" if math.isfinite(alpha) else ""
    return f"{what_was_run(run)}{rate}; {what_came_out(run)}."
