"""Every public name of the theory names its paper and equation, in code and in its docstring."""

import inspect
from typing import NamedTuple

import pytest

from metastep import theory
from metastep._errors import InputError
from metastep.theory import citations

FUNCTIONS = [name for name in theory.__all__ if inspect.isfunction(getattr(theory, name))]
CLASSES = [name for name in theory.__all__ if inspect.isclass(getattr(theory, name))]
NOTHING_PUBLISHED = {"SolveStatus"}  # outcomes of a numerical solve


def test_there_is_something_to_cite():
    assert len(FUNCTIONS) > 50
    assert set(FUNCTIONS) | set(CLASSES) == set(theory.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_citable_and_documented(name):
    function = getattr(theory, name)
    text = theory.cite(function)
    assert "@" in text
    for section in ("Parameters", "Returns", "Raises", "References"):
        assert f"{section}\n    ----" in function.__doc__, section
    if name.endswith("_as_printed"):
        assert all(mark.form == "as printed" for mark in citations.sources(function))


@pytest.mark.parametrize("name", sorted(set(CLASSES) - NOTHING_PUBLISHED))
def test_result_classes_are_citable(name):
    assert "@" in theory.cite(getattr(theory, name))


def test_text_of_a_citation():
    text = theory.cite(theory.max_meta_rate)
    first, second = text.split("\n\n")
    assert first.startswith("conditions on beta [as printed; form='simplified']\n@misc{takagi2020")
    assert second.startswith("beta_c of exact MAML, one or several tasks [derived]\n@software")


def test_every_form_and_key_used_is_known():
    for name in FUNCTIONS + CLASSES:
        for mark in citations.sources(getattr(theory, name)):
            assert mark.key in citations.BIBLIOGRAPHY
            assert mark.form in ("as printed", "corrected", "derived")
            assert mark.equation


@pytest.mark.parametrize("key", citations.BIBLIOGRAPHY)
def test_entries_are_balanced_bibtex(key):
    entry = citations.BIBLIOGRAPHY[key]
    assert entry.startswith("@")
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author"):
        assert f"  {field}" in entry


def test_marks_stack_in_reading_order():
    @citations.source("zou2022", "(1)")
    @citations.source("fallah2020", "(2)", "as printed", "a note")
    def function():
        """Nothing."""

    first, second = citations.sources(function)
    assert (first.key, first.form, second.key, second.note) == (
        "zou2022",
        "corrected",
        "fallah2020",
        "a note",
    )
    assert "(2) [as printed; a note]" in citations.cite(function)


def test_instances_are_cited_by_their_class():
    sizes = theory.BatchSizes(*range(4))
    assert citations.cite(sizes) == citations.cite(theory.BatchSizes)


def test_unmarked_objects_and_unknown_papers_are_refused():
    class Unmarked(NamedTuple):
        value: int

    with pytest.raises(InputError, match="cite: len implements no published equation"):
        citations.cite(len)
    with pytest.raises(InputError, match="cite: Unmarked implements no published equation"):
        citations.cite(Unmarked(1))
    with pytest.raises(InputError, match="source key is 'nobody2000'; choose one of"):
        citations.source("nobody2000", "(1)")
