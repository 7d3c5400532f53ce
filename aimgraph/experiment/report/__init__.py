"""What an experiment says, for people: a page, Markdown, a table for a terminal, and a picture."""

from aimgraph.experiment.report.picture import picture
from aimgraph.experiment.report.terminal import report_text
from aimgraph.experiment.report.verdict import sentence
from aimgraph.experiment.report.write import write_report

__all__ = ["write_report", "report_text", "sentence", "picture"]
