"""What several experiments on linear models share: laws of the inputs, and features."""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Array

from metastep import theory

Law = Literal["normal", "uniform", "exponential"]
LAWS: tuple[Law, ...] = ("normal", "uniform", "exponential")
DESIGNS = ("random", "rbf", "polynomial")


def draw_law(rng: np.random.Generator, law: Law, shape: tuple[int, ...]) -> np.ndarray:
    """Independent numbers of standard deviation 1: N(0, 1), U(-sqrt 3, sqrt 3) or Exp(1), mean 1.

    NumPy draws here and elsewhere in these experiments: JAX compiles a sampler for every shape anew.
    """
    samplers = {
        "normal": lambda: rng.standard_normal(shape),
        "uniform": lambda: rng.uniform(-(3**0.5), 3**0.5, shape),
        "exponential": lambda: rng.exponential(1.0, shape),
    }
    return samplers[law]()


@dataclasses.dataclass(frozen=True)
class ScaledLaw:
    """A law of independent numbers, `scale` times that of standard deviation 1; `title` as figures show it."""

    title: str
    law: Law
    scale: float = 1.0

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Independent numbers of this law."""
        return self.scale * draw_law(rng, self.law, shape)

    def raw_moments(self, order: int) -> np.ndarray:
        """E x^0, ..., E x^order."""
        moments = {
            "normal": lambda: theory.normal_raw_moments(order),
            "uniform": lambda: theory.uniform_raw_moments(order, -(3**0.5), 3**0.5),
            "exponential": lambda: theory.exponential_raw_moments(order),
        }
        return self.scale ** np.arange(order + 1) * moments[self.law]()


UNIFORM = ScaledLaw("U(-5, 5)", "uniform", 5 / 3**0.5)
WIDE_NORMAL = ScaledLaw("N(0, 2)", "normal", 2**0.5)
NORMAL = ScaledLaw("N(0, 1)", "normal")
EXPONENTIAL = ScaledLaw("Exp(1)", "exponential")


def design_features(
    rng: np.random.Generator, design: str, tasks: int, shots: int, dim: int
) -> Array:
    """Features (tasks, shots, dim) of the three designs of Zou et al., section H.4.2.

    random: entries U(-5, 5). rbf: centres evenly on [-5, 5], width 1, x U(-5, 5). polynomial: Taylor's
    c_j = 1 / j!, x U(-2, 2). The paper gives no centres, widths, nor law of x for the last two.
    """
    if design == "random":
        return theory.identity_features(rng.uniform(-5.0, 5.0, (tasks, shots, dim)))
    if design == "rbf":
        x = rng.uniform(-5.0, 5.0, (tasks, shots))
        return theory.gaussian_features(x, np.linspace(-5.0, 5.0, dim), 1.0)
    taylor = np.array([1 / math.factorial(j) for j in range(dim)])
    return theory.polynomial_features(rng.uniform(-2.0, 2.0, (tasks, shots)), dim, taylor)
