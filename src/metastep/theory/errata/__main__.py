"""Write the page of corrections: python -m metastep.theory.errata > docs/errata.md"""

import sys

import jax

from metastep.theory.errata import PAPERS, render

if __name__ == "__main__":
    with jax.enable_x64(True):
        sys.stdout.write(render(PAPERS))
