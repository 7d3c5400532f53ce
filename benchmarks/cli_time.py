"""How long the command line takes to answer where nothing is computed: help texts, the version and typos.

Run as ``python benchmarks/cli_time.py --out benchmarks/results``. Every command is a process of its own, started once
before any time counts, so that its files are in memory. Beside it stands ``python -c pass``, the least that any
process takes, and ``import torch``.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

from aimgraph.cli.main import cli

MOST_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times of which the median is taken")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    python = [sys.executable]
    floors = {"python -c pass": [*python, "-c", "pass"], "python -c 'import torch'": [*python, "-c", "import torch"]}
    answers = {f"aimgraph {' '.join(asked)}": [*python, "-m", "aimgraph", *asked] for asked in questions()}
    medians = {name: median(command, given.rounds) for name, command in (floors | answers).items()}
    slow = [name for name in answers if medians[name] > MOST_SECONDS]
    result = {
        "python": platform.python_version(),
        "rounds": given.rounds,
        "most_seconds": MOST_SECONDS,
        "slower": slow,
        "median_seconds": medians,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "cli_time.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def questions() -> list[list[str]]:
    """The version, the help of every command, and mistyped names of a command, an option and a value."""
    helps = [[*path, "--help"] for path in paths(cli)]
    typos = [["exprot"], ["zoo", "chek"], ["plan", "zoo/mlp", "--shap", "3"], ["plan", "zoo/mlp", "--read", "resise"]]
    return [["--version"], *helps, *typos]


def paths(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Of all commands below one."""
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            found += paths(below, (*path, name)) if below else []
    return found


def median(command: list[str], rounds: int) -> float:
    """Seconds that a process takes; the first one does not count."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - started)
        if done.returncode not in (0, 2) or "Traceback" in done.stderr:
            raise RuntimeError(f"{' '.join(command)} gave no answer:\n{done.stderr}")
    return round(statistics.median(times[1:]), 3)


if __name__ == "__main__":
    main()
