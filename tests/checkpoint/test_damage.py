"""Checkpoints that are damaged, cut off, of a later version, or made to do harm: a CheckpointError each."""

import contextlib
import copy
import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import aimgraph
from aimgraph.checkpoint.spec import _digest
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors
from aimgraph.errors import CheckpointError
from tests.nets import FUZZ, randomise

SPEC = "aimgraph.json"
X = torch.linspace(-1, 1, 2 * 2 * 3 * 3).reshape(2, 2, 3, 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    options: dict[str, Any] = {"updates": ("1",), "carry": "state", "shape": (2, 2, 1)}
    aimgraph.save(randomise(aimgraph.transform(network(), X, **options)), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def files(folder: Path) -> tuple[Path, Path]:
    spec = folder / SPEC
    return spec, folder / json.loads(spec.read_text())["file"]["name"]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The spec with a change, and the digest that belongs to it."""
    spec, _ = files(folder)
    data = json.loads(spec.read_text())
    change(data)
    data["sha256"] = _digest(data)
    spec.write_text(json.dumps(data))


def refused(folder: Path, match: str | None = None) -> str:
    """The message with which load and load_memory refuse a checkpoint, which change nothing."""
    base, aim = network(), aimgraph.transform(network(), X, updates=("1",), carry="state", shape=(2, 2, 1))
    before = copy.deepcopy((base.state_dict(), aim.state_dict()))
    with pytest.raises(CheckpointError, match=match) as told:
        aimgraph.load(folder, base)
    with pytest.raises(CheckpointError):
        aimgraph.load_memory(aim, folder)
    for module, state in zip((base, aim), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    return str(told.value)


def reads_as(folder: Path, spec: Any, tensors: Any, *, given: Any = None) -> bool:
    """Whether the files are refused, or give exactly what was saved."""
    try:
        found = given or read_spec(folder)
        values = read_tensors(folder, found)
    except CheckpointError:
        return True
    return found == spec and all(torch.equal(values[key], tensors[key]) for key in tensors)


def mutations(raw: bytes) -> Iterator[bytes]:
    """Every byte changed or left out, and every beginning; of the values that follow, every fourth."""
    for place in (*range(min(len(raw), 4096)), *range(4096, len(raw), 4)):
        yield raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :]
        yield raw[:place] + raw[place + 1 :]
        yield raw[:place]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_every_byte(which: int, copied: Path) -> None:
    spec = read_spec(copied)
    tensors = read_tensors(copied, spec)
    path = files(copied)[which]
    raw, count = path.read_bytes(), 0
    for changed in mutations(raw):
        path.write_bytes(changed)
        assert reads_as(copied, spec, tensors, given=spec if which else None), changed[:200]
        count += 1
    assert count > 10_000


@pytest.mark.parametrize("which", [0, 1])
def test_load_refuses_regions(which: int, copied: Path) -> None:
    path = files(copied)[which]
    raw = path.read_bytes()
    for place in range(0, len(raw), len(raw) // 12):
        path.write_bytes(raw[:place] + bytes(b ^ 0xFF for b in raw[place : place + 9]) + raw[place + 9 :])
        refused(copied, "is damaged|is no checkpoint")
    path.unlink()
    refused(copied, "holds no checkpoint that can be read|can't be read")
    path.mkdir()
    refused(copied, "is no file")
    path.rmdir()
    os.mkfifo(path)
    refused(copied, "is no file")


def test_a_damaged_tensor_is_named(copied: Path) -> None:
    _, path = files(copied)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    assert "the values of aim.memory." in refused(copied, "is damaged")


def hostile_file(folder: Path, header: bytes, body: bytes = b"", length: int | None = None) -> None:
    """A tensors' file that the spec vouches for."""
    raw = struct.pack("<Q", len(header) if length is None else length) + header + body

    def vouch(data: dict[str, Any]) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        data["file"] = {"name": f"tensors-{digest[:16]}.safetensors", "bytes": len(raw), "sha256": digest}

    rewritten(folder, vouch)
    files(folder)[1].write_bytes(raw)


HEADERS: dict[str, tuple[bytes, bytes, int | None]] = {
    "huge header": (b"{}", b"", 2**63),
    "header past the end": (b"{}", b"", 1000),
    "no header": (b"", b"", None),
    "no json": (b"\xff\xfe{}", b"", None),
    "huge tensor": (b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', b"", None),
    "overflow": (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', b"", None),
    "negative": (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"1234", None),
    "backwards": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', b"1234", None),
    "deep": (b'{"a":' * 5000 + b"1" + b"}" * 5000, b"", None),
    "unknown kind": (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"1234", None),
    "other keys": (b'{"__class__":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234", None),
    "a hole": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678", None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(name: str, copied: Path) -> None:
    hostile_file(copied, *HEADERS[name])
    refused(copied)


def replace(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    place: Any = data
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(last) if isinstance(place, list) else last] = value


MEMORY = "parts/0/memories/0"
HOSTILE: dict[str, tuple[str, Any, str]] = {
    "later": ("version", 2, "has version 2 of the format, and this aimgraph reads up to version 1: install the one"),
    "no version": ("version", "1", "its version is '1'"),
    "format": ("format", "zip", "is no checkpoint of aimgraph"),
    "unknown field": ("hook", "os.system", "hook: Extra inputs are not permitted"),
    "unknown field of a part": ("parts/0/code", "import os", r"parts\.0\.code: Extra inputs"),
    "unknown option": (f"{MEMORY}/config/callback", "f", "AimConfig callback='f': unknown option"),
    "traversal": ("file/name", "../../etc/passwd", r"file\.name: String should match pattern"),
    "absolute": ("file/name", "/dev/zero", r"file\.name: String should match pattern"),
    "another file": ("file/name", "tensors-0000000000000000.safetensors", "can't be read"),
    "size": ("file/bytes", 2**62, "bytes, and 4,611"),
    "negative size": ("file/bytes", -1, r"file\.bytes: Input should be greater"),
    "no digest": ("file/sha256", "0", r"file\.sha256: String should match"),
    "huge memory": (f"{MEMORY}/shape", [2**31, 2**31, 1], "was read at|needs"),
    "zero memory": (f"{MEMORY}/shape", [0, 2, 1], "greater than 0"),
    "flat memory": (f"{MEMORY}/shape", [1, 2, 3, 4], "at most 3"),
    "other memory": (f"{MEMORY}/shape", [2, 2, 2], "needs|was read at"),
    "wide read": (f"{MEMORY}/reads/0/channels", 2**40, "was read at 0 with 1,?0995?"),
    "no such layer": (f"{MEMORY}/reads/0/site", "7", "can't be transformed as the checkpoint says"),
    "slow pattern": (f"{MEMORY}/config/sites", "re:(.*)*(.*)*(.*)*(.*)*x", ""),
    "bad pattern": (f"{MEMORY}/config/sites", "re:(", "the regular expression"),
    "overflowing pattern": (f"{MEMORY}/config/sites", "re:a{99999999999999}", "the regular expression"),
    "no such module": (f"{MEMORY}/config/updates", ["9"], "can't be transformed as the checkpoint says"),
    "rate": (f"{MEMORY}/config/rate", 7, "rate"),
    "reads twice": (f"{MEMORY}/reads/1", None, "reads"),
    "part": ("parts/0/path", "../..", "can't be transformed|only in it|lacks|has no submodule"),
    "huge input": ("parts/0/inputs", {"tuple": [{"tuple": [{"tensor": {"dtype": "float32", "shape": [2**40]}}]}]}, "e"),
    "odd input": ("parts/0/inputs", {"tuple": [{"tuple": []}, {"dict": [["x", {"module": "os"}]]}]}, "unknown kind"),
    "no input": ("parts/0/inputs", {"tuple": []}, r"not \(args, kwargs\)"),
    "other input": ("parts/0/inputs", {"tuple": [{"tuple": []}, {"dict": []}]}, "can't be transformed"),
    "short numbers": (
        "parts/0/inputs",
        {"tuple": [{"tuple": [{"tensor": {"dtype": "int64", "shape": [3], "numbers": [1]}}]}, {"dict": []}]},
        "not as many numbers",
    ),
    "infinite": ("parts/0/inputs", {"tuple": [{"tuple": [{"float": "zz"}]}, {"dict": []}]}, "inputs in it are invalid"),
    "no tensors": ("tensors", {}, "holds 'aim"),
    "no parts": ("parts", [], "parts: "),
}


@pytest.mark.parametrize("name", [key for key in HOSTILE if key != "slow pattern"])
def test_hostile_specs(name: str, copied: Path) -> None:
    path, value, match = HOSTILE[name]
    rewritten(copied, lambda data: replace(data, path, value))
    base = network()
    with pytest.raises(CheckpointError, match=match):
        aimgraph.load(copied, base)


def test_patterns_are_not_matched(copied: Path) -> None:
    path, value, _ = HOSTILE["slow pattern"]
    rewritten(copied, lambda data: replace(data, path, value))
    loaded = aimgraph.load(copied, network())
    assert aimgraph.plan(loaded).memories[0].config.sites == value


def test_not_a_number(copied: Path) -> None:
    _, path = files(copied)
    raw = bytearray(path.read_bytes())
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    start, end = header["aim.memory.source.value"]["data_offsets"]
    raw[8 + size + start : 8 + size + start + 4] = struct.pack("<f", float("nan"))
    value = bytes(raw[8 + size + start : 8 + size + end])

    def vouch(data: dict[str, Any]) -> None:
        data["tensors"]["aim.memory.source.value"]["sha256"] = hashlib.sha256(value).hexdigest()

    rewritten(copied, vouch)
    hostile_file(copied, bytes(raw[8 : 8 + size]), bytes(raw[8 + size :]))
    refused(copied, r"1 of the 4 values of aim\.memory\.source\.value are not a number")


def test_what_is_no_json(copied: Path) -> None:
    spec, _ = files(copied)
    for raw, match in (
        (b"[" * 200_000, "is no JSON"),
        (b'{"a":' * 100_000, "is no JSON"),
        (b'{"version": NaN}', "NaN is no number"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b"\xff\xfe", "is no JSON"),
        (b"", "is no JSON"),
        (b'{"version": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b"null", "is no checkpoint"),
    ):
        spec.write_bytes(raw)
        refused(copied, match)
    with spec.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no place
    refused(copied, "no spec is that large")


WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2, 2**31, 2**62, 2**64, 10**400, 0.5, 1e308, "", "x", "../x", "re:(a+)+$", "*", "aim"),
    *([], {}, [[]], [1, 2, 3], [2**40] * 3, {"tuple": []}, {"tensor": {}}, {"value": {}}, "float64", "memory", "all"),
)


def places(data: Any, path: str = "") -> Iterator[str]:
    """Every place in the data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if "/" not in str(key):
            yield f"{path}{key}"
            yield from places(value, f"{path}{key}/")


@pytest.mark.slow
@settings(max_examples=600 * FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_place_replaced_by_anything(draw: st.DataObject, saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = json.loads((saved / SPEC).read_text())
    for _ in range(draw.draw(st.integers(1, 2))):
        known = sorted(places(data))
        path = draw.draw(st.sampled_from(known))
        replace(data, path, draw.draw(st.sampled_from(WORDS)))
    rewritten(tmp_path, lambda old: (old.clear(), old.update(data)))
    base, before = network(), network()
    with contextlib.suppress(CheckpointError):
        aimgraph.load(tmp_path, base)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before.parameters(), strict=True))


def test_reading_allocates_little(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(64, 64))
    aim = randomise(aimgraph.transform(base, torch.zeros(2, 64), shape=(20_000,)))
    aimgraph.save(aim, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size > 5_000_000
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_tensors(tmp_path, read_spec(tmp_path))
    after, (_, peak) = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size
    assert (after - before) * 1024 <= 4 * size


LIMITED = """
import resource, sys
import torch
from tests.checkpoint.test_damage import network
import aimgraph
base = network()
aimgraph.transform(base, torch.zeros(2, 2, 3, 3))  # what a first transform needs
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for folder in sys.argv[1:]:
    try:
        aimgraph.load(folder, base)
    except aimgraph.CheckpointError as error:
        print(folder, "refused")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs a system that limits a process's memory")
def test_sizes_of_the_spec_are_not_allocated(saved: Path, tmp_path: Path) -> None:
    names = ["huge memory", "other memory", "wide read", "size", "huge input"]
    for name in names:
        (tmp_path / name).mkdir()
        for file in saved.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        path, value, _ = HOSTILE[name]

        def change(data: dict[str, Any], path: str = path, value: Any = value) -> None:
            replace(data, path, value)

        rewritten(tmp_path / name, change)
    folders = [str(tmp_path / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *folders], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:-1] == [f"{folder} refused" for folder in folders], done.stderr
