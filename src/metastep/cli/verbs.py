"""One function per verb: options in, library called, result written."""

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from metastep import datasets
from metastep._errors import DivergenceError, InputError, check_count, check_positive
from metastep._records import to_plain, write_json
from metastep.cli.endings import show, write_report
from metastep.cli.options import (
    AdaptOptions,
    EvaluateOptions,
    FetchOptions,
    InfoOptions,
    RatesOptions,
    TrainOptions,
)
from metastep.cli.predictions import score, write_predictions
from metastep.cli.progress import Fanout, TensorBoardObserver, error_console, watching
from metastep.cli.together import taking_part
from metastep.train import (
    RunFolder,
    TaskPredictions,
    TrainConfig,
    adapt_and_predict,
    certify_run,
    choose_rates,
    evaluate_run,
    load_run,
    load_tasks,
    measure_edges,
    measure_rates,
)
from metastep.train import resume as resume_run
from metastep.train import train as train_run
from metastep.train.config import as_training, check_config, with_preset
from metastep.train.crew import Crew, join
from metastep.train.problem import SYNTHETIC, filled, load_files
from metastep.train.references import is_own

Options = TypeVar("Options")


def parse(options: type[Options], name: str, arguments: Sequence[str]) -> Options:
    """Options from the command line; a usage error or --help ends the program as usual."""
    return tyro.cli(options, prog=f"metastep {name}", args=list(arguments))


def rates(arguments: list[str]) -> None:
    """`metastep rates TASKS`."""
    options = parse(RatesOptions, "rates", arguments)
    if options.map_iterations is not None:
        check_count("--map-iterations", options.map_iterations)
    training = as_training(options, iterations=options.iterations, rehearse=options.rehearse)
    check_config(training)
    console = error_console()
    with console.status("measuring the adaptation rate"):
        task_set = load_tasks(options)
        advice = measure_rates(options, task_set, num_tasks=options.num_tasks)

    def announce(stage: str, rehearsal: dict[str, Any]) -> None:
        del stage
        console.print(_rehearsal_line(rehearsal))

    training = filled(training, task_set.description)
    record = choose_rates(training, task_set, announce, advice)
    if options.edges or not task_set.description["images"]:
        with console.status("measuring the largest stable rates"):
            record |= measure_edges(options, task_set, record["alpha_chosen"])
    in_a_run = f"in a run of {training.iterations:,} meta-steps"
    record["meta_lr_reason"] = f"{in_a_run}: {record['meta_lr_reason']}"
    if options.map:
        from metastep.cli.mapping import draw_map  # draws, which nothing else here does

        record["map"] = draw_map(options, task_set, record["alpha_chosen"])
    show(record, "rates", as_json=options.json)


def _rehearsal_line(record: dict[str, Any]) -> str:
    return (
        f"short training {record['number']} of at most {record['most']}, {record['meta_steps']} "
        f"meta-steps at alpha {record['alpha']:.3g}: loss {record['loss']:.4g}"
    )


def train(arguments: list[str]) -> None:
    """`metastep train TASKS --out RUN`."""
    options = parse(TrainOptions, "train", arguments)
    crew, folder = join(options), RunFolder(options.out)
    with taking_part(crew):
        if options.resume:
            result = _resume(options, folder, crew)
        else:
            result = _start(options, folder, crew, f"metastep train {shlex.join(arguments)}")
    if not crew.leads:
        return
    record = to_plain(result) | {"report": str(write_report(folder.path))}
    show(record, "info", as_json=options.json)


def _library_config(options: TrainOptions) -> TrainConfig:
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(options, name) for name in names})


def _tasks_lines(record: dict[str, Any]) -> str:
    """What is trained on, and which columns of a table are not."""
    lines = (
        f"tasks {record['name']}: {record['kind']}, examples of shape {record['input_shape']}, "
        f"{record['shots']} shots, {record['queries']} queries"
    )
    if record.get("left_out"):
        lines += (
            f"\ncolumns left out, as no numbers or not asked for: {', '.join(record['left_out'])}"
        )
    return lines


def _start(options: TrainOptions, folder: RunFolder, crew: Crew, command: str):
    console = error_console()
    config = with_preset(_library_config(options))
    if not config.tasks:
        raise InputError("metastep train needs TASKS (or --resume): a name or a path, see --help")

    def announce(stage: str, record: dict[str, Any]) -> None:
        if stage == "tasks":
            console.print(_tasks_lines(record))
            if config.alpha == "auto":
                console.print("measuring alpha")
        elif stage == "rehearsal":
            console.print(_rehearsal_line(record))
        else:
            console.print(
                f"alpha {record['alpha_chosen']:.4g} ({record['alpha_reason']})\n"
                f"meta rate {record['meta_lr']:.4g} ({record['meta_lr_reason']})"
            )
            for note in record["notes"]:
                console.print(note, markup=False)
            for warning in record["warnings"]:
                console.print(f"warning: {warning}", style="yellow", markup=False)
            if "memory_reason" in record:
                console.print(f"memory: {record['memory_reason']}")

    if not crew.leads:
        return train_run(config, folder, crew=crew)
    with watching(console) as observer:
        return _diverging_report(
            folder,
            lambda: train_run(
                config,
                folder,
                _with_tensorboard(observer, config, folder),
                overwrite=options.overwrite,
                command=command,
                announce=announce,
                crew=crew,
            ),
        )


def _resume(options: TrainOptions, folder: RunFolder, crew: Crew):
    if not crew.leads:
        return resume_run(folder, iterations=options.iterations, crew=crew)
    config, _, _ = folder.read_config()
    with watching(error_console()) as observer:
        watched = _with_tensorboard(observer, config, folder)
        return _diverging_report(
            folder, lambda: resume_run(folder, watched, options.iterations, crew)
        )


def _with_tensorboard(observer: Any, config: TrainConfig, folder: RunFolder) -> Any:
    if not config.tensorboard:
        return observer
    return Fanout(observer, TensorBoardObserver(str(folder.path / "tensorboard")))


def _diverging_report(folder: RunFolder, run: Any):
    """A run that diverges still gets its report, which shows where the curves went."""
    try:
        return run()
    except DivergenceError:
        write_report(folder.path)
        raise


def evaluate(arguments: list[str]) -> None:
    """`metastep evaluate RUN`."""
    options = parse(EvaluateOptions, "evaluate", arguments)
    _check_alpha(options.alpha)
    folder = RunFolder(options.run)
    run = load_run(folder, options.checkpoint)
    with error_console().status(f"evaluating {options.num_tasks} held-out tasks"):
        evaluation, examples = evaluate_run(
            run,
            num_tasks=options.num_tasks,
            steps=options.steps,
            shots=options.shots,
            queries=options.queries,
            alpha=options.alpha,
            seed=options.seed,
            transductive=options.transductive,
            halvings=options.halvings,
        )
    record = {
        "run": str(options.run),
        "split": "test",
        "checkpoint": run.iteration,
        "seed": run.config.seed if options.seed is None else options.seed,
        "steps": evaluation.after.steps,
        **evaluation.record(),
    }
    if options.stationarity:
        with error_console().status("measuring the meta-gradient"):
            certificate = certify_run(
                run, num_tasks=options.num_tasks, alpha=options.alpha, seed=options.seed
            )
        record["stationarity"] = certificate.record()
    write_json(folder.evaluation, record)
    if examples:
        folder.write_arrays(folder.examples, examples)
    write_report(folder.path)
    show(record, "evaluation", as_json=options.json)


def adapt(arguments: list[str]) -> None:
    """`metastep adapt RUN --support A --query B --out P`."""
    options = parse(AdaptOptions, "adapt", arguments)
    _check_alpha(options.alpha)
    run = load_run(RunFolder(options.run), options.checkpoint)
    like = _rows_like(run.description)
    support_x, support_y = datasets.load_rows(options.support, like)
    query_x, query_y = datasets.load_rows(options.query, like, need_y=False)
    out = options.out or options.query.with_name("predictions.npz")
    assert support_y is not None  # load_rows raises without labels
    told = adapt_and_predict(
        run,
        support_x,
        support_y,
        query_x,
        steps=options.steps,
        alpha=options.alpha,
        transductive=options.transductive,
        halvings=options.halvings,
    )
    write_predictions(out, told.arrays(), run.description)
    record = {
        "out": str(out),
        "support": len(support_x),
        "query": len(query_x),
        **score(told, query_y, run.description["kind"]),
        "halvings": told.halvings,
        "unadapted": told.unadapted,
    }
    if told.halvings:
        error_console().print(_halved(told))
    show(record, "info", as_json=options.json)


def _halved(told: TaskPredictions) -> str:
    """What became of a task on which the rate of training was too high."""
    if told.unadapted:
        return (
            "the support loss rises at the adaptation rate and at a thousandth of it: the predictions are those "
            "before adaptation. Is this task like those of training, in the same units?"
        )
    return (
        "the adaptation rate was lowered for this task, as it would have raised the support loss (halvings of "
        f"inner steps: {told.halvings})"
    )


def _rows_like(description: dict[str, Any]) -> dict[str, Any]:
    names = ("x_names", "y_names", "labels", "task_column")
    return {
        "kind": "images" if description["images"] else description["kind"],
        "feature_shape": description["input_shape"],
        "num_outputs": description["output_size"],
        **{name: description[name] for name in names if name in description},
    }


def _check_alpha(alpha: float | None) -> None:
    if alpha is not None:
        check_positive("--alpha", alpha)


def data(arguments: list[str]) -> None:
    """`metastep data fetch NAME` and `metastep data info TASKS`."""
    actions = {"fetch": _fetch, "info": _info}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: metastep data {fetch,info} ...\n\n"
            "  fetch omniglot   download the official files with checksum, or take --from DIR\n"
            "  info TASKS       classes or tasks, examples, shapes, columns, ranges\n\n"
            "example: metastep data info sensors.csv"
        )
        return
    if arguments[0] not in actions:
        raise InputError(f"there is no 'data {arguments[0]}'; choose fetch or info")
    actions[arguments[0]](arguments[1:])


def _fetch(arguments: list[str]) -> None:
    options = parse(FetchOptions, "data fetch", arguments)
    console = error_console()
    with console.status(f"fetching {options.name}") as status:

        def progress(file: str, received: int, total: int) -> None:
            share = f" of {total / 1e6:.1f}" if total else ""
            status.update(f"{file}: {received / 1e6:.1f}{share} MB")

        fetched = datasets.fetch_omniglot(
            datasets.data_root(options.data), options.source, progress=progress
        )
    record = {"name": options.name, "folder": str(fetched.folder), "files": fetched.actions}
    show(record, "info", as_json=options.json)


def _info(arguments: list[str]) -> None:
    options = parse(InfoOptions, "data info", arguments)
    if options.tasks in SYNTHETIC or is_own(options.tasks):
        record = load_tasks(options).description
    elif options.tasks == "omniglot":
        root = datasets.data_root(options.data)
        record = datasets.describe(
            datasets.load_omniglot(root, options.split, options.image_size or 28)
        )
    else:
        check_count("--seed", options.seed, minimum=0)
        record = datasets.describe(load_files(options))
    record = {"source": options.tasks, **record}
    show(record, "info", as_json=options.json)
