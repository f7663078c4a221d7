"""What the experiments on Omniglot share: options of a run with rates of their own."""

from typing import Any

from metastep.train import TrainConfig


def omniglot_options(config: Any, seed: int, **more: Any) -> TrainConfig:
    """The options of an experiment's runs: its sizes, conv4 or a small dense network, fixed rates.

    Parameters
    ----------
    config : has `data`, `ways`, `shots`, `queries`, `steps`, `tasks_per_step`, `filters`, and `hidden`, the widths
        of a dense network in place of conv4; () for conv4
    seed, more : other options
    """
    names = ("data", "ways", "shots", "queries", "steps", "tasks_per_step", "filters")
    sizes = {name: getattr(config, name) for name in names}
    model = {"model": "mlp", "hidden": config.hidden} if config.hidden else {"model": "conv4"}
    return TrainConfig(
        tasks="omniglot", schedule="constant", rate="fixed", seed=seed, **sizes, **model, **more
    )
