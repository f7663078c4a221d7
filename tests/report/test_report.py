"""report.html: it says what happened, needs nothing but itself, and survives damaged runs."""

import base64
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs

from metastep._errors import InputError
from metastep.report import write_report


class Reader(HTMLParser):
    """The text, the tags and the addresses of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "data") if name in found]
        if tag == "img":
            self.images.append(found)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def figure(self, alt: str) -> str:
        """The SVG source of the image whose alternative text starts with `alt`."""
        (image,) = [image for image in self.images if image["alt"].startswith(alt)]
        head, _, data = image["src"].partition(",")
        assert head == "data:image/svg+xml;base64"
        return base64.b64decode(data).decode()


def read(run: Path) -> Reader:
    return Reader(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def regression(tmp_path_factory) -> Path:
    return write_report(runs.regression_run(tmp_path_factory.mktemp("regression")))


@pytest.fixture(scope="module")
def classification(tmp_path_factory) -> Path:
    return write_report(runs.classification_run(tmp_path_factory.mktemp("classification")))


def test_complete_regression_run_says_what_came_out(regression):
    page = Reader(regression.read_text(encoding="utf-8"))
    lead = (
        "MAML meta-trained an mlp model on sinusoid (10-shot) for 5 000 iterations, "
        "adapting at α = 0.04; on 600 held-out tasks 1 inner step takes the query loss "
        "from 4.150 ± 0.012 to 0.460 ± 0.012."
    )
    assert lead in page.text  # split() above has turned the narrow spaces into plain ones
    for expected in (
        "4.150 ± 0.012",  # loss before adaptation with its interval
        "[0.036, 0.0445]",  # interval of the measured rate
        "the rate that lowers the query loss of 256 sampled tasks most",
        "Adam's usual rate; the bound on beta does not bind it",
        "the quadratic prediction is 40 % off at twice alpha",
        "40.0 %",  # predicted gain
        "Best checkpoint: iteration 4500, validation loss 0.061.",
        "600 test tasks, 1 inner step, seed 7, query examples judged one by one",
        "metastep train sinusoid --out 'runs/my run'",
        "train.tasks_per_step",
    ):
        assert expected in page.text
    assert "accuracy" not in page.text


def test_classification_run_reports_accuracy_in_percent(classification):
    page = Reader(classification.read_text(encoding="utf-8"))
    assert "(5-way 1-shot)" in page.text
    assert "takes the accuracy from 20.00 ± 0.61 % to 87.50 ± 0.61 %" in page.text
    # loss and accuracy of training, loss and accuracy over steps, alpha, three tasks
    assert len(page.images) == 8


def test_charts_hold_their_series(classification):
    page = Reader(classification.read_text(encoding="utf-8"))
    rates = page.figure("Query loss after one step")
    for series in ("measured", "quadratic-prediction", "label-free", "best-used"):
        assert re.search(f'id="series-{series}', rates), series
    loss = page.figure("Loss before and after")
    for series in ("training-tasks-before-adaptation", "training-tasks-after-adaptation"):
        assert f'id="series-{series}"' in loss
    assert 'id="series-validation-after"' in loss
    assert 'id="best-checkpoint"' in loss
    assert 'id="not-finite"' not in loss
    task = page.figure("Task 2 before and after")
    assert 'id="series-before"' in task
    assert 'id="series-after"' in task
    assert task.count("data:image/png") >= 5  # query strip, two headers, two shaded tables


def test_page_needs_nothing_but_itself(regression, classification):
    for path in (regression, classification):
        text = path.read_text(encoding="utf-8")
        page = Reader(text)
        assert page.images
        assert all(address.startswith("data:") for address in page.addresses)
        assert not {"script", "link", "iframe", "object"} & set(page.tags)
        assert all(image["alt"] for image in page.images)
        assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
        assert "url(" not in text


def test_same_run_gives_same_bytes(tmp_path, classification):
    again = write_report(runs.classification_run(tmp_path / "elsewhere"))
    assert again.read_bytes() == classification.read_bytes()


def test_hostile_names_are_shown_not_run(tmp_path):
    name = runs.HOSTILE
    config = runs.config(name, model=name)
    config["command"] = f"metastep train {name}"
    config[name] = {name: name}
    rates = {**runs.rates(), "alpha_reason": name, "warnings": [name]}
    run = runs.write_run(
        tmp_path,
        config=config,
        rates=rates,
        status=runs.status("<b>odd</b>", message=name),
        evaluation={**runs.evaluation(), "split": name},
        rows=runs.metric_rows(),
    )
    text = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>odd" not in text
    assert text.count(html.escape("<script>")) >= 8
    assert name in Reader(text).text


def test_interrupted_run_without_evaluation(tmp_path):
    run = runs.write_run(
        tmp_path,
        config=runs.config(),
        rates=runs.rates(),
        status=runs.status("interrupted", 1200),
        rows=runs.metric_rows(1200),
    )
    page = read(run)
    assert (
        "Training was interrupted at iteration 1 200 of 5 000; --resume continues it." in page.text
    )
    assert "the run has not been evaluated on held-out tasks" in page.text
    assert "Not evaluated: evaluation.json is missing or empty." in page.text
    assert "No example tasks were saved." in page.text


def test_diverged_run_marks_where(tmp_path):
    lost = {"iteration": 1300, "loss": None, "loss_before": None}
    run = runs.write_run(
        tmp_path,
        config=runs.config(),
        status=runs.status("diverged", 1300, "the outer loop's loss is not finite"),
        rows=[*runs.metric_rows(1200), lost],
    )
    page = read(run)
    assert (
        "Training diverged at iteration 1 300 of 5 000: the outer loop's loss is not finite"
        in page.text
    )
    assert "No rates were measured" in page.text
    assert "at iteration 1 200 adaptation took" in page.text  # the last finite row
    assert 'id="not-finite"' in page.figure("Loss before and after")


def test_every_loss_lost(tmp_path):
    rows = [{"iteration": step, "loss": None, "loss_before": None} for step in (10, 20)]
    page = read(runs.write_run(tmp_path, config=runs.config(), rows=rows))
    assert "the training loss was not finite in any logged row" in page.text
    assert "The 2 logged row(s) hold no finite loss." in page.text


def test_single_row(tmp_path):
    row = {"iteration": 1, "loss": 2.5, "loss_before": 3.5, "alpha": 0.1}
    page = read(runs.write_run(tmp_path, config=runs.config(), rows=[row]))
    assert "at iteration 1 adaptation took the loss of the training tasks from 3.5 to 2.5" in (
        page.text
    )
    # A line through one point is invisible: it must be a marker.
    drawn = page.figure("Loss before and after")
    group = drawn.split('id="series-training-tasks-after-adaptation"')[1].split("</g>")[0]
    assert "<use" in group


def test_empty_metrics_and_bare_config(tmp_path):
    page = read(runs.write_run(tmp_path, config={}, rows=[]))
    assert "a meta-learner meta-trained on unnamed tasks; no training row was logged" in page.text
    assert "How the run ended is not recorded (status.json is missing)." in page.text
    assert "No training row was logged" in page.text
    assert "config.json is missing or empty." in page.text


def test_line_cut_short_by_a_kill(tmp_path):
    run = runs.write_run(tmp_path, config=runs.config(), rows=runs.metric_rows(500))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"iteration": 600, "lo')
    assert "at iteration 500 adaptation took" in read(run).text


def test_damaged_files_are_named_and_left_out(tmp_path):
    run = runs.regression_run(tmp_path)
    (run / "rates.json").write_text("{", encoding="utf-8")
    (run / "evaluation.json").write_text("[1, 2]", encoding="utf-8")
    (run / "examples.npz").write_bytes(b"PK not a zip")
    page = read(run)
    assert "rates.json could not be read" in page.text
    assert "evaluation.json does not hold a JSON object; it is left out" in page.text
    assert "examples.npz could not be read" in page.text
    assert "the pictures are left out" in page.text
    assert "Best checkpoint" in page.text


def test_pickled_examples_are_refused(tmp_path):
    run = runs.write_run(tmp_path, config=runs.config())
    examples = runs.curve_examples()
    examples["truth"] = examples["truth"].astype(object)
    runs.write_run(tmp_path, examples=examples)
    assert "examples.npz could not be read" in read(run).text


def test_examples_of_another_shape_are_named(tmp_path):
    examples = runs.curve_examples()
    examples["after"] = examples["after"][0]
    page = read(runs.write_run(tmp_path, config=runs.config(), examples=examples))
    assert "after of the examples has shape (80,); kind curves needs 2 axes" in page.text


def test_tasks_that_cannot_be_drawn_leave_no_note(tmp_path):
    page = read(runs.write_run(tmp_path, config=runs.config(), examples={}))
    assert "No example tasks were saved." in page.text
    assert "could not be read" not in page.text


def test_scatter_examples_are_drawn(tmp_path):
    page = read(runs.write_run(tmp_path, config=runs.config(), examples=runs.scatter_examples()))
    assert len(page.images) == 4
    assert "crosses" in page.text


def test_alpha_is_drawn_over_time_only_when_it_moves(tmp_path):
    rows = runs.metric_rows(1000)
    fixed = read(runs.write_run(tmp_path / "fixed", config=runs.config(), rows=rows))
    assert not [image for image in fixed.images if image["alt"].startswith("Adaptation rate")]
    moving = [{**row, "alpha": 0.01 + 1e-5 * row["iteration"]} for row in rows]
    page = read(runs.write_run(tmp_path / "moving", config=runs.config(), rows=moving))
    assert 'id="series-adaptation-rate"' in page.figure("Adaptation rate")


def test_sentence_takes_what_was_resolved_over_what_was_asked_for(tmp_path):
    config = runs.config(model="auto", shots=None)
    config["tasks"]["shots"] = 3
    page = read(runs.write_run(tmp_path, config=config, rows=[]))
    assert "MAML meta-trained on sinusoid (3-shot)" in page.text


def test_two_points_are_no_curve(tmp_path):
    evaluation = runs.evaluation()
    evaluation["curve"] = evaluation["curve"][:2]
    page = read(runs.write_run(tmp_path, config=runs.config(), evaluation=evaluation))
    assert "4.150 ± 0.012" in page.text
    assert not page.images
    assert "inner steps" not in page.text


def test_one_task_has_no_interval(tmp_path):
    evaluation = runs.evaluation()
    lone = {"mean": 0.5, "ci95": None}  # infinite, as Estimate.of gives for one value
    evaluation |= {"loss": lone, "before": {"loss": {"mean": 4.0, "ci95": None}}}
    page = read(runs.write_run(tmp_path, config=runs.config(), evaluation=evaluation))
    assert "to 0.5." in page.text
    assert "±" not in page.text.split("Held-out tasks")[0]


def test_missing_folder_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="does not exist; give the folder that --out named"):
        write_report(tmp_path / "absent")


def test_other_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"is not a run folder: it holds none of config\.json"):
        write_report(tmp_path)


def test_what_was_mended_rehearsed_and_measured_on_the_way_is_shown(tmp_path):
    folder = runs.regression_run(tmp_path)
    record = json.loads((folder / "rates.json").read_text())
    record["rehearsals"] = [{"alpha": 0.04, "loss": 1.5}, {"alpha": 0.12, "loss": None}]
    (folder / "rates.json").write_text(json.dumps(record))
    rows = [
        {"iteration": 50, "edge": {"meta_lr": 0.001, "beta_max": 0.2, "sharpness": 10.0}},
        {"iteration": 60, "edge": {"meta_lr": 0.001, "beta_max": None, "sharpness": None}},
        {"iteration": 60, "incident": {"text": "meta-step 59: the inner <loop> failed"}},
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    page = read(folder)
    assert "0.04: 1.5; 0.12: not finite" in page.text
    assert "1 meta-step(s) failed and were undone" in page.text
    assert "the inner <loop> failed" in page.text
    edge = page.figure("Meta rate and the largest stable one")
    assert 'id="series-largest-stable-meta-rate"' in edge
