"""Where print and truth differ: every correction with numbers that anyone can compute again.

`python -m metastep.theory.errata` writes the page of the documentation to standard output. `PAPERS`
holds its entries; `entry.read()` computes one entry's numbers.

>>> from metastep.theory import errata
>>> [len(paper.errata) > 4 for paper in errata.PAPERS]
[True, True, True]
"""

from metastep.theory.errata import fallah2020, takagi, zou2022
from metastep.theory.errata.entry import Erratum, Paper, Reading
from metastep.theory.errata.page import render

__all__ = ["PAPERS", "Erratum", "Paper", "Reading", "render"]

PAPERS = (zou2022.PAPER, takagi.PAPER, fallah2020.PAPER)
