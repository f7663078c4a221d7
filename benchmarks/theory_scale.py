"""How the theory scales: the whole alpha curve against a loop in NumPy, and MAML in Gram space.

    python benchmarks/theory_scale.py

prints a table, then the same numbers as one JSON object. The kernel part comes first, because the
peak memory of a process only ever grows.
"""

import json
import os
import resource
import time

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import numpy as np

from metastep import theory

TASKS, SHOTS, DIM, ALPHAS = 5_000, 50, 20, 200
LOOPED = 20  # alphas that the NumPy loop is timed on; its time per alpha is constant
WIDTH, KERNEL_TASKS, KERNEL_SHOTS = 10_240, 20, 80


def loop_over_alphas(phi, optima, alphas):
    """The minimal empirical risk as the formulas read: every alpha passes over all tasks."""
    tasks, shots, dim = phi.shape
    risks = []
    for alpha in alphas:
        grams = phi.transpose(0, 2, 1) @ phi
        adapted = phi @ (np.eye(dim) - 2 * alpha / shots * grams)
        weights = adapted.transpose(0, 2, 1) @ adapted
        best = np.linalg.solve(weights.sum(0), (weights @ optima[..., None]).sum(0)[:, 0])
        residual = adapted @ (best - optima)[..., None]
        risks.append(np.sum(residual**2) / (tasks * shots))
    return np.array(risks)


def timed(function):
    """Seconds and result of one call, finished when its arrays are."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def measure_kernel():
    """Tangent kernel of a wide network and the coefficients of least norm, with the peak memory."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-5, 5, size=(KERNEL_TASKS * KERNEL_SHOTS, 1))
    labels = np.sin(x).reshape(KERNEL_TASKS, KERNEL_SHOTS)
    network = theory.two_layer_network(jax.random.key(0), 1, WIDTH, dtype=np.float64)
    gram_seconds, gram = timed(lambda: theory.two_layer_tangent_gram(network, x))
    solve_seconds, result = timed(
        lambda: theory.minimum_norm_coefficients(gram, labels, 1e-4, num_query=KERNEL_SHOTS // 2)
    )
    return {
        "kernel_seconds": gram_seconds,
        "coefficients_seconds": solve_seconds,
        "status": theory.SolveStatus[result.status],
        "condition_number": float(result.condition_number),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_curve():
    """The curve in one call, first with compilation and then without, against the loop."""
    generator = np.random.default_rng(0)
    phi = generator.uniform(-5, 5, size=(TASKS, SHOTS, DIM))
    optima = generator.normal(scale=3**0.5, size=(TASKS, DIM))
    alphas = np.linspace(0, 0.06, ALPHAS)
    first, _ = timed(lambda: theory.risk_curve(phi, optima).risks(alphas))
    seconds, risks = timed(lambda: theory.risk_curve(phi, optima).risks(alphas))
    some = slice(None, None, ALPHAS // LOOPED)
    loop_seconds, looped = timed(lambda: loop_over_alphas(phi, optima, alphas[some]))
    loop_seconds *= ALPHAS / LOOPED
    error = np.max(np.abs(np.asarray(risks)[some] / looped - 1))
    return {
        "curve_seconds": seconds,
        "curve_seconds_with_compilation": first,
        "loop_seconds": loop_seconds,
        "times_faster": loop_seconds / seconds,
        "times_faster_with_compilation": loop_seconds / first,
        "largest_relative_difference": float(error),
    }


def main():
    record = {**measure_kernel(), **measure_curve()}
    for name, value in record.items():
        print(f"{name.replace('_', ' '):35}", value if isinstance(value, str) else f"{value:.4g}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
