"""The tables in docs/performance.md, docs/deploy.md, docs/lean.md and docs/widening.md, from the committed results.

Run as ``python -m benchmarks.performance`` (or ``make performance``) after a benchmark; it measures nothing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aimgraph.bench import BenchReport
from benchmarks import widening
from benchmarks.cost import CASES, report_of
from benchmarks.frozen import report_in

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = tuple(ROOT / "docs" / name for name in ("performance.md", "deploy.md", "lean.md", "widening.md"))
MARKS = re.compile(r"(<!-- table (\w+): make performance -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)

_COLUMNS = (
    ("training step: split / floor", "split", "floor", "training step"),
    ("split / base", "split", "base", "training step"),
    ("concat / base", "concat", "base", "training step"),
    ("inference: folded / floor", "folded", "floor", "inference"),
    ("fused folded / fused floor", "fused folded", "fused floor", "inference"),
)


def table(name: str) -> str:
    """The table of a result file."""
    if name in widening.TABLES:
        return widening.TABLES[name](json.loads((RESULTS / "widening.json").read_text())) + "\n"
    data = json.loads((RESULTS / f"{name}.json").read_text())
    match name:
        case "frozen_cpu":
            lines = [*_frozen(data), "", *_needed(data)]
        case "frozen_cpu_compiled":
            lines = _frozen(data)
        case "onnx_cost":
            lines = _onnx(data)
        case "transform_time":
            lines = _transform(data)
        case "depth":
            lines = _depth(data)
        case "serve":
            lines = _serve(data)
        case "round_trips":
            lines = _round_trips(data)
        case "profile_mlp" | "profile_mlp_default_budget":
            lines = _profile(data)
        case _:
            lines = _cost(data)
    return "\n".join(lines) + "\n"


def _frozen(data: Mapping[str, Any]) -> list[str]:
    heads = ["trained", "parameters", "kept, MB", "kept / all", "peak, MB", "peak / all", "step / all", "step / memory"]
    lines = [f"| network | {' | '.join(heads)} |", f"|---|---|{'---:|' * (len(heads) - 1)}"]
    for name, row in data.items():
        report = report_in(row)
        for form, cost in report.forms.items():
            kept, peak, full = cost.saved or 0, cost.peak or 0, report.forms["full"]
            sizes = f"{kept / 1e6:,.1f} | {kept / (full.saved or 1):.4f}"
            sizes += f" | {peak / 1e6:,.0f} | {peak / (full.peak or 1):.3f}"
            steps = " | ".join(str(report.ratio(form, to, "training step")) for to in ("full", "memory"))
            lines.append(f"| {name} | {form} | {cost.parameters:,} | {sizes} | {steps} |")
    return lines


def _needed(data: Mapping[str, Any]) -> list[str]:
    lines = ["| network | lean keeps, MB | its formulas need, MB | ratio |", "|---|---:|---:|---:|"]
    for name, row in data.items():
        kept, needed = row["forms"]["lean"]["saved"], row["needed"]
        lines.append(f"| {name} | {kept / 1e6:.2f} | {needed / 1e6:.2f} | {kept / needed:.3f} |")
    return lines


def _cost(data: Mapping[str, Any]) -> list[str]:
    heads = [head for head, *_ in _COLUMNS]
    heads.insert(3, "kept for backward: split / base, concat / base")
    lines = [f"| network, memory | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in CASES:
        if name in data:
            report = report_of(data[name])
            cells = [_ratio(report, *which) for _, *which in _COLUMNS]
            cells.insert(3, f"{_kept(report, 'split')}, {_kept(report, 'concat')}")
            values = " + ".join(f"{count:,}" for count in report.values)
            lines.append(f"| {name}: {values} values, {report.sites} sites | {' | '.join(cells)} |")
    return lines


def _ratio(report: BenchReport, form: str, to: str, what: str) -> str:
    both = form in report.forms and to in report.forms and what in report.forms[form].seconds
    return str(report.ratio(form, to, what)) if both else "-"


def _kept(report: BenchReport, form: str) -> str:
    these, those = (report.forms[name].saved if name in report.forms else None for name in (form, "base"))
    return f"{these / those:.4f}" if these and those else "-"


def _onnx(data: Mapping[str, Any]) -> list[str]:
    lines = [
        "| batch | folded / best by hand | folded / base | best by hand | its time / base |",
        "|---|---:|---:|---|---:|",
    ]
    for name, row in data.items():
        if isinstance(row, dict):
            cells = row["folded / best by hand"], row["folded / base"], row["best by hand"], row["best by hand / base"]
            lines.append(f"| {name.removeprefix('batch ')} | {' | '.join(cells)} |")
    return lines


def _transform(data: Mapping[str, Any]) -> list[str]:
    resnet, summary = data["ResNet-50"], data["summary"]
    first, median = resnet["first"], resnet["median"]
    return [
        "| model | transform | torch.export | transform / export |",
        "|---|---:|---:|---:|",
        f"| ResNet-50, {resnet['rounds']} rounds | {median['transform']:.2f} s | {median['export']:.2f} s | "
        f"{resnet['transform / export']} |",
        f"| ResNet-50, first of a process | {first['transform']:.2f} s | {first['export']:.2f} s | "
        f"{first['transform'] / first['export']:.2f} |",
        f"| {summary['transformed']} models of timm and torchvision, each once: median | "
        f"{summary['transform, median s']:.2f} s | | {summary['transform / export, median']:.2f} |",
    ]


def _depth(data: Mapping[str, Any]) -> list[str]:
    cells = [f"{depth} layers: {seconds:.1f} s" for depth, seconds in data["median"].items()]
    return [f"MLP, {', '.join(cells)}: {data['4,000 layers / 2,000 layers']:.2f} times as long."]


def _profile(data: Mapping[str, Any]) -> list[str]:
    more, through = data["bytes of parameters, split - floor"], data["seconds to go through them"]
    seconds = data["seconds"]
    lines = ["| microseconds of a step | floor | split |", "|---|---:|---:|"]
    lines += [f"| `{name}` | {row['floor']:,} | {row['split']:,} |" for name, row in data["operations"].items()]
    lines += [
        f"| **whole step, without the profiler** | {seconds['floor'] * 1e6:,.0f} | {seconds['split'] * 1e6:,.0f} |",
        "",
        f"Split has {more / 1e6:.1f} MB of parameters more than the floor, and takes "
        f"{(seconds['split'] - seconds['floor']) * 1e6:,.0f} microseconds longer. The same network written by hand in "
        f"plain torch takes {seconds['by hand'] * 1e6:,.0f} microseconds a step: split / by hand = "
        f"{data['split / by hand']}, by hand / floor = {data['by hand / floor']}. To go through those bytes as often "
        f"as a step with momentum does takes this machine {through * 1e6:,.0f} microseconds. Gradients are given back "
        f"after every step and asked for again: {data['pages asked for in a step']['split']:,.0f} pages, of "
        f"{data['seconds a page'] * 1e6:.1f} microseconds each.",
    ]
    return lines


def _serve(data: Mapping[str, Any]) -> list[str]:
    columns = ("exported / best by hand", "exported / base", "best by hand / base")
    lines = [f"| throughput | {' | '.join(columns)} | best by hand |", f"|---|{'---:|' * len(columns)}---|"]
    for name, rows in data.items():
        for batch, row in rows.items() if isinstance(rows, dict) else ():
            cells = [row[f"throughput, {column}"] for column in columns]
            lines.append(f"| {name}, {batch} | {' | '.join(cells)} | {row['best by hand']} |")
    return lines


def _round_trips(data: Mapping[str, Any]) -> list[str]:
    columns = list(next(iter(data.values())))
    lines = [f"| network | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in data.items()]
    return lines


def main() -> None:
    """Put the tables into the pages."""
    for page in PAGES:
        text = page.read_text()
        page.write_text(MARKS.sub(lambda found: found.group(1) + table(found.group(2)) + found.group(3), text))
        for found in MARKS.finditer(text):
            print(table(found.group(2)))


if __name__ == "__main__":
    main()
