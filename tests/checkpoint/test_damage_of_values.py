"""Files of values alone that are damaged, or made to do harm: a CheckpointError each, or what was saved."""

import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import aimgraph
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors, sha256_of
from aimgraph.errors import CheckpointError
from tests.checkpoint.test_damage import (
    MEMORY,
    SPEC,
    WORDS,
    X,
    files,
    hostile_file,
    mutations,
    network,
    places,
    reads_as,
    replace,
    rewritten,
)


def transformed() -> Any:
    return aimgraph.transform(network(), X, start="zero_values", shape=(2, 2, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, aim = tmp_path_factory.mktemp("values"), transformed()
    aim.add_memory_set("other", share_reads=True)
    with torch.no_grad():
        for number, parameter in enumerate(aim.parameters()):
            if parameter.shape == (4,) and number:
                parameter.copy_(torch.arange(4.0) + number)
    aimgraph.save(aim, folder, what="values")
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("which", [0, 1])
def test_bytes(which: int, copied: Path) -> None:
    spec = read_spec(copied)
    tensors = read_tensors(copied, spec)
    path = files(copied)[which]
    changed = random.Random(0).sample(list(mutations(path.read_bytes())), 200)
    for raw in changed:
        path.write_bytes(raw)
        assert reads_as(copied, spec, tensors, given=spec if which else None), raw[:200]


def unchanged(base: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(base.parameters(), network().parameters(), strict=True))


def test_any_place_replaced_by_anything(copied: Path) -> None:
    original = json.loads((copied / SPEC).read_text())
    draw, loaded = random.Random(0), 0
    for _ in range(150):
        data = json.loads(json.dumps(original))
        replace(data, draw.choice(sorted(places(data))), draw.choice(WORDS))

        def put(old: dict[str, Any], data: dict[str, Any] = data) -> None:
            old.clear()
            old.update(data)

        rewritten(copied, put)
        base, aim = network(), transformed()
        for function, target in ((aimgraph.load, (copied, base)), (aimgraph.load_memory, (aim, copied))):
            with contextlib.suppress(CheckpointError):
                function(*target)
                loaded += 1
        assert unchanged(base)
    assert loaded < 150  # of twice as many


DRAWN = f"{MEMORY}/drawn"
HOSTILE: dict[str, tuple[str, Any, str]] = {
    "other base": ("base/sha256", "0" * 64, r"made with another base \(Sequential\).*SHA-256 0000"),
    "no digest": ("base/sha256", None, "a base has either layers or a digest"),
    "layers": ("base/layers", {}, "a base has either layers or a digest"),
    "other reads": (
        f"{DRAWN}/sha256",
        "0" * 64,
        r"as drawn here from seed 0 have another SHA-256 than in the file \(0000",
    ),
    "other seed": (f"{MEMORY}/config/seed", 1, "as drawn here from seed 1 have another SHA-256"),
    "other name": (f"{MEMORY}/config/name", "n", "needs 4 values, and the file holds 0"),
    "other start": (f"{MEMORY}/config/start", "drawn", "start='drawn', which values alone can't have"),
    "other plan": (f"{DRAWN}/plan", "0" * 64, "other channels, on other grids"),
    "no reads": (f"{MEMORY}/drawn", None, "values alone come with digests of the base and of the reads"),
    "memory": ("what", "memory", "values alone come with digests of the base and of the reads"),
    "set": ("parts/0/sets/0/shares_reads", False, "values alone come without read weights of a memory set"),
    "one layer": (f"{DRAWN}/sites", [[0, "0"]], "other channels, on other grids"),
    "unknown layer": (f"{DRAWN}/sites", [[0, "7"]], "can't be transformed as the checkpoint says"),
    "no layer": (f"{DRAWN}/sites", [], r"sites=\(\)"),
    "long": (f"{DRAWN}/sites/1/0", 1000, r"sites\.1\.0: Input should be less than 1000"),
    "negative": (f"{DRAWN}/sites/1/0", -1, r"sites\.1\.0: Input should be greater"),
    "many": (f"{DRAWN}/sites", [[999, ""]] * 100_001, "at most 100000"),
    "huge memory": (f"{MEMORY}/shape", [2**31, 2**31, 1], "needs|was read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_specs(name: str, copied: Path) -> None:
    path, value, match = HOSTILE[name]
    rewritten(copied, lambda data: replace(data, path, value))
    base = network()
    with pytest.raises(CheckpointError, match=match):
        aimgraph.load(copied, base)
    assert unchanged(base)


def rescaled(folder: Path, scales: Tensor | None) -> None:
    """Other scales, which the spec vouches for."""
    tensors = load_file(files(folder)[1])
    del tensors["scales.memory"]
    if scales is not None:
        tensors["scales.memory"] = scales

    def vouch(data: dict[str, Any]) -> None:
        data["tensors"].pop("scales.memory")
        if scales is not None:
            entry = {"dtype": str(scales.dtype)[6:], "shape": list(scales.shape), "sha256": sha256_of(scales)}
            data["tensors"]["scales.memory"] = entry

    rewritten(folder, vouch)
    raw = save(tensors)
    size = struct.unpack("<Q", raw[:8])[0]
    hostile_file(folder, raw[8 : 8 + size], raw[8 + size :])


ONE = torch.ones((), dtype=torch.float64)
SCALES: dict[str, tuple[Tensor | None, str]] = {
    "none": (None, "are not 2 numbers in float64"),
    "three": (ONE.expand(3).clone(), "are not 2 numbers in float64"),
    "float32": (torch.ones(2), "are not 2 numbers in float64"),
    "zero": (ONE.expand(2) * 0, r"hold 0\.0, which nothing can be drawn with"),
    "negative": (-ONE.expand(2), r"hold -1\.0"),
    "infinite": (ONE.expand(2) * float("inf"), "hold inf"),
    "huge": (ONE.expand(2) * 1e200, r"hold 1e\+200"),
    "not a number": (ONE.expand(2) * float("nan"), "are not a number"),
    "others": (ONE.expand(2).clone(), "have another SHA-256 than in the file"),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales(name: str, copied: Path) -> None:
    scales, match = SCALES[name]
    rescaled(copied, scales)
    base, aim = network(), transformed()
    aim.add_memory_set("other", share_reads=True)
    before = {key: one.clone() for key, one in aim.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        aimgraph.load(copied, base)
    with pytest.raises(CheckpointError, match=match):
        aimgraph.load_memory(aim, copied)
    assert unchanged(base)
    assert all(torch.equal(one, before[key]) for key, one in aim.state_dict().items())
