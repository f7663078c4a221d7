"""The documentation: its examples run, its reference is complete, and pages load nothing from elsewhere."""

import doctest
import importlib
import inspect
import re
import runpy
from pathlib import Path

import griffe
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGES = [
    "adapt",
    "datasets",
    "metagrad",
    "models",
    "rates",
    "report",
    "tasks",
    "theory",
    "train",
]


def code_blocks(page: Path) -> str:
    """All Python blocks of a page that are not interactive sessions, one after the other."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return "\n".join(block for block in blocks if not block.startswith(">>>"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_interactive_examples_print_what_they_say(page):
    failed, _ = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert failed == 0


def test_skeletons_for_contributors_run():
    source = code_blocks(ROOT / "CONTRIBUTING.md")
    assert source.count("class ") >= 3
    exec(compile(source, "CONTRIBUTING.md", "exec"), {"__name__": "contributing"})


def test_tasks_model_and_loss_of_the_page_on_your_own_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "your-own.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    source = "\n".join(block for block in blocks if "flax" not in block)
    arrays = "import numpy as np\nsupport_x = support_y = query_x = np.ones((4, 1))\n"
    exec(compile(arrays + source.replace("iterations=1000", "iterations=20"), page[:9], "exec"), {})
    assert (tmp_path / "runs" / "springs" / "checkpoints").is_dir()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_documented(name):
    package = importlib.import_module(f"metastep.{name}")
    assert package.__all__
    for symbol in package.__all__:
        value = getattr(package, symbol)
        if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            assert (value.__doc__ or "").strip(), f"metastep.{name}.{symbol} has no docstring"


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_has_a_reference_page(name):
    page = (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")
    assert f"\n::: metastep.{name}\n" in page


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", text))
    assert listed == {str(page.relative_to(DOCS)) for page in PAGES}


def test_site_loads_nothing_from_elsewhere():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(config)
    for page in PAGES:
        assert not re.search(r"!\[[^]]*\]\(http|<(img|script|link)\b", page.read_text("utf-8")), (
            page
        )


DOCSTRING = """Lead line.

    alpha = 1 / 2

Parameters
----------
phi : (tasks, shots) features
low, high : bounds, low < high
    and more of them

Returns
-------
Scalar in units of 1 / feature^2: features times c
give the rate divided by c^2.

Raises
------
InputError
    When wrong."""


def test_docstrings_are_shown_as_prose():
    with_prose = runpy.run_path(str(DOCS / "extensions" / "prose.py"))["with_prose"]
    code = "def rate(phi: float, low: int, high: int) -> complex: ..."
    function = griffe.visit("module", filepath=Path("module.py"), code=code)["rate"]
    docstring = griffe.Docstring(with_prose(DOCSTRING), parent=function)
    lead, parameters, returns, raises = docstring.parse("numpy", warnings=False)
    assert "alpha = 1 / 2" in lead.value
    found = {item.name: (str(item.annotation), item.description) for item in parameters.value}
    assert found["phi"] == ("float", "(tasks, shots) features")
    assert found["low"] == ("int", "bounds, low < high\nand more of them")
    assert found["high"][0] == "int"
    assert str(returns.value[0].annotation) == "complex"
    assert returns.value[0].description.strip().endswith("give the rate divided by c^2.")
    assert str(raises.value[0].annotation) == "InputError"
