"""Convolution of 75 images at stride 1, as in the layers of Conv4 on 84x84 images: value and both derivatives.

    taskset -c 0 python benchmarks/convolution.py [--rounds 15]

By metastep, by gathering neighbourhoods and multiplying, and by JAX's own. Processor time, medians over rounds in
which all take turns.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metastep.models import conv_general_dilated
from metastep.models.im2col import convolve_by_product
from metastep.train import keep_freed_memory

IMAGES, FILTERS = 75, 32
LAYERS = ((84, 3), (42, 32), (21, 32), (10, 32))  # pixels a side, and channels
LAYOUTS = ("NHWC", "HWIO", "NHWC")

WAYS: dict[str, Callable] = {
    "metastep": lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=LAYOUTS),
    "product": lambda x, k: convolve_by_product(x, k, (1, 1), ((1, 1), (1, 1))),
    "JAX": lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=LAYOUTS
    ),
}


def programs(convolve: Callable) -> dict[str, Callable]:
    """Of images, kernel and cotangent: the value, and what a cotangent becomes in the images and in the kernel."""
    return {
        "value": jax.jit(lambda x, k, out: convolve(x, k)),
        "images": jax.jit(lambda x, k, out: jax.vjp(lambda x: convolve(x, k), x)[1](out)),
        "kernel": jax.jit(lambda x, k, out: jax.vjp(lambda k: convolve(x, k), k)[1](out)),
    }


def times(side: int, channels: int, rounds: int) -> dict[str, dict[str, float]]:
    """Way -> what of it -> milliseconds."""
    rng = np.random.default_rng(0)
    shapes = (
        (IMAGES, side, side, channels),
        (3, 3, channels, FILTERS),
        (IMAGES, side, side, FILTERS),
    )
    given = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    every = [
        (way, part, program)
        for way, convolve in WAYS.items()
        for part, program in programs(convolve).items()
    ]
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for _ in range(rounds + 1):  # the first compiles
        for way, part, program in every:
            began = time.process_time()
            jax.block_until_ready(program(*given))
            found[way].setdefault(part, []).append(1e3 * (time.process_time() - began))
    return {
        way: {part: float(np.median(taken[1:])) for part, taken in parts.items()}
        for way, parts in found.items()
    }


def main() -> None:
    """Print a row for each layer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    ways = ", ".join(WAYS)
    print(f"| layer, ms | value: {ways} | derivative of images | of the kernel |")
    print("|---|---|---|---|")
    for side, channels in LAYERS:
        taken = times(side, channels, rounds)
        parts = [", ".join(f"{taken[way][part]:.3g}" for way in WAYS) for part in taken["metastep"]]
        print(f"| {side}x{side}, {channels} channels | {' | '.join(parts)} |", flush=True)


if __name__ == "__main__":
    main()
