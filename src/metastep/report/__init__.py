"""Records to tables, figures and one self-contained report.html; imports no jax."""

from metastep.report import figures, pictures, style, tables
from metastep.report.html import write_report
from metastep.report.style import save_figure

__all__ = ["figures", "pictures", "save_figure", "style", "tables", "write_report"]
