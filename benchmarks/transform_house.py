"""Transforms beside `torch.export`, each in processes of its own: the first of a process, and later ones.

Run as ``python benchmarks/transform_house.py --out benchmarks/results``. With ``--root DIR``, repeated, the transforms
of other checkouts are measured in the same run: ``--root before --root .``. Each round starts, in an order drawn anew,
one process for each network and for ``torch.export`` and each checkout. A process imports torch and torchvision, and
aimgraph if it transforms, builds the network with its values, and measures a first call and then later ones, each on
the wall clock and in CPU time, with the collector run before. What a call imports on its way is part of its time.

``--every 30`` measures every thirtieth model of timm and torchvision instead, each once in a process for each checkout
and round, with that checkout's own ``transform_time.py`` on the meta device.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

NETWORKS = ("resnet50", "vit_b_16", "encoder", "vgg16")
EXPORT = "torch.export"
KEPT: list[Any] = []
"""Schemas of torchvision: a collected library takes its definitions along."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", action="append", type=Path, help="a checkout; repeat for several; this one if none")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="repeat for several; all if none")
    parser.add_argument("--rounds", type=int, default=7, help="processes of each kind")
    parser.add_argument("--later", type=int, default=5, help="calls after the first one of a process")
    parser.add_argument("--every", type=int, help="take every n-th model of the zoo instead")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "NETWORK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure, given.later)))
        return
    roots = [root.resolve() for root in given.root or [Path(__file__).parents[1]]]
    import torch

    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    about = {"versions": versions, "threads": torch.get_num_threads(), "rounds": given.rounds}
    if given.every:
        name, result = "transform_house_zoo.json", about | zoo(roots, given.every, given.rounds)
    else:
        found = rounds(roots, given.network or NETWORKS, given.rounds, given.later)
        networks = {network: summary(times) for network, times in found.items()}
        name, result = "transform_house.json", about | {"later": given.later, "networks": networks}
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (given.out / name).write_text(text + "\n")
    print(text)


def rounds(roots: list[Path], networks: Any, count: int, later: int) -> dict[str, dict[str, list[Any]]]:
    """Network -> ``torch.export`` or a checkout -> what each of its processes measured."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    draw = random.Random(0)
    tasks = [(network, what) for network in networks for what in (EXPORT, *map(str, roots))]
    for number in range(count):
        for network, what in draw.sample(tasks, len(tasks)):
            command = [sys.executable, __file__, "--measure", what, network, "--later", str(later)]
            path = {} if what == EXPORT else {"PYTHONPATH": what}  # what stands here comes before what is installed
            done = subprocess.run(command, env=os.environ | path, capture_output=True, text=True, check=True)
            found[network][Path(what).name].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {number + 1} of {count}", file=sys.stderr)
    return found


def zoo(roots: list[Path], every: int, count: int) -> dict[str, Any]:
    """Median seconds of a transform over models, for each checkout, and over those of the first checkout."""
    draw, seconds = random.Random(0), {root.name: defaultdict(list) for root in roots}
    for number in range(count):
        for root in draw.sample(roots, len(roots)):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "benchmarks/transform_time.py", "--every", str(every), "--rounds", "2"]
                path = {"PYTHONPATH": str(root)}
                subprocess.run(
                    [*command, "--out", folder], cwd=root, env=os.environ | path, stdout=subprocess.DEVNULL, check=True
                )
                rows = json.loads((Path(folder) / "transform_time.json").read_text())["rows"]
            for row in rows:
                if row["transform"]:
                    seconds[root.name][row["name"]].append(row["transform"])
        print(f"round {number + 1} of {count}", file=sys.stderr)
    models = {root: {model: min(times) for model, times in found.items()} for root, found in seconds.items()}
    both = sorted(set.intersection(*map(set, models.values())))
    first = models[roots[0].name]
    return {
        "every": every,
        "models": len(both),
        "transformed": {root: len(found) for root, found in models.items()},
        "median s": {root: round(statistics.median(found[one] for one in both), 3) for root, found in models.items()},
        f"median over {roots[0].name}": {
            root: round(statistics.median(found[one] / first[one] for one in both), 3)
            for root, found in models.items()
            if root != roots[0].name
        },
        "rows": {one: {root: found[one] for root, found in models.items()} for one in both},
    }


def measure(what: str, network: str, later: int) -> dict[str, Any]:
    """Seconds of an import of aimgraph, of a first call and of later ones."""
    import torch

    model, inputs = build(network)
    imported: dict[str, float] = {}
    if what != EXPORT:
        started = {clock: now() for clock, now in CLOCKS.items()}
        aimgraph = importlib.import_module("aimgraph")
        imported = {clock: now() - started[clock] for clock, now in CLOCKS.items()}
        if not Path(str(aimgraph.__file__)).is_relative_to(what):
            raise SystemExit(f"{aimgraph.__file__} is not below {what}")

    def call() -> Any:
        return torch.export.export(model, inputs, strict=False) if what == EXPORT else aimgraph.transform(model, inputs)

    warnings.simplefilter("ignore")
    calls = []
    for _ in range(1 + later):
        gc.collect()
        started = {clock: now() for clock, now in CLOCKS.items()}
        call()
        calls.append({clock: now() - started[clock] for clock, now in CLOCKS.items()})
    return {"import": imported, "first": calls[0], "later": calls[1:]}


def build(network: str) -> tuple[Any, tuple[Any, ...]]:
    """A network in eval mode and example inputs: 8 images of 224 x 224, or 8 sequences of 64 tokens."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if network == "encoder":
        layer = nn.TransformerEncoderLayer(512, 8, batch_first=True)
        return nn.TransformerEncoder(layer, 12).eval(), (torch.zeros(8, 64, 512),)
    try:
        import torchvision
    except RuntimeError:  # its compiled part was built for another torch
        sys.modules.pop("torchvision", None)
        library = torch.library.Library("torchvision", "DEF")
        KEPT.append(library)
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision = importlib.import_module("torchvision")
    return torchvision.models.get_model(network).eval(), (torch.zeros(8, 3, 224, 224),)


def summary(times: dict[str, list[Any]]) -> dict[str, Any]:
    """Medians in seconds, and those of each checkout over those of `torch.export`."""
    medians = {
        what: {
            f"{name}, {clock}": round(statistics.median(_seconds(runs, name, clock)), 3)
            for name in ("import", "first", "later")
            for clock in CLOCKS
            if _seconds(runs, name, clock)
        }
        for what, runs in times.items()
    }
    base = medians[EXPORT]
    for what, found in medians.items():
        if what != EXPORT:
            found |= {f"{name} / export": round(found[name] / base[name], 3) for name in base}
    return medians


def _seconds(runs: list[Any], name: str, clock: str) -> list[float]:
    found = [one for run in runs for one in (run[name] if name == "later" else [run[name]])]
    return [one[clock] for one in found if clock in one]


if __name__ == "__main__":
    main()
