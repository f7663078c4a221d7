"""Slow float64 references for stability, convergence and features, written from the papers.

Nothing here imports metastep: thresholds come from simulating the recursion, gradients from central
differences, kernels from explicit feature matrices, and fixed points from running the updates.
"""

import math

import numpy as np

# ---- stability (Takagi et al.) ------------------------------------------------------------------


def meta_update_matrix(hessians, alpha, form):
    """Mean over tasks of the matrix that multiplies v in one meta-step."""
    total = 0.0
    for hessian in hessians:
        identity = np.eye(len(hessian))
        if form == "exact":
            adapted = identity - alpha * hessian
            total = total + adapted @ hessian @ adapted
        else:
            order = {"simplified": 1.0, "taylor": 2.0}[form]
            total = total + hessian - order * alpha * hessian @ hessian
    return total / len(hessians)


def meta_recursion_shrinks(hessians, alpha, beta, form, steps=40_000, seed=0):
    """Whether v <- v - beta M v shrinks, simulated from a random start by squaring the map."""
    step = np.eye(len(hessians[0])) - beta * meta_update_matrix(hessians, alpha, form)
    start = np.random.default_rng(seed).standard_normal(len(step))
    power = np.linalg.matrix_power(step, steps)
    return bool(np.linalg.norm(power @ start) < np.linalg.norm(start))


def exact_maml_on_quadratic_shrinks(hessian, alpha, beta, steps=4000, seed=0):
    """Run MAML itself, inner step and chain rule written out, on (1/2) v' H v."""
    weights = np.random.default_rng(seed).standard_normal(len(hessian))
    start = np.linalg.norm(weights)
    for _ in range(steps):
        adapted = weights - alpha * hessian @ weights
        outer = hessian @ adapted
        weights = weights - beta * (outer - alpha * hessian @ outer)
        if not np.all(np.isfinite(weights)):
            return False
    return bool(np.linalg.norm(weights) < start)


# ---- convergence (Fallah et al.) ----------------------------------------------------------------


def meta_objective(loss, gradient, tasks, weights, alpha):
    """F(w): the mean loss after one exact inner step, task by task."""
    return np.mean([loss(weights - alpha * gradient(weights, task), task) for task in tasks])


def central_difference(function, weights, step=1e-5):
    """Gradient of a scalar function by central differences."""
    slopes = np.zeros_like(weights)
    for index in range(len(weights)):
        shift = np.zeros_like(weights)
        shift[index] = step
        slopes[index] = (function(weights + shift) - function(weights - shift)) / (2 * step)
    return slopes


def smoothness(norms, alpha, smoothness, lipschitz):
    return 4 * smoothness + 2 * lipschitz * alpha * sum(norms) / len(norms)


def step_size(algorithm, norms, alpha, smooth, lipschitz):
    divisor = {"maml": 12, "fomaml": 18, "hfmaml": 25}[algorithm]
    return 1 / (divisor * smoothness(norms, alpha, smooth, lipschitz))


def variance_terms(algorithm, p):
    """b of the floors: s^2/B + st^2/(B Do) + st^2/Din, plus the bias of first-order MAML."""
    base = p["sigma"] ** 2 / p["num_tasks"]
    base += p["sigma_tilde"] ** 2 / (p["num_tasks"] * p["query_size"])
    base += p["sigma_tilde"] ** 2 / p["support_size"]
    if algorithm == "fomaml":
        base += 20 * p["sigma"] ** 2 * p["alpha"] ** 2 * p["smoothness"] ** 2
    return base


def error_floor(algorithm, p):
    base = variance_terms(algorithm, p)
    ratio = p["hessian_lipschitz"] * p["alpha"] / p["smoothness"]
    inner, outer, linear = {"maml": (61, 1, 61), "fomaml": (14, 1, 14), "hfmaml": (1, 6, 36)}[
        algorithm
    ]
    return max(outer * math.sqrt(inner * (1 + ratio * p["sigma"]) * base), linear * ratio * base)


def iteration_bound(algorithm, p, epsilon, gap, constant):
    curvature = p["smoothness"] + p["hessian_lipschitz"] * p["alpha"] * (p["sigma"] + epsilon)
    first = curvature / epsilon**2
    bias = 20 * (p["alpha"] * p["smoothness"]) ** 2 if algorithm == "fomaml" else 0
    second = p["smoothness"] / (p["sigma"] ** 2 * (1 / p["num_tasks"] + bias))
    samples = p["num_tasks"] * p["query_size"] + p["support_size"]
    second += p["smoothness"] * samples / p["sigma_tilde"] ** 2
    return constant * gap * min(first, second)


def quadratic_fixed_point_by_running(algorithm, hessians, minimisers, alpha, steps=20_000):
    """Run the exact expected update of the algorithm on f_i = (1/2)(w - c_i)' A_i (w - c_i)."""
    weights = np.zeros_like(minimisers[0])
    rate = 0.5 / max(np.linalg.norm(hessian, 2) for hessian in hessians)
    for _ in range(steps):
        direction = 0.0
        for hessian, center in zip(hessians, minimisers, strict=True):
            adapted = weights - alpha * hessian @ (weights - center)
            outer = hessian @ (adapted - center)
            direction = direction + (
                outer if algorithm == "fomaml" else outer - alpha * hessian @ outer
            )
        weights = weights - rate * direction / len(hessians)
    return weights


# ---- features -----------------------------------------------------------------------------------


def two_layer_features(first, bias, second, x):
    """Explicit Jacobian rows d f / d (W1, b1, w2, b2) of f = w2 . relu(W1 x + b1) + b2."""
    rows = []
    for point in x:
        z = first @ point + bias
        active = (z > 0) * second
        rows.append(
            np.concatenate([np.outer(active, point).ravel(), active, np.maximum(z, 0), [1.0]])
        )
    return np.array(rows)


def gaussian_features(x, centers, widths):
    out = np.zeros((len(x), len(centers)))
    for i, point in enumerate(x):
        for j, center in enumerate(centers):
            distance = np.sum((np.atleast_1d(point) - np.atleast_1d(center)) ** 2)
            out[i, j] = math.exp(-distance / (2 * widths[j] ** 2))
    return out


def polynomial_features(x, dim, coefficients=None):
    coefficients = np.ones(dim) if coefficients is None else coefficients
    return np.array([[coefficients[j] * value**j for j in range(dim)] for value in x])
