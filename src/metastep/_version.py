"""The version, in a module of its own so that run folders can record it without loading the package."""

__version__ = "0.1.0"
