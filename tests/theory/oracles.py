"""Slow float64 NumPy versions of the theory, written task by task from the papers' formulas."""

import numpy as np


def grams(phi):
    return [p.T @ p for p in phi]


def trace_moments(phi):
    """p_1, p_2, p_3 as means of traces of explicit matrix powers."""
    return [
        np.mean([np.trace(np.linalg.matrix_power(g, j)) for g in grams(phi)]) for j in (1, 2, 3)
    ]


def limit_rate(phi, cov=None, noise=0.0, task_var=1.0):
    shots, dim = phi.shape[1:]
    cov = task_var * (np.eye(dim) if cov is None else cov)
    num = np.mean([np.trace(g @ g @ cov) + noise * np.trace(g) for g in grams(phi)])
    den = np.mean([np.trace(g @ g @ g @ cov) + noise * np.trace(g @ g) for g in grams(phi)])
    return shots / 2 * num / den


def split_rate(phi, query, cov=None, noise=0.0, task_var=1.0):
    shots, dim = phi.shape[1:]
    cov = task_var * (np.eye(dim) if cov is None else cov)
    pairs = list(zip(grams(phi), grams(query), strict=True))
    num = np.mean([np.trace(cov @ t @ u) for u, t in pairs])
    den = np.mean([np.trace(cov @ u @ t @ u) + noise * np.trace(t @ u) for u, t in pairs])
    return shots / 2 * num / den


def adapted(phi, alpha, query=None):
    """C_i for every task."""
    query = phi if query is None else query
    eye = np.eye(phi.shape[2])
    return [t @ (eye - 2 * alpha / phi.shape[1] * u.T @ u) for u, t in zip(phi, query, strict=True)]


def step(w, phi, y, alpha):
    """One inner step on the mean squared error of one task."""
    return w - 2 * alpha / len(phi) * phi.T @ (phi @ w - y)


def loss_after_step(w, phi, y, alpha, query=None, y_query=None):
    """Mean over tasks of the loss after one inner step, straight from its definition."""
    query, y_query = (phi, y) if query is None else (query, y_query)
    rows = zip(phi, y, query, y_query, strict=True)
    return np.mean([np.mean((t @ step(w, u, yu, alpha) - yt) ** 2) for u, yu, t, yt in rows])


def minimiser(phi, optima, alpha, query=None, weights=None):
    weights = np.ones(len(phi)) if weights is None else weights
    ms = [v * c.T @ c for v, c in zip(weights, adapted(phi, alpha, query), strict=True)]
    return np.linalg.solve(sum(ms), sum(m @ a for m, a in zip(ms, optima, strict=True)))


def mean_weight_of_tests(phi_test, alpha):
    return np.mean([c.T @ c for c in adapted(phi_test, alpha)], axis=0)


def average_risk(phi, alpha, task_var, phi_test):
    ms = [c.T @ c for c in adapted(phi, alpha)]
    inverse = np.linalg.inv(sum(ms))
    mbar = mean_weight_of_tests(phi_test, alpha)
    first = np.trace(mbar @ inverse @ sum(m @ m for m in ms) @ inverse)
    return task_var / phi_test.shape[1] * (first + np.trace(mbar))


def adapted_distance(w, phi, optima, eta, steps):
    total = []
    for p, a in zip(phi, optima, strict=True):
        v = w
        for _ in range(steps):
            v = step(v, p, p @ a, eta)
        total.append(np.sum((v - a) ** 2))
    return np.mean(total)


def distance_gap(phi, alpha, eta, steps, task_var, linearised, phi_test):
    eye = np.eye(phi.shape[2])
    qs = [eye - 2 * eta / phi_test.shape[1] * g for g in grams(phi_test)]
    w_t = np.mean([np.linalg.matrix_power(q, 2 * steps) for q in qs], axis=0)
    s1, s2, s3 = (sum(np.linalg.matrix_power(g, j) for g in grams(phi)) for j in (1, 2, 3))
    v = np.linalg.inv(s1)
    if linearised:
        inner = v @ w_t @ v @ (s2 @ v @ s2 - s3)
        return 8 * alpha * task_var / phi.shape[1] * np.trace(inner)
    ms = [c.T @ c for c in adapted(phi, alpha)]
    s_inv = np.linalg.inv(sum(ms))
    return task_var * np.trace(w_t @ (s_inv @ sum(m @ m for m in ms) @ s_inv - v @ s2 @ v))


def layer_rates(blocks):
    shots, layers = blocks[0].shape[1], len(blocks)
    matrix, right = np.zeros((layers, layers)), np.zeros(layers)
    for i in range(len(blocks[0])):
        ks = [b[i] @ b[i].T for b in blocks]
        k = sum(ks)
        for a in range(layers):
            right[a] += np.trace(ks[a] @ k)
            for b in range(layers):
                matrix[a, b] += np.trace(ks[a] @ ks[b] @ k)
    return np.linalg.solve(matrix, shots / 2 * right)


def schedule_risk(eigenvalues, shots, rates):
    left = np.array(eigenvalues, float).ravel()
    factors = np.prod([1 - 2 * r * left / shots for r in rates], axis=0)
    return np.sum(left * factors**2)


def iid_moments_by_sum(dim, shots, m):
    """E tr G^2 and E tr G^3 for iid entries: every product of entries, its expectation by counting.

    tr G^3 = sum over rows i1 i2 i3 and columns a b c of Y[i1 a] Y[i1 b] Y[i2 b] Y[i2 c] Y[i3 c] Y[i3 a].
    """
    from collections import Counter
    from itertools import product

    def expectation(cells):
        return np.prod([m[count] for count in Counter(cells).values()])

    rows, columns = range(shots), range(dim)
    second = sum(
        expectation([(i, a), (i, b), (j, b), (j, a)])
        for i, j in product(rows, repeat=2)
        for a, b in product(columns, repeat=2)
    )
    third = sum(
        expectation([(i, a), (i, b), (j, b), (j, c), (k, c), (k, a)])
        for i, j, k in product(rows, repeat=3)
        for a, b, c in product(columns, repeat=3)
    )
    return second, third


def polynomial_moments_by_sum(dim, shots, m):
    """The same for rows (1, x, ..., x^(dim-1)): exponents of one x per row add up."""
    from itertools import product

    def expectation(powers):
        totals = {}
        for row, power in powers:
            totals[row] = totals.get(row, 0) + power
        return np.prod([m[t] for t in totals.values()])

    rows, columns = range(shots), range(dim)
    second = sum(
        expectation([(i, a + b), (j, b + a)])
        for i, j in product(rows, repeat=2)
        for a, b in product(columns, repeat=2)
    )
    third = sum(
        expectation([(i, a + b), (j, b + c), (k, c + a)])
        for i, j, k in product(rows, repeat=3)
        for a, b, c in product(columns, repeat=3)
    )
    return second, third


def split_minimum_norm(psi, y, alpha, num_query):
    """Least-norm parameters of the stacked split problem, in parameter space: psi (tasks, examples, dim)."""
    support = psi.shape[1] - num_query
    rows, targets = [], []
    for p, labels in zip(psi, y, strict=True):
        u, t = p[:support], p[support:]
        move = 2 * alpha / support * t @ u.T
        rows.append(t - move @ u)
        targets.append(labels[support:] - move @ labels[:support])
    return np.linalg.pinv(np.concatenate(rows)) @ np.concatenate(targets)
