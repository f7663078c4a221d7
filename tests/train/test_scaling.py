"""Tables in standard units: each column by itself, images by channel; and a target that never changes."""

import numpy as np
import pytest

from metastep._errors import DataError
from metastep.train import TrainConfig, load_tasks
from metastep.train.scaling import Scaling


def saved(path, x, y, tasks=10):
    np.savez(path, x=x, y=y, task=np.arange(len(y)) % tasks)
    return TrainConfig(tasks=str(path), shots=2, queries=2)


def drawn(config, seed=0):
    """The inputs of a training task's rows."""
    import jax

    episode = load_tasks(config).splits.train.sample(jax.random.key(seed))
    return np.concatenate([episode.support.x, episode.query.x])


def test_columns_have_scales_of_their_own(tmp_path, rng):
    units = np.array([1e-3, 1.0, 1e4])
    config = saved(
        tmp_path / "t.npz", units * (5 + rng.normal(size=(400, 3))), rng.normal(size=400)
    )
    rows = np.concatenate([drawn(config, seed) for seed in range(50)])
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.4)
    np.testing.assert_allclose(rows.std(0), 1, atol=0.3)


def test_a_pixel_that_is_nearly_always_black_does_not_outshine_the_image(tmp_path, rng):
    """Divided by its own standard deviation, one grey value in a corner would be worth 15."""
    x = rng.integers(0, 256, (400, 6, 6, 3)).astype(np.uint8)
    x[:, 0, 0] = 0
    x[7, 0, 0] = 128
    x[..., 2] //= 8  # a darker channel
    config = saved(tmp_path / "t.npz", x, rng.integers(0, 3, 400))
    table = load_tasks(config).splits.train
    assert np.abs(np.asarray(table.x)).max() < 4
    np.testing.assert_allclose(np.asarray(table.x)[:, 1:].mean((0, 1, 2)), 0, atol=0.1)
    np.testing.assert_allclose(np.asarray(table.x)[:, 1:].std((0, 1, 2)), 1, atol=0.1)


def test_the_scales_of_images_are_written_down_and_read_again(tmp_path, rng):
    config = saved(tmp_path / "t.npz", rng.normal(size=(40, 4, 5, 3)), rng.normal(size=40))
    scaling = load_tasks(config).scaling
    assert scaling is not None
    assert scaling.x_mean.shape == scaling.x_scale.shape == (3,)
    x = rng.normal(size=(7, 4, 5, 3))
    again = Scaling.from_record(scaling.record())
    np.testing.assert_array_equal(again.inputs(x), scaling.inputs(x))


@pytest.mark.parametrize(
    ("y", "found"),
    [
        (np.full(40, 7), "the target 'y' is 7 in all 40 rows"),
        (np.full(40, "high"), "the target 'y' is high in all 40 rows"),
        (np.full(40, 0.25), "the target 'y' is 0.25 in all 40 rows"),
        (np.tile([1.5, 2.0], (40, 1)), "the target 'y' is 1.5, 2 in all 40 rows"),
    ],
)
def test_a_target_that_never_changes_is_a_slip(tmp_path, rng, y, found):
    with pytest.raises(DataError) as caught:
        load_tasks(saved(tmp_path / "t.npz", rng.normal(size=(40, 2)), y))
    assert str(caught.value) == (
        f"t.npz: {found}, so there is nothing to learn; check which column is the target"
    )
