"""metastep: gradient-based meta-learning with learning rates from theory and measurement."""

__version__ = "0.1.0"
