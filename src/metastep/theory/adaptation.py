"""What gradient descent on new tasks makes of an initialisation: loss and distance after any number of steps.

A task's error moves along the eigenvectors of its Gram matrix, each part shrinking at its own speed. One
decomposition per task therefore gives every number of steps, and the difference of two initialisations
without cancellation: a^2 - b^2 as (a - b)(a + b).
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError
from metastep.theory._inputs import (
    check_array,
    check_features,
    check_scalar,
    to_common_dtype,
)
from metastep.theory._linear import check_determined
from metastep.theory.citations import source
from metastep.theory.grams import contract, gram_power_sums, nonzero_features
from metastep.theory.minimisers import covariance_from_powers
from metastep.theory.risks import check_variance

__all__ = ["AdaptationCurve", "AfterSteps", "adaptation_curve"]

Steps = int | Sequence[int] | np.ndarray
"""Numbers of steps t >= 0, in any shape."""


@source("zou2022", "Fig. 5: loss and distance after t steps", "derived")
class AfterSteps(NamedTuple):
    """Means over tasks after t gradient steps, each of the shape of t.

    Attributes
    ----------
    loss : mean squared error on the examples that were adapted to
    distance : squared distance to the task's optimum, F_t
    """

    loss: Array
    distance: Array


@source("zou2022", "Definition 1 (equation 3.6) and Fig. 5, for all t at once", "derived")
class AdaptationCurve(eqx.Module):
    """Spectra of a sample of tasks; any initialisation and number of steps then costs O(tasks dim^2).

    Made by `adaptation_curve`. For realisable labels y_i = Phi_i a_i, with eigenvalues l_ij of G_i along
    u_ij and e_ij = u_ij' (w - a_i),

        loss_t = (1/N) sum_ij (l_ij / K) q_ij^(2t) e_ij^2,   F_t = (1/N) sum_ij q_ij^(2t) e_ij^2,

    q_ij = 1 - (2 eta / K) l_ij.

    Attributes
    ----------
    spectrum : (tasks, dim) eigenvalues of the Gram matrices, ascending
    basis : (tasks, dim, dim) their eigenvectors, as columns
    eta : step size
    shots : examples per task, K
    """

    spectrum: Array
    basis: Array
    eta: Array
    shots: int = eqx.field(static=True)

    def at(self, params: ArrayLike, optima: ArrayLike, steps: Steps) -> AfterSteps:
        """Mean loss and squared distance after t steps from `params`.

        Parameters
        ----------
        params : (dim,) initialisation
        optima : (tasks, dim) optimal parameters a_i of the tasks
        steps : numbers of steps t >= 0, any shape

        Returns
        -------
        AfterSteps
            Both >= 0.

        Raises
        ------
        InputError
            If a shape is wrong, a number is not finite, or a number of steps is negative or not whole.
        """
        counts = _check_steps(steps)
        error = self._params("params", params) - self._optima(optima)
        return _after(self, _products(self.basis, error, error), counts)

    def gap(
        self, params: ArrayLike, other: ArrayLike, optima: ArrayLike, steps: Steps
    ) -> AfterSteps:
        """`at` of `params` minus `at` of `other`, to full precision however near they are.

        Parameters
        ----------
        params, other : (dim,) initialisations
        optima : (tasks, dim) optimal parameters a_i of the tasks
        steps : numbers of steps t >= 0, any shape

        Returns
        -------
        AfterSteps
            Negative where `params` is better.

        Raises
        ------
        InputError
            As for `at`.
        """
        counts = _check_steps(steps)
        first, second = self._params("params", params), self._params("other", other)
        targets = self._optima(optima)
        apart = jnp.broadcast_to(first - second, targets.shape)
        return _after(self, _products(self.basis, apart, first + second - 2 * targets), counts)

    def expected_gap(
        self, phi: ArrayLike, alpha: ArrayLike, steps: Steps, task_var: ArrayLike = 1.0
    ) -> AfterSteps:
        """`gap` between MAML's minimiser and ERM's, averaged exactly over the optima of all tasks.

        The minimisers differ in their covariance alone, D = Cov(w_m) - Cov(w_r): e_ij^2 becomes
        sa2 u_ij' D u_ij. Its distance is `distance_gap`, for all t at once.

        Parameters
        ----------
        phi : (training tasks, training shots, dim) features of the tasks trained on, with as many
            examples as features at least
        alpha : adaptation rate that MAML was trained with
        steps : numbers of steps t >= 0, any shape
        task_var : variance sa2 of every coordinate of the optima, >= 0

        Returns
        -------
        AfterSteps

        Raises
        ------
        InputError
            If a shape is wrong, a number is not finite, there are fewer examples than features, `task_var`
            is negative, or a number of steps is negative or not whole.
        """
        train = nonzero_features("phi", phi)
        check_array("phi", phi, train.shape[0], train.shape[1], self.spectrum.shape[1])
        check_determined("expected_gap", train.shape[0] * train.shape[1], train.shape[2])
        counts = _check_steps(steps)
        train, rate, variance = to_common_dtype(
            train, check_scalar("alpha", alpha), check_variance("task_var", task_var)
        )
        sums, step = gram_power_sums(train), 2 * rate / train.shape[1]
        gain = covariance_from_powers(sums, step) - covariance_from_powers(sums, 0.0)
        gain = (variance * gain).astype(self.spectrum.dtype)
        products = jnp.sum(self.basis * contract("ik,nkj->nij", gain, self.basis), axis=1)
        return _after(self, products, counts)

    def _params(self, name: str, value: ArrayLike) -> Array:
        return check_array(name, value, self.spectrum.shape[1]).astype(self.spectrum.dtype)

    def _optima(self, optima: ArrayLike) -> Array:
        return check_array("optima", optima, *self.spectrum.shape).astype(self.spectrum.dtype)


def _check_steps(steps: Steps) -> np.ndarray:
    counts = np.asarray(steps)
    if not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise InputError(f"steps is {steps!r}; it must hold whole numbers, none below 0")
    return counts


def _products(basis: Array, left: Array, right: Array) -> Array:
    """(u' left)(u' right) along every eigenvector: (tasks, dim)."""
    return contract("nij,ni->nj", basis, left) * contract("nij,ni->nj", basis, right)


@jax.jit
def _after(curve: AdaptationCurve, products: Array, steps: Array) -> AfterSteps:
    """Means of the weighted products: those of q^(2t) l / K and of q^(2t)."""
    factors = 1 - 2 * curve.eta / curve.shots * curve.spectrum
    powers = steps.ravel().astype(factors.dtype)

    def of_count(count: Array) -> tuple[Array, Array]:
        left = (factors**2) ** count * products
        return jnp.sum(curve.spectrum / curve.shots * left), jnp.sum(left)

    totals = jax.lax.map(of_count, powers)
    return AfterSteps(*(total.reshape(steps.shape) / products.shape[0] for total in totals))


@source("zou2022", "Definition 1 (equation 3.6) and Fig. 5, for all t at once", "derived")
def adaptation_curve(phi: ArrayLike, eta: ArrayLike) -> AdaptationCurve:
    """Gather what loss and distance after any number of gradient steps on each task need.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the tasks adapted to
    eta : step size of the adaptation, for the mean squared error (1/K) ||Phi w - y||^2

    Returns
    -------
    AdaptationCurve
        `at` for one initialisation, `gap` for two, `expected_gap` for MAML's against ERM's. Differentiable by
        initialisations, optima and rates; by `phi` only where no task has equal eigenvalues, as all have with
        two zeros or more.

    Raises
    ------
    InputError
        If `phi` has another rank, is empty or not finite, or `eta` is not a finite number.

    References
    ----------
    Zou et al. (2022), Definition 1, section 3.2 and Fig. 5.
    """
    features, step_size = to_common_dtype(check_features("phi", phi), check_scalar("eta", eta))
    spectrum, basis = jnp.linalg.eigh(contract("nkd,nke->nde", features, features))
    return AdaptationCurve(spectrum, basis, step_size, features.shape[1])
