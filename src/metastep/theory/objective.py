"""What MAML minimises, F, its sampled form F-hat, and their exact gradients (Fallah et al.)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float, PyTree

from metastep._errors import InputError
from metastep._types import Params, Scalar
from metastep.theory.citations import source

__all__ = ["meta_gradient", "meta_objective", "sampled_meta_gradient", "sampled_meta_objective"]

TaskLoss = Callable[[Params, Any], Scalar]
"""f_i(w): parameters and the data of one task to the mean loss over that data."""


@source("fallah2020", "objective F", "as printed")
def meta_objective(
    loss: TaskLoss, params: Params, tasks: PyTree, alpha: Float[ArrayLike, ""]
) -> Scalar:
    """Mean loss over tasks after one exact gradient step on each.

        F(w) = mean_i f_i(w - alpha grad f_i(w))

    Parameters
    ----------
    loss : f(params, task), a scalar; `task` is one slice of `tasks`
    params : pytree of floating-point arrays, w
    tasks : pytree of arrays with the tasks on their leading axis, at least one
    alpha : () adaptation rate

    Returns
    -------
    () F(w).

    Raises
    ------
    InputError
        When `tasks` holds no array, no task, or arrays that disagree on their number.

    References
    ----------
    Fallah et al. (2020), definition of F, as printed.
    """
    return sampled_meta_objective(loss, params, tasks, _one_draw(tasks), alpha)


@source("fallah2020", "gradient of F; Ashtekar (5)", "as printed")
def meta_gradient(
    loss: TaskLoss, params: Params, tasks: PyTree, alpha: Float[ArrayLike, ""]
) -> Params:
    """Exact gradient of `meta_objective`.

        grad F(w) = mean_i (I - alpha H_i(w)) grad f_i(w - alpha grad f_i(w))

    Parameters
    ----------
    loss, params, tasks, alpha : as for `meta_objective`

    Returns
    -------
    Pytree like `params`.

    Raises
    ------
    InputError
        When `tasks` holds no array, no task, or arrays that disagree on their number.

    References
    ----------
    Fallah et al. (2020), exact gradient of F (equation 5 of Ashtekar's report), as printed.
    """
    return sampled_meta_gradient(loss, params, tasks, _one_draw(tasks), alpha)


@source("fallah2020", "objective F-hat", "corrected", "the inner step carries alpha")
def sampled_meta_objective(
    loss: TaskLoss, params: Params, tasks: PyTree, supports: PyTree, alpha: Float[ArrayLike, ""]
) -> Scalar:
    """Mean loss over tasks after one stochastic gradient step, averaged over the batches given for
    it.

        F-hat(w) = mean_i mean_D f_i(w - alpha grad f_i(w; D))

    Parameters
    ----------
    loss : f(params, data), a scalar
    params : pytree of floating-point arrays, w
    tasks : pytree of arrays, tasks on the leading axis: what the adapted parameters are judged on
    supports : pytree of arrays with leading axes (tasks, draws): the batches D that the inner step
        may use
    alpha : () adaptation rate

    Returns
    -------
    () F-hat(w) for the given batches.

    Raises
    ------
    InputError
        When an argument holds no array or no task, or the numbers of tasks disagree.

    References
    ----------
    Fallah et al. (2020), definition of F-hat; corrected: the notes omit alpha in the inner step.
    """
    count = _count("tasks", tasks, 1)
    if _count("supports", supports, 2)[0] != count[0]:
        raise InputError(
            f"supports has {_count('supports', supports, 2)[0]} tasks and tasks has {count[0]}; "
            "give the batches of every task, in the same order"
        )

    def adapted_loss(task: Any, support: Any) -> Scalar:
        return loss(_inner_step(loss, params, support, alpha), task)

    return jnp.mean(_over_tasks_and_draws(adapted_loss)(tasks, supports))


@source("fallah2020", "gradient of F-hat", "corrected", "the inner step carries alpha")
def sampled_meta_gradient(
    loss: TaskLoss, params: Params, tasks: PyTree, supports: PyTree, alpha: Float[ArrayLike, ""]
) -> Params:
    """Exact gradient of `sampled_meta_objective`.

        grad F-hat(w) = mean_i mean_D (I - alpha H_i(w; D)) grad f_i(w - alpha grad f_i(w; D))

    Parameters
    ----------
    loss, params, tasks, supports, alpha : as for `sampled_meta_objective`

    Returns
    -------
    Pytree like `params`.

    Raises
    ------
    InputError
        When an argument holds no array or no task, or the numbers of tasks disagree.

    References
    ----------
    Fallah et al. (2020), gradient of F-hat, written as their descent direction with D_h = D_in.
    """
    return jax.grad(lambda weights: sampled_meta_objective(loss, weights, tasks, supports, alpha))(
        params
    )


def _inner_step(
    loss: TaskLoss, params: Params, support: Any, alpha: Float[ArrayLike, ""]
) -> Params:
    gradient = jax.grad(loss)(params, support)
    return jax.tree.map(lambda w, g: w - jnp.asarray(alpha, w.dtype) * g, params, gradient)


def _over_tasks_and_draws(function: Callable[[Any, Any], Scalar]) -> Callable[[Any, Any], Any]:
    return jax.vmap(jax.vmap(function, in_axes=(None, 0)))


def _one_draw(tasks: PyTree) -> PyTree:
    """The whole task as the only batch of the inner step."""
    _count("tasks", tasks, 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], tasks)


def _count(name: str, tree: PyTree, axes: int) -> tuple[int, ...]:
    """Common sizes of the leading axes, all at least one."""
    shapes = {jnp.shape(leaf)[:axes] for leaf in jax.tree.leaves(tree)}
    if len(shapes) != 1:
        raise InputError(
            f"{name} has arrays with leading axes {sorted(shapes)}; every array needs the same "
            f"{'number of tasks' if axes == 1 else 'number of tasks and draws'} in front"
        )
    (shape,) = shapes
    if len(shape) < axes or 0 in shape:
        raise InputError(
            f"{name} has leading axes {shape}; give at least one task and one draw each"
        )
    return shape
