"""The corrections as a page of Markdown."""

import math
from collections.abc import Sequence

from metastep._errors import InputError
from metastep.theory.errata.entry import Erratum, Paper, Reading

_HEAD = """\
<!-- Written by `python -m metastep.theory.errata > docs/errata.md`; edit the entries, not this
page. -->

# Errata: where print and truth differ

metastep implements published results, and a formula that is to choose your learning rate has to be
right. In re-deriving them we found the slips below. Nearly all are small, none takes away from the
ideas, and we are grateful for the papers. If you are one of the authors and we have misread you,
please tell us.

Every entry has a number: the printed and the corrected formula in one concrete case, beside the
truth from simulation, exact arithmetic or direct computation. All numbers on this page are computed
by code with fixed seeds, and a test fails when a printed form holds or a corrected one does not. To
compute them again:

```bash
python -m metastep.theory.errata
```

or one at a time:

```python
import jax

jax.config.update("jax_enable_x64", True)  # before anything else is computed

from metastep.theory import errata

entry = errata.PAPERS[0].errata[0]
print(entry.where, entry.read())
```

The library offers the corrected forms under plain names and the printed ones, where somebody may
want to compare, under names that end in `_as_printed`.

In the tables, a formula *equals* the truth up to the Monte Carlo error of the latter, or is an
upper bound (≥) or a lower bound (≤) of it.
"""

_SIGNS = {"equals": "=", "is at least": "≥", "is at most": "≤"}


def render(papers: Sequence[Paper]) -> str:
    """The whole page; computes every number, in some twenty seconds.

    Raises
    ------
    InputError
        When an entry's numbers don't tell the printed from the corrected form, as in float32.
    """
    return "\n".join([_HEAD, *(_paper(paper) for paper in papers)])


def _paper(paper: Paper) -> str:
    parts = [f"## {paper.title}\n", f"{paper.remark}\n"]
    parts += [_erratum(erratum) for erratum in paper.errata]
    if paper.slips:
        parts.append("### Slips of notation\n")
        parts.append("| Where | Printed | Meant |\n| --- | --- | --- |")
        parts += [f"| {_cell(a)} | {_cell(b)} | {_cell(c)} |" for a, b, c in paper.slips]
        parts.append("")
    return "\n".join(parts)


def _erratum(erratum: Erratum) -> str:
    reading = erratum.read()
    if reading.printed_holds or not reading.corrected_holds:
        raise InputError(
            f"the numbers for {erratum.where!r} are {reading}, which do not tell print from correction; "
            "compute them in float64"
        )
    return (
        f"### {erratum.where}\n\n"
        f"Printed: `{erratum.printed}`\n\n"
        f"Correct: `{erratum.correct}`\n\n"
        f"{erratum.why}\n\n"
        f"{_table(reading)}\n"
        f"\n*Case:* {erratum.case}.\n"
    )


def _table(reading: Reading) -> str:
    sign = _SIGNS[reading.relation]
    if reading.relation == "equals" and reading.tolerance > 1e-4:
        sign = f"within {reading.tolerance:.1%} of"
    truth, other = _number(reading.truth), reading.corrected_truth
    if other is None:
        head = (
            f"| | Printed | Correct | Truth |\n| --- | --- | --- | --- |\n| must be {sign} truth |"
        )
        return f"{head} {_number(reading.printed)} ✗ | {_number(reading.corrected)} ✓ | {truth} |"
    head = f"| must be {sign} truth | Value | Truth |\n| --- | --- | --- |\n"
    return (
        f"{head}| Printed | {_number(reading.printed)} ✗ | {truth} |\n"
        f"| Correct | {_number(reading.corrected)} ✓ | {_number(other)} |"
    )


def _number(value: float) -> str:
    """Four digits, few enough to come out alike on every machine; tiny numbers as a bound."""
    if math.isinf(value):
        return "∞"
    if 0 < abs(value) < 1e-12:
        return "< 1e-12"
    return f"{value + 0.0:.4g}"  # and minus zero is zero


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
