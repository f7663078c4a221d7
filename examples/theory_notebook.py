"""The best adaptation rate of mixed linear regression: from the formula, from the curve, and from labels."""

import jax
import jax.numpy as jnp

from metastep import theory

SHOTS, DIM = 20, 5


def draw_tasks(key, num_tasks: int, noise: float = 0.5):
    """Support and query features and labels of tasks with optima N(0, I), inputs of unequal variance."""
    keys = jax.random.split(key, 4)
    size = jnp.array([2.0, 1.0, 1.0, 0.5, 0.5])
    phi, phi_query = size * jax.random.normal(keys[0], (2, num_tasks, SHOTS, DIM))
    optima = jax.random.normal(keys[1], (num_tasks, DIM))

    def labels(key, phi):
        return jnp.einsum("nkd,nd->nk", phi, optima) + noise * jax.random.normal(key, phi.shape[:2])

    return phi, labels(keys[2], phi), phi_query, labels(keys[3], phi_query)


def main(num_tasks: int = 2000) -> None:
    """Three ways to the rate, the meta rate it allows, and what is gained."""
    phi, y, phi_query, y_query = draw_tasks(jax.random.key(0), num_tasks)
    formula = theory.limit_rate(phi, phi_query)  # (H.6): inputs alone
    noisy = theory.limit_rate(phi, phi_query, noise_var=0.25)
    aware = theory.label_aware_rate(phi, -y, phi_query, -y_query)  # at w = 0, residuals are -y
    print(f"alpha from the inputs alone: {formula:.4f}, allowing for noise: {noisy:.4f}")
    print(f"alpha from the labels: {aware:.4f}")

    curve = theory.risk_curve_from_labels(phi, y, phi_query=phi_query, labels_query=y_query)
    alphas = jnp.linspace(0, 2 * formula, 201)
    risks = curve.risks(alphas)
    best = jnp.argmin(risks)
    print(f"alpha at the minimum of the empirical risk: {alphas[best]:.4f}")
    print(f"risk without adaptation: {risks[0]:.3f}, at the minimum: {risks[best]:.3f}")


if __name__ == "__main__":
    main()
