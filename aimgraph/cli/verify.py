"""``aimgraph verify``: whether a result computes what its base does, or an exported file what torch gave."""

import sys
from typing import TYPE_CHECKING

import click

from aimgraph.cli.asked import Asked
from aimgraph.cli.compare import EXIT_DIFFERENT, transformed
from aimgraph.cli.options import MODEL_EPILOG, model_options
from aimgraph.cli.output import show
from aimgraph.cli.progress import progress

if TYPE_CHECKING:
    from aimgraph.api.report import Report
    from aimgraph.onnx.check import FileReport


@click.command("verify", epilog=MODEL_EPILOG)
@model_options
def verify_command(asked: Asked) -> None:
    """Report whether MODEL with a memory computes what it did.

    Where MODEL is an ONNX file that was exported, check the file.
    """
    report: Report | FileReport
    if asked.model.endswith(".onnx"):
        with progress(f"checking {asked.model}"):
            from aimgraph.onnx.check import verify_onnx

            report = verify_onnx(asked.model)
        text = _file_text(asked.model, report)
    else:
        _, report, _ = transformed(asked)
        text = str(report)
    show(asked.as_json, report.to_dict(), text)
    sys.exit(0 if report.ok else EXIT_DIFFERENT)


def _file_text(path: str, report: "FileReport") -> str:
    about = report.about
    lines = [f"{path}: aimgraph {about['aimgraph']}, torch {about['torch']}, memory: {about['memory'] or 'none'}"]
    for item in about["memories"]:
        ends = f"{item['input']} -> {item['output']}" if item["output"] else item["input"]
        lines.append(f"  {item['memory']}: {item['kind']}, {item['values']:,} values, {ends}, rows: {item['rows']}")
    lines += [f"  {'ok' if check.passed else 'FAILED'}  {check.name}: {check.seen}" for check in report.checks]
    return "\n".join(lines)
