"""Checkpoints that earlier versions wrote load bit for bit.

``python -m tests.checkpoint.test_earlier_versions FOLDER`` writes such checkpoints with the version that is installed;
those in ``tests/data/checkpoints_0.1.0`` were written before the code moved into folders.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import aimgraph

FOLDER = Path(__file__).parents[1] / "data" / "checkpoints_0.1.0"
CASES: dict[str, dict[str, object]] = {
    "static": {"shape": (2, 2, 3)},
    "resize_ones": {"shape": (3, 3, 2), "read": "resize", "source": "ones_conv"},
    "state": {"shape": (2, 2, 4), "updates": ("0",), "carry": "state", "rate": 0.25},
    "gated": {"shape": (2, 2, 4), "updates": ("2",), "mode": "gated", "pool": "batch"},
    "concat": {"shape": (2, 2, 3), "lowering": "concat"},
    "sets": {"shape": (2, 2, 3), "start": "drawn"},
}


def fill(module: nn.Module) -> nn.Module:
    """Values that no random generator, and no kernel of a machine, has a say in."""
    with torch.no_grad():
        for number, (name, tensor) in enumerate(module.state_dict().items()):
            if tensor.is_floating_point():
                values = ((torch.arange(tensor.numel(), dtype=torch.float64) * 7 + number * 3) % 31 - 13) / 64
                tensor.copy_((values.abs() + 0.5 if name.endswith("running_var") else values).reshape(tensor.shape))
    return module


def base() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten()
    return fill(nn.Sequential(*layers, nn.Linear(54, 5)))


X = (torch.arange(2 * 3 * 8 * 8, dtype=torch.float32) % 17 / 8 - 1).reshape(2, 3, 8, 8)


def made(name: str) -> nn.Module:
    aim = aimgraph.transform(base(), X, **CASES[name])
    if name == "sets":
        aim.add_memory_set("other")
        aim.add_memory_set("values", share_reads=True)
    if name == "concat":
        aim.load_state_dict(made("static").state_dict())
    else:
        fill(aim.get_submodule("aim"))
    return aim.eval()


def stored(name: str) -> dict[str, Tensor]:
    (file,) = (FOLDER / name).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", sorted(CASES))
def test_bit_for_bit(name: str) -> None:
    assert set(CASES) == {path.name for path in FOLDER.iterdir() if path.is_dir()}
    fresh = nn.Sequential(*base())
    loaded = aimgraph.load(FOLDER / name, fresh, X)
    state, written = loaded.state_dict(), stored(name)
    assert {key for key in state if key.startswith("aim.")} <= set(written)
    for key, value in written.items():
        assert torch.equal(state[key], value), key
    outputs = load_file(FOLDER / "outputs.safetensors")
    again = made(name)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(X), outputs[name], rtol=0, atol=1e-5 * float(outputs[name].abs().max()))
    if name == "sets":
        assert loaded.memory_sets == ("default", "other", "values")
        loaded.use("values")
        assert not torch.allclose(loaded(X), outputs[name])


def write(folder: Path) -> None:
    from safetensors.torch import save_file

    outputs = {}
    for name in CASES:
        aim = made(name)
        aimgraph.save(aim, folder / name)
        outputs[name] = aim(X).detach()
    save_file(outputs, str(folder / "outputs.safetensors"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
