"""Whose code a file is: torch's by where torch is, whatever a user's folders are called."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.user_code import is_users

CODE = """
import torch
from torch import nn


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.mix(x)) * sum(p.pow(2).sum() for p in self.parameters())


class Asks(Norms):
    def forward(self, x):
        y = self.mix(x)
        return self.head(y if torch.is_grad_enabled() else -y)


class Seeds(Norms):
    def forward(self, x):
        torch.manual_seed(0)
        return self.head(self.mix(x) + torch.rand(3))
"""
FOLDERS = ("project", "torch", "torch/nn", "envs/torch/lib", "my/torch/nn/modules")


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("kind", ["Norms", "Asks", "Seeds"])
def test_code_in_a_folder_called_torch_is_the_users(tmp_path: Path, folder: str, kind: str) -> None:
    file = tmp_path / folder / "users_nets.py"
    file.parent.mkdir(parents=True)
    file.write_text(CODE)
    spec = importlib.util.spec_from_file_location("users_nets", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base, x = getattr(module, kind)().eval(), torch.linspace(-1, 1, 8).reshape(2, 4)
    aim = aimgraph.transform(base, x)
    for _ in range(2):
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                assert torch.equal(aim(x), base(x))
        with torch.no_grad():
            base.head.weight.mul_(2), aim.head.weight.mul_(2)


def test_files_of_torch_and_aimgraph_are_not_the_users() -> None:
    ours = (nn.Module.parameters, torch.nn.functional.relu, torch.fx.Tracer.trace, aimgraph.transform)
    assert not any(is_users(function.__code__.co_filename) for function in ours)
    assert is_users(__file__)
    assert is_users(str(Path(torch.__file__).parent.parent / "torchvision" / "models" / "resnet.py"))
