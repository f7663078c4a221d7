"""The files of a run, and the configuration they start from."""

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metastep._errors import DataError, InputError
from metastep._records import read_json, read_jsonl, to_plain, write_bytes, write_json
from metastep._version import __version__
from metastep.train.config import TrainConfig
from metastep.train.own import plain_options


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what. Reports read the same files."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # text will do

    @property
    def config(self) -> Path:
        """Options, as resolved, and the description of the tasks."""
        return self.path / "config.json"

    @property
    def rates(self) -> Path:
        """The advice training started from."""
        return self.path / "rates.json"

    @property
    def metrics(self) -> Path:
        """One JSON row per logging window or validation."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """How far the run is and how it ended."""
        return self.path / "status.json"

    @property
    def evaluation(self) -> Path:
        """The last evaluation on held-out tasks."""
        return self.path / "evaluation.json"

    @property
    def examples(self) -> Path:
        """Held-out tasks before and after adaptation."""
        return self.path / "examples.npz"

    @property
    def checkpoints(self) -> Path:
        """The newest training states; each also holds what validated best until then."""
        return self.path / "checkpoints"

    def newest_checkpoint(self) -> int | None:
        """The iteration of the newest checkpoint, without opening any."""
        names = [path.name for path in self.checkpoints.glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=None)

    def check_exists(self) -> None:
        """Raise unless this is the folder of a run."""
        if not self.config.is_file():
            raise DataError(
                f"{self.path} is not the folder of a run: it has no config.json; give the --out of a "
                f"`metastep train`"
            )

    def write_config(
        self, config: TrainConfig, description: dict[str, Any], scaling: Any, command: str
    ) -> None:
        """Record what is about to be run."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--out {self.path} cannot be created ({error.strerror}); choose another folder"
            ) from error
        write_json(
            self.config,
            {
                "metastep": __version__,
                "command": command,
                "tasks": description,
                "train": plain_options(config),
                "scaling": scaling,
            },
        )

    def read_config(self) -> tuple[TrainConfig, dict[str, Any], dict[str, Any] | None]:
        """The resolved options, the description of the tasks and the scaling."""
        self.check_exists()
        try:
            record = read_json(self.config)
            return read_options(record), record["tasks"], record["scaling"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.config} cannot be read ({error}); it was written by another version or damaged"
            ) from error

    def keep_metrics_until(self, iteration: int) -> None:
        """Drop the rows a resumed run is about to write again."""
        rows = [row for row in read_jsonl(self.metrics) if row["iteration"] <= iteration]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_bytes(self.metrics, text.encode())

    def add_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows of metrics."""
        text = "".join(json.dumps(to_plain(row), allow_nan=False) + "\n" for row in rows)
        try:
            file = self.metrics.open("a", encoding="utf-8")
        except FileNotFoundError:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.metrics.open("a", encoding="utf-8")
        with file:
            file.write(text)

    def write_arrays(self, path: Path, arrays: dict[str, Any]) -> None:
        """Write an .npz atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    def check_free(self, *, resume: bool, overwrite: bool) -> None:
        """Raise unless a run may start, or go on, in this folder."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path} is a file; give a folder that can be created")
        existing = next(
            path for path in (self.path, *self.path.absolute().parents) if path.exists()
        )
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(
                f"--out {self.path}: {existing} cannot be written to; choose another folder"
            )
        if resume:
            self.check_exists()
        elif self.config.exists() and not overwrite:
            raise InputError(
                f"--out {self.path} already holds a run; --resume goes on with it, --overwrite replaces it"
            )
        elif self.path.exists() and any(self.path.iterdir()) and not self.config.exists():
            raise InputError(
                f"--out {self.path} is not empty and not the folder of a run; choose another folder"
            )


def read_options(record: dict[str, Any]) -> TrainConfig:
    """The options in a record of `config.json`."""
    options = dict(record["train"])
    for name in ("hidden", "target_columns", "feature_columns"):
        options[name] = tuple(options[name])
    options["data"] = Path(options["data"]) if options["data"] else None
    return TrainConfig(**options)
