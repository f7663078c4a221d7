"""Every example runs as a user would run it, and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# As users run them: in single precision, with JAX's own rules of promotion.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("JAX_ENABLE_X64", "JAX_NUMPY_DTYPE_PROMOTION")
}


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def number(text: str, label: str) -> float:
    """The number behind a label."""
    found = re.search(rf"{re.escape(label)}:? ([-+.e\d]+)", text)
    assert found, text
    return float(found[1].rstrip("."))


def test_own_model():
    text = run("own_model.py")
    assert number(text, "alpha starts at") > 0
    # The best constant per input leaves E a^2 / 2 - E_x (E y)^2, close to 3; a step must take most of it.
    assert number(text, "loss before adaptation") > 1
    assert number(text, "loss after one step") < 0.8


def test_own_tasks():
    text = run("own_tasks.py")
    assert number(text, "alpha started at") > 0
    losses = [number(text, f"loss after {steps} steps") for steps in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.3 * losses[0]
    assert abs(number(text, "a new spring at 2.5") - number(text, "in truth")) < 0.5


def test_rates_of_a_table():
    text = run("rates_of_a_table.py")
    assert number(text, "alpha") > 0
    before = number(text, "error on new sensors before adaptation")
    assert number(text, "error on new sensors after 8 readings") < 0.7 * before


def test_theory_notebook():
    text = run("theory_notebook.py")
    inputs, noisy = number(text, "alpha from the inputs alone"), number(text, "allowing for noise")
    labels, least = (
        number(text, "alpha from the labels"),
        number(text, "alpha at the minimum of the empirical risk"),
    )
    # Isotropic optima: the assumptions of (H.6) hold, so all roads lead to one rate. 2000 tasks leave 3 %.
    for other in (inputs, noisy, least):
        assert other == pytest.approx(labels, rel=0.03)
    assert number(text, "at the minimum") < number(text, "risk without adaptation")


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
