"""`python -m metastep` is `metastep`."""

from metastep.cli import main

main()
