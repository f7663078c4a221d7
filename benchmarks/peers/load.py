"""Import the pure-Python part of learn2learn from its unpacked source (runs in the peers' environment)."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any


def load_learn2learn(root: Path) -> Any:
    """A module with `MAML` and `OmniglotCNN`, without the data loaders that need compiling."""
    source = next((root / "source").glob("learn2learn-*")) / "learn2learn"
    for name in ("", ".algorithms", ".nn", ".vision", ".vision.models"):
        package: Any = types.ModuleType(f"learn2learn{name}")
        package.__path__ = [str(source.joinpath(*name.split(".")))]
        sys.modules[f"learn2learn{name}"] = package
    root_package: Any = sys.modules["learn2learn"]
    utils = importlib.import_module("learn2learn.utils")
    root_package.clone_module, root_package.update_module = utils.clone_module, utils.update_module
    root_package.MAML = importlib.import_module("learn2learn.algorithms.maml").MAML
    root_package.nn = importlib.import_module("learn2learn.nn.misc")
    models = importlib.import_module("learn2learn.vision.models.cnn4")
    root_package.OmniglotCNN = models.OmniglotCNN
    return root_package
