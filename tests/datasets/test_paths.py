"""Where the data root is looked for."""

import os
from pathlib import Path

from metastep.datasets import data_root


def test_option_then_variable_then_cache(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METASTEP_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path / "option") == tmp_path / "option"
    assert data_root(None) == tmp_path / "variable"
    monkeypatch.setenv("METASTEP_DATA", "")
    assert data_root() == data_root("")
    assert data_root().name == "metastep"
    assert data_root().is_relative_to(os.environ["XDG_CACHE_HOME"])


def test_home_is_expanded(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("~/sets") == tmp_path / "sets"
