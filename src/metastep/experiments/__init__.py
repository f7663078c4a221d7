"""Every figure and table of the papers as one short file: configuration, run, plot, claims.

`names()` and `summaries()` import none of them; `load` imports one, and with it jax.
"""

import ast
import dataclasses
import functools
import importlib
from importlib.util import find_spec

from metastep._errors import check_choice
from metastep.experiments.core import Claim, Experiment, Records, Report, Verdict

_MODULES = (
    "zou_fig1",
    "zou_fig2",
    "zou_fig3",
    "zou_fig10",
    "zou_prop1",
    "zou_theorem2",
    "zou_corollary1",
    "zou_fig4",
    "zou_fig5",
    "zou_fig6",
    "zou_moments",
    "zou_fig8",
    "zou_fig9",
    "zou_table2",
    "bernacchia_fig11",
    "bernacchia_fig12",
    "takagi_linear",
    "takagi_sinusoid",
    "takagi_omniglot",
    "fallah_fosp",
    "fallah_floors",
    "fallah_surrogate",
    "fallah_step_size",
    "finn_sinusoid",
    "anil_omniglot",
)

__all__ = [
    "Claim",
    "Experiment",
    "Records",
    "Report",
    "Summary",
    "Verdict",
    "load",
    "names",
    "summaries",
]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a list of experiments shows of each."""

    name: str
    title: str
    paper: str
    needs: str = ""
    cost: str = ""


def names() -> tuple[str, ...]:
    """Names of all experiments, in the order in which `all` runs them."""
    return tuple(module.replace("_", "-") for module in _MODULES)


def load(name: str) -> Experiment:
    """The experiment of that name.

    Raises
    ------
    InputError
        When there is none; the message lists all names.
    """
    check_choice("experiment", name, names())
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").EXPERIMENT


def summaries() -> tuple[Summary, ...]:
    """Name, title, paper, needs and cost of every experiment."""
    return tuple(_summary(module) for module in _MODULES)


@functools.cache
def _summary(module: str) -> Summary:
    """Read the literals of `EXPERIMENT = Experiment(...)`, as running the file would import jax."""
    spec = find_spec(f"{__name__}.{module}")
    assert spec is not None  # the module is one of ours
    assert spec.loader is not None
    source = spec.loader.get_source(spec.name)  # pyright: ignore[reportAttributeAccessIssue]
    shown = {field.name for field in dataclasses.fields(Summary)}
    found = {
        keyword.arg: ast.literal_eval(keyword.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Experiment"
        for keyword in node.keywords
        if keyword.arg in shown
    }
    return Summary(**found)
