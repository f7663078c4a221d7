"""Terminal tables: the numbers are there, digits match their intervals, markup is not obeyed."""

import pytest
import runs
from rich.console import Console

from metastep.report import tables
from metastep.report._format import command_line, count, estimate, interval, number, percent, plain


def shown(renderable, width: int = 120) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return " ".join(capture.get().split())


def test_rates_table_gives_rates_intervals_reasons_and_warnings():
    text = shown(tables.rates_table(runs.rates()))
    for expected in (
        "0.04",
        "[0.036, 0.0445]",
        "0.0311",
        "[0.03, 0.0322]",
        "40.0 % of the query loss",
        "256",
        "α used: the rate that lowers the query loss of 256 sampled tasks most",
        "warning: the quadratic prediction is 40 % off at twice alpha",
    ):
        assert expected in text


def test_rates_table_leaves_out_what_was_not_measured():
    text = shown(tables.rates_table({"alpha": 0.5, "alpha_interval": None, "num_tasks": 8}))
    assert "0.5" in text
    assert "without labels" not in text
    assert "not finite" not in text
    assert "meta" not in text


def test_rates_table_shows_stability_bounds_when_known():
    text = shown(tables.rates_table({"alpha_max": 0.08, "beta_max": 1.25}))
    assert "largest stable α │ 0.08" in text
    assert "largest stable β, for SGD │ 1.25" in text


def test_evaluation_table_gives_both_sides_of_adaptation():
    text = shown(tables.evaluation_table(runs.evaluation(accuracy=True)))
    assert "accuracy │ 20.00 ± 0.61 % │ 87.50 ± 0.61 %" in text
    assert "loss │ 4.150 ± 0.012 │ 0.460 ± 0.012" in text
    assert "inner steps ┃ loss ┃ accuracy" in text
    assert "600 test tasks, 1 inner step, seed 7, query examples judged one by one" in text


def test_evaluation_table_says_what_was_not_measured():
    text = shown(tables.evaluation_table({"loss": {"mean": 0.5, "ci95": 0.1}}))
    assert "loss │ not measured │ 0.50 ± 0.10" in text
    assert "accuracy" not in text


def test_transductive_evaluation_is_named():
    text = shown(tables.evaluation_table({**runs.evaluation(), "transductive": True}))
    assert "query examples judged together (transductive if the model has batch norm)" in text


def test_tasks_at_lower_rates_are_counted():
    text = shown(tables.evaluation_table({**runs.evaluation(), "halved": 11, "unadapted": 0}))
    assert "11 tasks adapted at a lower rate, as the support loss would have risen" in text
    assert "not at all" not in text
    text = shown(tables.evaluation_table({**runs.evaluation(), "halved": 1, "unadapted": 1}))
    assert "1 task adapted at a lower rate" in text
    assert "(1 not at all, as it rose at every rate)" in text


def test_info_table_flattens_and_obeys_no_markup():
    text = shown(tables.info_table({"name": "[red]x[/red]", "splits": {"train": 64, "seen": True}}))
    assert "name │ [red]x[/red]" in text
    assert "splits.train │ 64" in text
    assert "splits.seen │ yes" in text


def test_claims_table():
    claims = [
        {"text": "risk shrinks with N", "verdict": "holds", "evidence": "slope -0.999"},
        {"text": "[b]large alpha helps[/b]", "verdict": "fails", "evidence": "0.014 < 2695"},
    ]
    text = shown(tables.claims_table(claims))
    assert "risk shrinks with N │ holds │ slope -0.999" in text
    assert "[b]large alpha helps[/b] │ fails │ 0.014 < 2695" in text


@pytest.mark.parametrize(
    ("mean", "width", "as_percent", "expected"),
    [
        (0.4603, 0.0123, False, "0.460 ± 0.012"),
        (12345.6, 78.9, False, "12346 ± 79"),
        (3.2e-5, 4.1e-6, False, "3.2e-05 ± 4e-06"),
        (0.98765, 0.00321, True, "98.77 ± 0.32 %"),
        (0.98765, 0.0321, True, "98.8 ± 3.2 %"),
        (1.0, 0.0, True, "100.00 ± 0.00 %"),
        (0.25, None, False, "0.25"),
        (None, 0.1, False, "not finite"),
    ],
)
def test_half_width_sets_the_digits(mean, width, as_percent, expected):
    assert estimate({"mean": mean, "ci95": width}, as_percent) == expected


def test_values_as_text():
    assert number(None) == "not finite"
    assert number(0.0123456) == "0.01235"
    assert percent(0.1234) == "12.3 %"
    assert interval([0.1, None]) == "[0.1, not finite]"
    assert interval(None) == ""
    assert plain(None) == "none"
    assert plain([1, 28, 28]) == "[1, 28, 28]"
    assert count(60000) == "60\u202f000"
    assert command_line(["metastep", "train", "a b"]) == "metastep train 'a b'"
    assert command_line("metastep train x") == "metastep train x"
    assert command_line(None) == ""
