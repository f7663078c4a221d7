"""Zou et al., Proposition 1: how the risk of the MAML minimiser scatters around its mean."""

import dataclasses
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    from_to,
    log_slope,
    verdict_of,
)
from metastep.report import style
from metastep.report.lines import Series, draw


@dataclasses.dataclass(frozen=True)
class Config:
    """Gaussian features with many more shots than dimensions, so that the bound says something."""

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    trials: int = 2000
    shots: int = 200
    dim: int = 5
    multiples: tuple[float, ...] = (0.0, 0.5, 1.0)
    largest_multiple: float = 300.0
    rates: int = 25
    delta: float = 0.05


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Scatter of L_m(w_m) over the optima of N tasks: sampled against N, exact over alpha."""
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((max(config.sizes), config.shots, config.dim))
    limit = float(theory.limit_rate(phi))
    smallest, largest = theory.eigenvalue_bounds(phi)
    bounds = float(smallest), float(largest)
    report("scatter against N", 0, 2)
    alphas = np.array(config.multiples) * limit
    by_size = []
    for size in config.sizes:
        predicted = np.sqrt(theory.risk_variance(phi[:size], alphas))
        for multiple, alpha, sd in zip(config.multiples, alphas, predicted, strict=True):
            found = _sampled(config, rng, phi, size, float(alpha), bounds)
            by_size.append({"multiple": multiple, "tasks": size, "predicted": float(sd), **found})
    report("scatter over alpha", 1, 2)
    middle = phi[: config.sizes[len(config.sizes) // 2]]
    grid = np.concatenate([np.linspace(0, 2, config.rates),
                           np.geomspace(2, config.largest_multiple, config.rates)[1:]])  # fmt: skip
    return {
        "alpha_lim": limit,
        "by_size": by_size,
        "by_rate": {
            "multiple": grid,
            "sd": np.sqrt(theory.risk_variance(middle, grid * limit)),
            "epsilon": theory.concentration_spread(grid * limit, *bounds, config.shots),
        },
        "by_rate_tasks": len(middle),
    }


def _sampled(
    config: Config,
    rng: np.random.Generator,
    phi: np.ndarray,
    tasks: int,
    alpha: float,
    bounds: tuple[float, float],
) -> dict[str, float]:
    """Deviations of L_m(w_m) over draws of the optima a_i ~ N(0, I), whose risk is about their mean, 0."""
    # The other tasks get no weight, so that one shape is compiled.
    weights = (np.arange(len(phi)) < tasks).astype(float)
    params = np.zeros((config.trials, config.dim))
    for share in np.asarray(theory.minimiser_shares(phi, alpha, weights=weights))[:tasks]:
        params += rng.standard_normal(params.shape) @ share.T
    curve = theory.risk_curve(phi, np.zeros((len(phi), config.dim)), weights=weights)
    risks = np.asarray(jax.vmap(lambda w: curve.risks_at(w, alpha))(params))
    deviations = np.abs(risks - risks.mean())
    norm = theory.gaussian_norm(phi[:tasks], alpha)
    case = (alpha, *bounds, tasks, config.shots, config.dim, norm, config.delta)
    return {
        "sd": float(risks.std()),
        "quantile": float(np.quantile(deviations, 1 - config.delta)),
        "bound": float(theory.concentration_bound(*case)),  # its absolute constant at 1
        "bound_as_printed": float(theory.concentration_bound_as_printed(*case)),
    }


def plot(records: dict[str, Any]) -> Figure:
    """Scatter against N with the bounds; scatter and epsilon over alpha."""
    figure, (by_size, by_rate) = style.new_figure(1, 2)
    lines = []
    for color, (multiple, rows) in zip(style.PALETTE, _by_multiple(records).items(), strict=False):
        x = [row["tasks"] for row in rows]
        label, sampled = f"sampled, {multiple:g} α_lim", [row["sd"] for row in rows]
        lines.append(Series(label, x, sampled, None, color, " ", "o"))
        by_size.plot(x, [row["predicted"] for row in rows], color=color)
    by_size.plot([], [], color=style.GREY, label="exact")
    first = next(iter(_by_multiple(records).values()))
    sizes = [row["tasks"] for row in first]
    lines.append(Series("bound at α = 0, c = 1", sizes, [row["bound"] for row in first],
                        None, style.BLACK, "--"))  # fmt: skip
    draw(by_size, lines, "number of tasks N", "sd of the risk", True, True, "Scatter against N")
    rates = records["by_rate"]
    start = next(i for i, multiple in enumerate(rates["multiple"]) if multiple > 0)
    curves = [
        Series("sd / sd at α = 0", rates["multiple"][start:], _relative(rates["sd"])[start:],
               None, style.ORANGE),
        Series("ε / ε at α = 0", rates["multiple"][start:], _relative(rates["epsilon"])[start:],
               None, style.BLACK, ":"),
    ]  # fmt: skip
    draw(by_rate, curves, r"$\alpha / \alpha_{lim}$", "relative to α = 0", True, True,
         f"Scatter over α, N = {records['by_rate_tasks']}")  # fmt: skip
    style.legend_below(figure, columns=3)
    return figure


def _relative(values: list) -> np.ndarray:
    array = np.array(values, float)
    return array / array[0]


def _by_multiple(records: dict[str, Any]) -> dict[float, list[dict[str, float]]]:
    rows: dict[float, list[dict[str, float]]] = {}
    for row in records["by_size"]:
        rows.setdefault(row["multiple"], []).append(row)
    return rows


def claims(records: dict[str, Any]) -> list[Claim]:
    """Concentration, its speed, the bound itself, and what a large alpha does."""
    return [
        _speed(records),
        _is_exact(records),
        _covered(records, "bound", "corrected, √d ε / N"),
        _covered(records, "bound_as_printed", "as printed, √(d ε / N²)"),
        _large_rates(records),
    ]


def _speed(records: dict[str, Any]) -> Claim:
    slopes = {
        multiple: log_slope([row["tasks"] for row in rows], [row["sd"] for row in rows])
        for multiple, rows in _by_multiple(records).items()
    }
    # Two thousand draws know each sd to 2 %, a slope over four doublings to 0.03.
    return Claim(
        "The risk concentrates around its mean, with deviations of order 1/N",
        "Zou et al. (2022), Proposition 1",
        "power of N fitted to the standard deviation over draws of optima; holds if within 0.1 of -1",
        verdict_of(all(abs(slope + 1) < 0.1 for slope in slopes.values())),
        ", ".join(f"N^{slope:.3f} at {multiple:g} α_lim" for multiple, slope in slopes.items()),
    )


def _is_exact(records: dict[str, Any]) -> Claim:
    errors = [abs(row["sd"] / row["predicted"] - 1) for row in records["by_size"]]
    return Claim(
        "For Gaussian optima the variance is 2 σ⁴ tr[(BQ)²] / K², exactly",
        "beyond Zou et al. (2022), Proposition 1",
        "sampled against exact standard deviation for every N and α; holds if within 10 %, five times the "
        "sampling error",
        verdict_of(max(errors) < 0.1),
        f"largest difference {max(errors):.1%} over {len(errors)} pairs",
    )


def _covered(records: dict[str, Any], key: str, title: str) -> Claim:
    rows = records["by_size"]
    finite = [row for row in rows if row[key] is not None]
    ratios = [row[key] / row["quantile"] for row in finite]
    rates = records["by_rate"]
    pairs = zip(rates["multiple"], rates["epsilon"], strict=True)
    infinite = [multiple for multiple, epsilon in pairs if epsilon is None]
    holds = min(ratios) >= 1
    return Claim(
        f"The bound of Proposition 1 ({title}) covers the deviations with probability 95 %",
        "Zou et al. (2022), Proposition 1 and equation 3.4",
        "bound, its unknown constant set to 1, over the sampled 95 % quantile; holds if at least 1, and "
        "with a condition if its denominator is not positive for some α",
        verdict_of(holds and len(finite) == len(rows), with_condition=holds),
        f"{from_to(ratios)} times the quantile for {len(finite)} of {len(rows)} "
        f"pairs of N and α; infinite from {infinite[0]:.2f} to {infinite[-1]:.0f} α_lim",
    )


def _large_rates(records: dict[str, Any]) -> Claim:
    rates = records["by_rate"]
    multiples, spread = np.asarray(rates["multiple"]), _relative(rates["sd"])
    last = multiples >= 0.1 * multiples[-1]
    power = log_slope(multiples[last].tolist(), spread[last].tolist())
    least = int(spread.argmin())
    return Claim(
        "A large α makes the bound tighter",
        "Zou et al. (2022), text after equation 3.4",
        "exact standard deviation over α; holds if it falls towards large α",
        verdict_of(power < 0),
        f"least ({spread[least]:.2g} of that at 0) at {multiples[least]:.2f} α_lim, then rising: "
        f"{spread[-1]:.2g} times at {multiples[-1]:.0f} α_lim, as α^{power:.2f}",
    )


EXPERIMENT = Experiment(
    name="zou-prop1",
    title="concentration of the MAML risk: speed in N, and the effect of a large α",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(sizes=tuple(2**i for i in range(3, 12)), trials=20_000),
    run=run,
    plot=plot,
    claims=claims,
)
