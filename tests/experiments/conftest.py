"""The experiments' tests spend their time compiling, and so compile as quick runs do."""

import pytest

from metastep.experiments.runner import _compiling_for


@pytest.fixture(autouse=True)
def _little_optimisation():
    with _compiling_for("quick"):
        yield
