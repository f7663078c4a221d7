"""Takagi et al., linear regression: theoretical and empirical limits of alpha and beta, simplified and exact MAML."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Batch, Loss
from metastep.experiments.core import Claim, Experiment, Report, from_to, verdict_of
from metastep.models import squared_error
from metastep.report import style

Form = Literal["simplified", "exact"]
_FORMS: tuple[Form, ...] = ("simplified", "exact")


@dataclasses.dataclass(frozen=True)
class Config:
    """One task of linear regression, and the rates it is meta-trained at, in units of 1 / lambda_max."""

    dim: int = 5
    examples: int = 20
    alphas: int = 17
    betas: int = 17
    steps: int = 400
    bisections: int = 24
    # It keeps 1 off the grid, where one direction neither shrinks nor grows.
    largest_alpha: float = 1.65
    largest_beta: float = 32.0


def _draw_task(config: Config, seed: int) -> Batch:
    """Gaussian inputs of unlike scales; all labels are zero, so that the minimum is the origin."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((config.examples, config.dim)) * np.linspace(0.6, 1.4, config.dim)
    return Batch(jnp.asarray(x), jnp.zeros((config.examples, 1)))


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Train on the whole grid, find both limits by bisection, and compute them from the spectrum."""
    task = _draw_task(config, seed)

    def loss(w: Array) -> Array:
        return squared_error(task.x @ w[:, None], task.y)

    start = jax.random.normal(jax.random.key(seed), (config.dim,))
    spectrum = jnp.linalg.eigvalsh(jax.hessian(loss)(start))
    sharpest = spectrum[-1]
    alphas = jnp.linspace(0.0, config.largest_alpha, config.alphas) / sharpest
    betas = jnp.geomspace(0.5, config.largest_beta, config.betas) / sharpest
    forms = {}
    for index, form in enumerate(_FORMS):
        report(f"{form} MAML", index, len(_FORMS))
        forms[form] = _limits(form, loss, start, spectrum, alphas, betas, config)
    return {"eigenvalues": spectrum, "alphas": alphas, "betas": betas, **forms}


def _limits(
    form: Form,
    loss: Loss,
    start: Array,
    spectrum: Array,
    alphas: Array,
    betas: Array,
    config: Config,
) -> dict[str, Any]:
    """The map, and theoretical and empirical limits; an empirical limit of 0 says that no beta converges."""
    sharpest = spectrum[-1]
    # For alpha below 2 / lambda_max every limit is at least 2 / lambda_max, or there is none.
    lowest, highest = 0.5 / sharpest, 4 * config.largest_beta / sharpest

    def gradient(alpha: Array) -> Callable[[Array], Array]:
        return jax.grad(lambda w: theory.one_step_loss(loss, w, alpha, form))

    def log_factor(alpha: Array, beta: Array) -> Array:
        return theory.log_contraction(gradient(alpha), start, beta, config.steps)

    def find_beta(alpha: Array) -> Array:
        sizes = (config.steps, config.bisections)
        return theory.largest_contracting_rate(gradient(alpha), start, lowest, highest, *sizes)

    def find_alpha() -> Array:
        def converges(alpha: Array) -> Array:  # beta lambda <= 1 on all eigenvalues
            return log_factor(alpha, 1 / sharpest) < 0

        return theory.largest_rate(converges, 0.1 / sharpest, 10 / sharpest, config.bisections)

    grid = jax.jit(jax.vmap(jax.vmap(log_factor, (None, 0)), (0, None)))(alphas, betas)
    return {
        "log_factor": grid,
        "beta_c": [theory.max_meta_rate(spectrum, a, form) for a in alphas],
        "beta_c_measured": jax.jit(jax.vmap(find_beta))(alphas),
        "beta_c_at_limit": theory.max_meta_rate(spectrum, 1 / sharpest, form),
        "alpha_c": theory.max_adaptation_rate(spectrum, form),
        "alpha_c_measured": jax.jit(find_alpha)() if form == "simplified" else None,
    }


@style.styled
def plot(records: dict[str, Any]) -> Figure:
    """Rate of convergence over (alpha, beta) for both losses, with the limits drawn on top."""
    figure, axes = style.new_figure(1, 2, panel=(5.6, 4.2))
    for panel, form, title in zip(
        axes, _FORMS, ("simplified loss L − (α/2)|g|²", "MAML, one inner step"), strict=True
    ):
        mesh = _draw_map(panel, records, records[form], records["simplified"]["beta_c"])
        panel.set_title(title)
    bar = figure.colorbar(mesh, ax=axes)  # type: ignore[possibly-undefined]
    bar.set_label("log₁₀ of the factor per meta-step")
    style.legend_below(figure, columns=4)
    return figure


def _draw_map(axes: Axes, records: dict[str, Any], found: dict[str, Any], poster: list[float]):
    sharpest = records["eigenvalues"][-1]
    alphas, betas = np.array(records["alphas"]) * sharpest, np.array(records["betas"]) * sharpest
    mesh = axes.pcolormesh(
        alphas, betas, np.array(found["log_factor"]).T, cmap="PuOr_r",
        vmin=-0.2, vmax=0.2, shading="nearest", rasterized=True,
    )  # fmt: skip

    def scaled(values: list[float]) -> np.ndarray:
        return np.array([v * sharpest if v else np.nan for v in values])

    if found["alpha_c"] is None:
        axes.plot(alphas, scaled(poster), "--", color="0.35", label="β_c of the poster")
    axes.plot(alphas, scaled(found["beta_c"]), "-", color="black", label="β_c, theory")
    axes.plot(alphas, scaled(found["beta_c_measured"]), "o", color="black", markerfacecolor="white",
              markevery=max(1, len(alphas) // 20), label="β_c, measured")  # fmt: skip
    axes.axvline(1, color="black", linestyle=":", label="α_c of the poster")
    axes.set(yscale="log", xlabel="α λ_max", ylabel="β λ_max", ylim=(betas[0], betas[-1]))
    axes.grid(False)
    return mesh


def claims(records: dict[str, Any]) -> list[Claim]:
    """The poster's claims, and whether they carry over to MAML itself."""
    return [
        _beta_matches("simplified", records),
        _alpha_matches(records),
        _is_about_maml(records),
        _beta_matches("exact", records),
        _diverges(records),
        *(_grows(form, records) for form in _FORMS),
    ]


def _compared(records: dict[str, Any], form: str) -> list[tuple[float, float, float]]:
    """alpha, theory and measurement, where the limit exists."""
    found = records[form]
    rows = zip(records["alphas"], found["beta_c"], found["beta_c_measured"], strict=True)
    return [row for row in rows if row[1]]


def _beta_matches(form: Form, records: dict[str, Any]) -> Claim:
    rows = _compared(records, form)
    error = max(abs(measured / predicted - 1) for _, predicted, measured in rows)
    beyond = [
        b for a, b in zip(records["alphas"], records[form]["beta_c_measured"], strict=True)
        if a > records["simplified"]["alpha_c"] * 1.01
    ]  # fmt: skip
    is_poster = form == "simplified"
    none_beyond = not is_poster or not any(beyond)
    formula = "2 / max(λ − αλ²) up to α_c" if is_poster else "2 / max λ(1 − αλ)², for every α"
    return Claim(
        f"β_c = {formula} is where {'the simplified' if is_poster else 'exact one-step'} MAML stops "
        "converging",
        "Takagi et al., linear regression"
        if is_poster
        else "metastep, in place of the poster's β_c",
        "β_c by bisection of trained runs; holds within 0.1 % (the bisection resolves 0.001 %)",
        verdict_of(error < 1e-3 and none_beyond),
        f"largest relative difference {error:.1e} over {len(rows)} rates"
        + (f"; no β converges at {len(beyond)} rates beyond α_c" if is_poster else ""),
    )


def _alpha_matches(records: dict[str, Any]) -> Claim:
    found = records["simplified"]
    error = abs(found["alpha_c_measured"] / found["alpha_c"] - 1)
    return Claim(
        "α_c = 1 / λ_max is the largest α at which the simplified MAML converges",
        "Takagi et al., linear regression",
        "bisection of trained runs at β = 1 / λ_max; holds within 0.1 %",
        verdict_of(error < 1e-3),
        f"α_c {found['alpha_c']:.5f}, measured {found['alpha_c_measured']:.5f}",
    )


def _is_about_maml(records: dict[str, Any]) -> Claim:
    exact, poster = records["exact"]["beta_c_measured"], records["simplified"]["beta_c"]
    ratios = [e / p for e, p in zip(exact, poster, strict=True) if p]
    beyond = [e for e, p in zip(exact, poster, strict=True) if not p]
    off = max(abs(ratio - 1) for ratio in ratios[1:])
    return Claim(
        "The limits α_c and β_c are those of MAML",
        "Takagi et al., title and conclusion",
        "measured β_c of MAML with its exact gradient over the poster's β_c; holds if within 5 % and no "
        "β converges beyond α_c",
        verdict_of(off < 0.05 and not any(beyond)),
        f"MAML's β_c is {from_to(ratios, '.2f')} times the poster's below α_c, and MAML "
        f"converges at {sum(b > 0 for b in beyond)} of {len(beyond)} rates beyond it",
    )


def _diverges(records: dict[str, Any]) -> Claim:
    found = records["simplified"]
    growth = found["beta_c_at_limit"] / found["beta_c"][0]
    share = np.array(records["eigenvalues"]) / records["eigenvalues"][-1]
    return Claim(
        "As α approaches α_c the upper bound β_c diverges",
        "Takagi et al., condition for convergence",
        "β_c at α_c over β_c at 0, from the spectrum; holds if infinite, which takes equal eigenvalues",
        verdict_of(not np.isfinite(growth)),
        f"β_c grows {growth:.2f}-fold; 1 / max x(1 − x) = {1 / np.max(share * (1 - share)):.2f} for "
        "x = λ / λ_max",
    )


def _grows(form: Form, records: dict[str, Any]) -> Claim:
    limit = 1 / records["eigenvalues"][-1]
    pairs = zip(records["alphas"], records[form]["beta_c_measured"], strict=True)
    betas = [beta for alpha, beta in pairs if alpha < limit * (1 - 1e-6)]
    rises = bool(np.all(np.diff(betas) >= -1e-6 * betas[0]))
    name = "the simplified MAML" if form == "simplified" else "MAML"
    return Claim(
        f"The largest β of {name} is larger when α is close to its largest value",
        "Takagi et al., conclusion",
        "measured β_c over α from 0 to α_c; holds if it never falls and ends above where it began",
        verdict_of(rises and betas[-1] > betas[0]),
        f"β_c from {betas[0]:.3f} at α = 0 to {betas[-1]:.3f} just below α_c",
    )


EXPERIMENT = Experiment(
    name="takagi-linear",
    title="Largest alpha and beta in linear regression, simplified and exact MAML",
    paper="takagi",
    quick=Config(),
    paper_scale=Config(alphas=65, betas=65, steps=2000, bisections=40, dim=10, examples=40),
    run=run,
    plot=plot,
    claims=claims,
)
