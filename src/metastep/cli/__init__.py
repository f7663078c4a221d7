"""The command line: parse, call, write. Importing it does not import jax."""

from metastep.cli.main import main

__all__ = ["main"]
