"""Every correction: the printed form fails, the corrected one passes, and the page shows those numbers."""

from pathlib import Path

import pytest

from metastep._errors import InputError
from metastep.theory import errata
from metastep.theory.errata.page import _number

PAGE = Path(__file__).parents[2] / "docs" / "errata.md"
ENTRIES = [
    pytest.param(entry, id=f"{paper.key}: {entry.where}")
    for paper in errata.PAPERS
    for entry in paper.errata
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_printed_form_fails_and_the_corrected_one_passes(entry):
    reading = entry.read()
    assert not reading.printed_holds, reading
    assert reading.corrected_holds, reading


@pytest.mark.slow
def test_the_page_in_the_documentation_is_what_the_code_writes():
    written = errata.render(errata.PAPERS)
    assert written == PAGE.read_text(encoding="utf-8"), (
        "run: python -m metastep.theory.errata > docs/errata.md"
    )


def test_entries_are_distinct_and_say_where_what_and_why():
    assert len(ENTRIES) >= 50
    places = [(paper.key, entry.where) for paper in errata.PAPERS for entry in paper.errata]
    assert len(set(places)) == len(places)
    for paper in errata.PAPERS:
        for entry in paper.errata:
            assert entry.printed != entry.correct
            assert all((entry.where, entry.why, entry.case))
            assert not entry.case.endswith(".")


def test_relations_judge_both_ways():
    equal = errata.Reading(1.0, 2.0, 2.0)
    assert not equal.printed_holds
    assert equal.corrected_holds
    assert errata.Reading(1.9, 2.1, 2.0, tolerance=0.1).printed_holds
    upper = errata.Reading(1.0, 3.0, 2.0, "is at least")
    assert (upper.printed_holds, upper.corrected_holds) == (False, True)
    lower = errata.Reading(3.0, 1.0, 2.0, "is at most")
    assert (lower.printed_holds, lower.corrected_holds) == (False, True)
    assert not errata.Reading(1.0, 3.0, 2.0, "is at least", corrected_truth=4.0).corrected_holds


def test_an_entry_whose_numbers_do_not_tell_them_apart_is_refused():
    paper = errata.Paper(
        "zou2022",
        "Title",
        "Remark.",
        (errata.Erratum("(1)", "a", "b", "Why.", "case", lambda: errata.Reading(1.0, 1.0, 1.0)),),
    )
    with pytest.raises(InputError, match=r"the numbers for '\(1\)' are .* compute them in float64"):
        errata.render([paper])


def test_bars_in_a_table_are_escaped():
    slips = (("a | b", "c", "d"),)
    page = errata.render([errata.Paper("zou2022", "Title", "Remark.", (), slips)])
    assert "| a \\| b | c | d |" in page


def test_a_zero_has_no_sign_and_rounding_noise_is_a_bound():
    # Whether a difference that ought to vanish comes out as 0 or -0 depends on how it was compiled.
    assert [_number(value) for value in (0.0, -0.0, 3e-17, -1.25)] == ["0", "0", "< 1e-12", "-1.25"]
