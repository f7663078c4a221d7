"""From resolved options to a learner."""

from functools import lru_cache
from typing import Any

import optax

from metastep.rates import make_optimizer, make_rate
from metastep.train.config import TrainConfig
from metastep.train.learner import Learner, side_by_side
from metastep.train.problem import build_inner_loop, build_meta_gradient, build_model


@lru_cache(maxsize=8)
def _optimizer(name: str) -> optax.GradientTransformation:
    """One for each name: it holds nothing, not even its rate, so that a program serves at any."""
    return make_optimizer(name, 1.0)


def build_learner(
    config: TrainConfig, description: dict[str, Any], alpha: float, meta_lr: float
) -> Learner:
    """The learner of a run, from its resolved options."""
    model = build_model(config, description)
    objective, adapter = build_inner_loop(config, model, description)
    return Learner(
        model=model,
        objective=objective,
        adapter=adapter,
        meta_gradient=build_meta_gradient(config),
        rate=make_rate(config.rate, alpha, adapter.restrict, adapter.trainable),
        optimizer=_optimizer(config.optimizer),
        meta_lr=meta_lr,
        tasks_per_step=config.tasks_per_step or 1,
        tasks_at_once=side_by_side(model, config.tasks_at_once, config.tasks_per_step),
        schedule=config.schedule,
        clip_tasks=None if config.clip_tasks in ("auto", "off") else config.clip_tasks,
        back_offs=config.back_offs,
    )
