"""The drawn rate map shows the cells, limits and rates of its records, and its files are what they say."""

import numpy as np
import pytest

from metastep._errors import InputError
from metastep.report import style
from metastep.report.rate_map import largest_betas, map_figure, trained_cells

RECORDS = {
    "alphas": [0.01, 0.1, 1.0],
    "betas": [0.1, 1.0],
    "train_loss": [[0.5, 0.9], [0.4, 3.0], [None, None]],
    "highest_loss": 1.0,
    "predicted": {"start": {"alpha_c": 0.3, "beta_c": [0.8, 0.5, None]}},
    "chosen": {"alpha": 0.1, "beta": 0.2},
}


def drawn(axes, gid):
    (found,) = [line for line in axes.lines if line.get_gid() == gid]
    return found


def test_cells_that_train_are_those_below_the_limit():
    assert trained_cells(RECORDS).tolist() == [[True, True], [True, False], [False, False]]
    np.testing.assert_array_equal(largest_betas(RECORDS), [1.0, 0.1, np.nan])


def test_map_shows_losses_limits_and_the_chosen_rates():
    figure = map_figure(RECORDS, "squared error")
    axes = figure.axes[0]
    (mesh,) = axes.collections
    shown = np.ma.asarray(mesh.get_array()).reshape(2, 3)
    assert shown[0, 1] == 0.4  # beta 0.1, alpha 0.1
    assert shown[1, 0] == 0.9
    assert shown.mask[:, 2].all()
    np.testing.assert_array_equal(drawn(axes, "beta-c-start").get_ydata(), [0.8, 0.5, np.nan])
    assert drawn(axes, "alpha-c-start").get_xdata()[0] == 0.3
    assert (drawn(axes, "chosen").get_xdata()[0], drawn(axes, "chosen").get_ydata()[0]) == (
        0.1,
        0.2,
    )
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert style.render(figure, "svg").startswith(b"<?xml")


def test_map_without_bound_or_choice_is_drawn_without_them():
    records = {**RECORDS, "predicted": {"start": {"alpha_c": None, "beta_c": [None] * 3}}}
    del records["chosen"]
    gids = {line.get_gid() for line in map_figure(records, "nats").axes[0].lines}
    assert not gids & {"alpha-c-start", "chosen"}


def test_map_needs_a_plane():
    with pytest.raises(InputError, match="at least two alphas and two betas, but has 1 and 2"):
        map_figure({**RECORDS, "alphas": [0.1], "train_loss": [[0.5, 0.9]]}, "nats")
