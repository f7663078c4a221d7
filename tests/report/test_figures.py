"""Figures: the data drawn is the data given, the scale suits it, files are the same bytes twice."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import runs
from matplotlib.figure import Figure

from metastep._errors import InputError
from metastep.report import figures, pictures, save_figure, style
from metastep.report.folder import check_examples
from metastep.report.lines import Series, draw


def line(figure: Figure, label: str):
    (found,) = [one for axes in figure.axes for one in axes.lines if one.get_label() == label]
    return found


def test_learning_curve_is_the_rows_it_was_given():
    rows = [row for row in runs.metric_rows() if "validation" not in row]
    figure = figures.learning_figure(rows)
    drawn = line(figure, "training tasks, after adaptation")
    np.testing.assert_array_equal(drawn.get_xdata(), [row["iteration"] for row in rows])
    np.testing.assert_array_equal(drawn.get_ydata(), [row["loss"] for row in rows])


@pytest.mark.parametrize(("last", "scale"), [(1.0, "linear"), (0.01, "log"), (-0.01, "linear")])
def test_loss_axis_is_logarithmic_when_it_spans_decades(last, scale):
    rows = [{"iteration": 1, "loss": 2.0}, {"iteration": 2, "loss": last}]
    assert figures.learning_figure(rows).axes[0].get_yscale() == scale


def test_best_checkpoint_sits_on_the_validation_curve():
    validation = [{"iteration": 10, "loss": 2.0}, {"iteration": 20, "loss": 1.5}]
    rows = [{"iteration": 20, "loss": 9.0}]
    figure = figures.learning_figure(rows, validation, {"iteration": 20, "loss": 1.5})
    star = line(figure, "best checkpoint")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (20, 1.5)


def test_gap_is_left_where_the_loss_was_not_finite():
    rows = [{"iteration": k, "loss": None if k == 2 else 1.0} for k in (1, 2, 3)]
    figure = figures.learning_figure(rows)
    y = line(figure, "training tasks, after adaptation").get_ydata()
    assert math.isnan(y[1])
    assert line(figure, "loss not finite from here").get_xdata()[0] == 2


def test_nothing_to_draw_is_said():
    with pytest.raises(InputError, match="no metric row holds a finite loss"):
        figures.learning_figure([{"iteration": 1, "loss": None}])
    with pytest.raises(InputError, match="the rates record holds no curve over alpha"):
        figures.alpha_figure({"alpha": 0.1})
    with pytest.raises(InputError, match="the evaluation holds no finite accuracy"):
        figures.steps_figure([{"steps": 1, "loss": {"mean": 1.0, "ci95": 0.1}}], "accuracy")


def test_alpha_figure_draws_curve_band_and_rates():
    record = runs.rates()
    figure = figures.alpha_figure(record)
    measured = line(figure, "measured, 95 % interval")
    np.testing.assert_allclose(measured.get_ydata(), record["curve"]["measured"])
    predicted = line(figure, "quadratic prediction")
    alpha = predicted.get_xdata()
    assert len(alpha) > 100  # drawn finely, so that its minimum does not fall between two points
    np.testing.assert_allclose(predicted.get_ydata(), 4.0 - 80.0 * alpha + 1000.0 * alpha**2)
    assert line(figure, "best α, used").get_xdata()[0] == 0.04
    assert line(figure, "label-free α").get_xdata()[0] == 0.0311


def test_alpha_figure_tells_the_used_rate_from_the_best():
    figure = figures.alpha_figure({**runs.rates(), "alpha_chosen": 0.01})
    assert line(figure, "best α").get_xdata()[0] == 0.04
    assert line(figure, "α used").get_xdata()[0] == 0.01


def test_alpha_figure_shows_the_minimum_beside_an_explosion():
    # At the largest rates the loss is 1e6 times its minimum, which drawn to scale would vanish.
    record = runs.rates()
    record["curve"]["measured"] = [4.0, 3.0, 2.4, 3.0, 1e6, None]
    record["curve"] |= {"alpha": [0, 1, 2, 3, 4, 5], "ci95": [0.1] * 6, "predicted": [3.0] * 6}
    low, high = figures.alpha_figure(record).axes[0].get_ylim()
    assert low < 2.4
    assert 4.0 < high < 8.0


def test_prediction_that_is_no_quadratic_is_drawn_as_given():
    record = runs.rates()
    record["curve"]["predicted"] = list(np.abs(np.sin(np.arange(21))))
    drawn = line(figures.alpha_figure(record), "quadratic prediction")
    np.testing.assert_allclose(drawn.get_ydata(), record["curve"]["predicted"])


def test_alpha_over_decades_is_logarithmic_with_zero_as_a_level():
    # The grid that rates are checked on: 0 and then two and a half decades around the estimate.
    alpha = np.concatenate([[0.0], 0.04 * np.logspace(-1.5, 1.0, 12)])
    loss = 4 - 100 * alpha + 1250 * alpha**2
    record = {**runs.rates(), "alpha_interval": [-0.01, 0.09]}
    record["curve"] = {"alpha": alpha, "measured": loss, "ci95": 0 * loss, "predicted": loss}
    figure = figures.alpha_figure(record)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] > 0
    np.testing.assert_array_equal(line(figure, "measured, 95 % interval").get_xdata(), alpha[1:])
    assert line(figure, "without adaptation, α = 0").get_ydata()[0] == 4.0
    assert style.render(figure, "svg") == style.render(figures.alpha_figure(record), "svg")


def test_alpha_curve_of_unequal_columns_is_refused():
    record = runs.rates()
    record["curve"]["measured"] = [1.0]
    with pytest.raises(InputError, match="measured has 1 values, alpha has 21"):
        figures.alpha_figure(record)


def test_steps_figure_draws_means():
    figure = figures.steps_figure(runs.evaluation(accuracy=True)["curve"], "accuracy")
    drawn = figure.axes[0].lines[0]
    np.testing.assert_array_equal(drawn.get_xdata(), range(6))
    np.testing.assert_allclose(drawn.get_ydata()[1], 0.2 + 0.75 * 0.9)


def test_series_colours_follow_the_palette_and_labels_show_once():
    series = [figures.Series(f"s{k}", [0, 1], [k, k + 1], [0.1, 0.1]) for k in range(3)]
    figure = figures.line_figure(series, "x", "y", title="three")
    assert [one.get_color() for one in figure.axes[0].lines] == list(style.PALETTE[:3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["s0", "s1", "s2"]
    assert figure.axes[0].get_title() == "three"


@pytest.mark.parametrize(("x", "whole"), [([10, 20, 30], True), ([10.0, 20.5, 30.0], False)])
def test_counts_have_no_ticks_between_them(x, whole):
    figure = figures.line_figure([figures.Series("s", x, [1.0, 2.0, 3.0])], "meta-step", "y")
    (axes,) = figure.axes
    axes.set_xlim(0.5, 3.5)  # where halves would fit
    ticks = axes.xaxis.get_majorticklocs()
    assert bool(np.all(ticks == np.round(ticks))) is whole


def test_log_axes_have_ticks_to_read_values_from():
    series = [figures.Series("s", [1.0, 10.0], [0.3, 40.0])]
    figure = figures.line_figure(series, "x", "y", log_x=True, log_y=True)
    low, high = figure.axes[0].get_ylim()
    shown = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]
    assert len(shown) >= 3


def test_figures_leave_global_settings_alone():
    before = dict(mpl.rcParams)
    figures.alpha_figure(runs.rates())
    style.render(figures.learning_figure(runs.metric_rows(500)), "svg")
    assert dict(mpl.rcParams) == before


def test_figures_ignore_the_users_settings():
    plain = style.render(figures.alpha_figure(runs.rates()), "svg")
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
        assert style.render(figures.alpha_figure(runs.rates()), "svg") == plain


@pytest.mark.parametrize("name", ["figure", "figure.png", "figure.svg"])
def test_save_figure_writes_both_kinds_twice_the_same(tmp_path, name):
    first = save_figure(figures.alpha_figure(runs.rates()), tmp_path / "a" / name)
    second = save_figure(figures.alpha_figure(runs.rates()), tmp_path / "b" / name)
    assert [path.name for path in first] == ["figure.png", "figure.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in first[1].read_bytes()


def test_unknown_kind_of_file_is_refused():
    with pytest.raises(InputError, match="figure kind is 'gif'; choose one of: png, svg"):
        style.render(Figure(), "gif")


def test_curves_are_the_task_they_are_of():
    examples = runs.curve_examples()
    figure = pictures.curves_figure(examples, 2)
    np.testing.assert_allclose(line(figure, "truth").get_ydata(), examples["truth"][2])
    np.testing.assert_allclose(line(figure, "after").get_ydata(), examples["after"][2])
    np.testing.assert_allclose(line(figure, "support").get_xdata(), examples["support_x"][2])


def test_unsorted_grid_is_drawn_as_one_curve():
    examples = runs.curve_examples()
    shuffled = np.random.default_rng(0).permutation(80)
    for name in ("grid", "truth", "before", "after"):
        examples[name] = examples[name][:, shuffled]
    assert (np.diff(line(pictures.curves_figure(examples, 0), "truth").get_xdata()) > 0).all()


def test_image_table_holds_the_probabilities_of_the_queries_shown():
    examples = runs.image_examples(ways=3, queries=30)
    # Make every query's probabilities its own, so a row drawn for the wrong query shows.
    examples["after"] = np.random.default_rng(4).dirichlet(np.ones(3), (3, 30))
    figure = pictures.images_figure(examples, 1)
    (table,) = [axes for axes in figure.axes if axes.get_gid() == "series-after"]
    shown = np.asarray(table.images[0].get_array())
    assert shown.shape == (pictures.MAX_QUERIES, 3)
    rows = [np.flatnonzero((examples["after"][1] == row).all(-1)) for row in shown]
    labels = [int(examples["query_y"][1][index[0]]) for index in rows]
    assert labels == sorted(labels)
    assert set(labels) == {0, 1, 2}
    frames = [round(float(np.mean(frame.get_xdata()[:4]))) for frame in table.lines]
    assert frames == labels


@pytest.mark.parametrize(("ways", "channels"), [(20, 1), (5, 3)])
def test_many_ways_and_colour_images_are_drawn(ways, channels):
    examples = runs.image_examples(tasks=1, ways=ways, queries=ways)
    for name in ("support_x", "query_x"):
        examples[name] = np.repeat(examples[name], channels, axis=-1)
    (figure,) = pictures.example_figures(examples)
    assert style.render(figure, "png").startswith(b"\x89PNG")


def test_only_as_many_tasks_are_drawn_as_asked_for():
    assert len(list(pictures.example_figures(runs.scatter_examples(tasks=5), tasks=2))) == 2


def test_unusable_examples_are_refused_with_the_reason():
    with pytest.raises(InputError, match="kind of examples is 'audio'; choose one of: curves"):
        check_examples({"kind": "audio"})
    with pytest.raises(InputError, match="examples of kind scatter have no array after; add it"):
        check_examples({"kind": "scatter", "query_y": np.ones((1, 2)), "before": np.ones((1, 2))})
    examples = runs.scatter_examples()
    examples["after"] = examples["after"][:2]
    with pytest.raises(InputError, match="disagree on the number of tasks"):
        check_examples(examples)


@pytest.mark.parametrize(("log_y", "lowest"), [(True, 0.2), (False, -1.0)])
def test_band_that_reaches_zero_does_not_fill_a_logarithmic_panel(log_y, lowest):
    figure = Figure()
    series = Series("loss", [1, 2], [2.0, 2.0], [3.0, 1.0])
    draw(figure.subplots(), [series], "x", "y", log_y=log_y)
    corners = figure.axes[0].collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(lowest)
    assert corners[:, 1].max() == pytest.approx(5.0)
