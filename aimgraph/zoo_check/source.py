"""Does the source of a transformed model give the same bits where there is nothing but torch and safetensors?"""

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn

from aimgraph.api.to_source import to_source
from aimgraph.api.verify import outputs
from aimgraph.copies import copy_module
from aimgraph.distance import farthest
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.samples import samples_for

NEEDS = ("torch", "safetensors")

_RUN = """
import sys
from pathlib import Path
folder, packages = map(Path, sys.argv[1:])
sys.path[:] = [path for path in sys.path if "site-packages" not in path and "dist-packages" not in path]
sys.path[:0] = [str(folder), str(packages)]
import torch
torch.set_num_threads(1)
args, kwargs = torch.load(folder / "inputs.pt", weights_only=False)
import source
assert not [name for name in sys.modules if name.partition(".")[0] == "aimgraph"]
outputs, grad = [], bool((folder / "grad").exists())
network = source.load()
for train in (False, True):
    torch.manual_seed(0)
    with torch.set_grad_enabled(grad):
        outputs.append(network.train(train)(*args, **kwargs))
def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    if isinstance(value, (list, tuple)):
        items = value
    elif isinstance(value, dict):
        items = value.values()
    else:
        items = vars(value).values() if hasattr(value, "__dict__") else ()
    return [one for item in items for one in tensors(item)]
torch.save([tensors(one) for one in outputs], folder / "outputs.pt")
"""


def source_problem(aim: nn.Module, inputs: Arguments, *, grad: bool = False) -> str:
    """Write a module's source, and run that in a process in which torch and safetensors can be imported, and no more.

    Args:
        aim: It is not changed.
        inputs: Example inputs.
        grad: Whether it runs with gradients recorded only.

    Returns:
        What is wrong; empty if nothing is.
    """
    sample = samples_for(aim, inputs, "cpu", grad=grad).at(2, 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        to_source(aim, folder / "source", inputs)
        expected = [outputs(copy_module(aim).train(train), sample, grad=grad) for train in (False, True)]
        torch.save(sample, folder / "inputs.pt")
        if grad:
            (folder / "grad").touch()
        link_packages(folder / "packages")
        done = run_alone(_RUN, folder, folder / "packages")
        if done.returncode:
            return f"in a process of its own: {done.stderr.strip().splitlines()[-1]}"
        seen: list[list[Tensor]] = torch.load(folder / "outputs.pt")
    for mode, ours, theirs in zip(("eval", "train"), expected, seen, strict=True):
        if len(ours) != len(theirs) or not all(map(torch.equal, ours, theirs)):
            return f"outputs in {mode} mode, in a process of its own: max|d| = {farthest(ours, theirs)[0]:.2e}"
    return ""


def run_alone(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, without the environment's packages unless it says where these are."""
    command = [sys.executable, "-s", "-E", "-c", code, *map(str, args)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)


def link_packages(folder: Path) -> None:
    """Links to `NEEDS` and to what these need, in a folder."""
    folder.mkdir()
    left, seen = list(NEEDS), set[str]()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another system, or Python
            continue
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            path = Path(str(found.locate_file(top)))
            if path.exists() and not (folder / top).exists():
                (folder / top).symlink_to(path)
        left += [_name(need) for need in found.requires or () if "extra ==" not in need]


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else requirement
