"""Corrections to Zou et al. (2022) and its talk, main text before appendix."""

from metastep.theory.errata import zou2022_appendix, zou2022_main
from metastep.theory.errata.entry import Paper

PAPER = Paper(
    key="zou2022",
    title="Zou, Liu and Li (2022): Unraveling MAML via the adaptation learning rate, with its talk",
    remark=(
        "Theorem 1, its estimator (3.3), the upper end of (3.5), (B.5), (B.6), (E.3), (E.8), (H.1) and (H.6) "
        "hold as printed, and Theorem 2 holds under weaker assumptions than stated. Notation as in the "
        "paper; m_r is the r-th raw moment, λ_I and λ_S bound the eigenvalues of ΦᵀΦ, p_j = E tr(ΦᵀΦ)ʲ."
    ),
    errata=zou2022_main.ERRATA + zou2022_appendix.ERRATA,
    slips=zou2022_appendix.SLIPS,
)
