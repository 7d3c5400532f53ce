"""Arguments of other kinds than a public function takes: an error that names the argument, and nothing is written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.errors import AimgraphError

X = torch.linspace(-1, 1, 12).reshape(2, 6)


class Given:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
        self.aim: Any = aimgraph.transform(self.base, X).eval()
        self.file, self.made = folder / "file", folder / "made"
        self.file.write_text("x")
        self.checkpoint = aimgraph.save(self.aim, folder / "checkpoint")
        self.plan = aimgraph.plan(self.aim)

    def export(self, **options: Any) -> None:
        aimgraph.export_onnx(self.aim, self.made, X, **options)


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "plan of a name": (lambda on: aimgraph.plan("resnet18"), "aimgraph plan torchvision/resnet18"),  # type: ignore[arg-type]
    "plan of nothing": (lambda on: aimgraph.plan(None), "is a NoneType"),  # type: ignore[arg-type]
    "plan of a class": (lambda on: aimgraph.plan(nn.Linear), "is a type"),  # type: ignore[arg-type]
    "dump": (lambda on: aimgraph.transform(on.base, X, dump=3), "dump is a path"),  # type: ignore[arg-type]
    "dump into a file": (lambda on: aimgraph.transform(on.base, X, dump=on.file), "file can't be written"),
    "watch": (lambda on: aimgraph.transform(on.base, X, watch=print), "watch=.*a list of functions"),  # type: ignore[arg-type]
    "watch of numbers": (lambda on: aimgraph.transform(on.base, X, watch=[3]), r"watch=\[3\]"),  # type: ignore[list-item]
    "verify of nothing": (lambda on: aimgraph.verify(None, on.aim), "verify.*NoneType"),  # type: ignore[arg-type]
    "verify with a name": (lambda on: aimgraph.verify(on.base, "x"), "verify.*is a str"),  # type: ignore[arg-type]
    "fold": (lambda on: aimgraph.fold("x"), "fold takes a torch.nn.Module, and this is a str"),  # type: ignore[type-var]
    "fold of a class": (lambda on: aimgraph.fold(nn.Linear), "the class Linear: give one that it makes"),  # type: ignore[type-var]
    "fold twice": (lambda on: aimgraph.fold(aimgraph.fold(on.aim)), "it was folded, and this needs what it was"),
    "export of a name": (lambda on: aimgraph.export_onnx("m", on.made), "export_onnx takes"),  # type: ignore[arg-type]
    "export to a number": (lambda on: aimgraph.export_onnx(on.aim, 3), "is a path, and this is a int"),  # type: ignore[arg-type]
    "export to a folder": (lambda on: aimgraph.export_onnx(on.aim, on.folder), "is a folder: give the path of a file"),
    "export below a file": (lambda on: aimgraph.export_onnx(on.aim, on.file / "x.onnx"), "x.onnx can't be written"),
    "tolerance": (lambda on: on.export(tolerance="x"), "tolerance='x': give a number"),
    "output_names": (lambda on: on.export(output_names=3), "output_names=3: give a list of names"),
    "output_names of numbers": (lambda on: on.export(output_names=[1]), r"output_names=\[1\]: give a list of names"),
    "an empty name": (lambda on: on.export(output_names=[""]), "give a list of names"),
    "opset": (lambda on: on.export(opset="18"), "opset='18': give an integer"),
    "half an opset": (lambda on: on.export(opset=18.5), r"opset=18.5: give an integer"),
    "save": (lambda on: aimgraph.save(on.aim, None), "folder of a checkpoint is a path"),  # type: ignore[arg-type]
    "load": (lambda on: aimgraph.load(None, on.base), "folder of a checkpoint is a path"),  # type: ignore[arg-type]
    "components": (lambda on: aimgraph.load(on.checkpoint, on.base, components=3), "components=3: give a dict"),  # type: ignore[arg-type]
    "load_memory": (lambda on: aimgraph.load_memory(on.aim, None), "is a path"),  # type: ignore[arg-type]
    "load_memory swapped": (
        lambda on: aimgraph.load_memory(on.checkpoint, on.aim),
        "takes the transformed model first",
    ),
    "draw": (lambda on: aimgraph.draw(on.plan, None), "the picture is a path"),  # type: ignore[arg-type]
    "draw below a file": (lambda on: aimgraph.draw(on.plan, on.file / "x.png"), "x.png can't be written"),
    "verify_onnx": (lambda on: aimgraph.verify_onnx(None), "is a path"),  # type: ignore[arg-type]
    "use": (lambda on: on.aim.use(3), "3 is no name of a memory set"),
    "use of nothing": (lambda on: on.aim.use(None), "None is no name of a memory set"),
    "using": (lambda on: on.aim.using(None).__enter__(), "None is no name of a memory set"),
    "add_memory_set": (lambda on: on.aim.add_memory_set(3), "memory set 3: a set's name is"),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


@pytest.mark.parametrize("name", WRONG)
def test_it_is_named(name: str, given: Given) -> None:
    call, said = WRONG[name]
    before = sorted(os.listdir(given.folder))
    with pytest.raises(AimgraphError, match=said):
        call(given)
    assert sorted(os.listdir(given.folder)) == before
    assert torch.equal(given.aim(X), given.base(X))


def test_a_session_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"nothing.onnx: there is no such file"):
        aimgraph.MemorySession(tmp_path / "nothing.onnx")
    with pytest.raises(ValueError, match=r"junk.onnx can't be loaded"):
        aimgraph.MemorySession(tmp_path / "junk.onnx")
