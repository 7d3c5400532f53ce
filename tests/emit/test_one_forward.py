"""The forward of a transformed module is one function: whoever keeps or wraps it has what runs now."""

import copy
import functools
import inspect
import itertools
import pickle
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import aimgraph
from tests.nets import run

X = torch.linspace(-1, 1, 24).reshape(3, 8)


class Dropped(nn.Module):
    """Train and eval mode differ, and so do its two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.b(F.dropout(torch.relu(self.a(x)), 0.5, self.training)) * scale


def made(**options: Any) -> aimgraph.AimModule:
    """One whose reads are drawn, with a second memory set that is drawn, too."""
    torch.manual_seed(0)
    aim = aimgraph.transform(Dropped(), X, start="drawn", **options).eval()
    aim.add_memory_set("other")
    with torch.no_grad():
        for name, parameter in aim.named_parameters():
            if name.startswith("aim."):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return aim


def in_mixed_precision(model: nn.Module) -> nn.Module:
    """As trainers do it: the function below the bound method, wrapped, bound to the instance again."""
    model._original_forward = model.forward  # type: ignore[assignment]
    function = model.forward.__func__

    @functools.wraps(function)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(self, *args, **kwargs).float()

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]
    return model


def with_partial(model: nn.Module) -> nn.Module:
    """As hooks for offloading do it: a partial function of the old bound method."""
    model._old_forward = model.forward  # type: ignore[assignment]
    model.forward = functools.partial(model._old_forward)  # type: ignore[method-assign,arg-type]
    return model


WRAPPERS = [in_mixed_precision, with_partial]


@contextmanager
def _switched(aim: nn.Module) -> Iterator[None]:
    aim.use("other")  # type: ignore[operator]
    try:
        yield
    finally:
        aim.use("default")  # type: ignore[operator]


STATES: dict[str, Callable[[Any], Any]] = {
    "train": lambda aim: aim.train(),
    "eval": lambda aim: aim.eval(),
    "another set": lambda aim: aim.use("other"),
    "a set for each sample": lambda aim: aim.using(["other", "default", "other"]).__enter__(),
    "no memory": aimgraph.disable_memory,
    "a frozen base": lambda aim: aimgraph.freeze_base(aim).train(),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("keep", [lambda aim: aim.forward, lambda aim: functools.partial(type(aim).forward, aim)])
def test_a_forward_that_was_kept_does_what_the_module_does(keep: Callable[[Any], Any], state: str) -> None:
    aim, fresh = made(), made()
    kept = keep(aim)
    kept(X)
    STATES[state](aim)
    STATES[state](fresh)
    assert torch.equal(run(kept, X), run(fresh, X))


def test_the_states_differ() -> None:
    results = []
    for state in ("train", "eval", "another set", "a set for each sample", "no memory"):
        aim = made()
        STATES[state](aim)
        results.append(run(aim, X))
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(results))


def test_flags_that_are_set_without_train_and_eval_choose_the_graph() -> None:
    aim = made()
    for module in aim.modules():
        module.training = True
    assert torch.equal(run(aim, X), run(made().train(), X))


def test_it_has_the_signature_of_the_base() -> None:
    aim = made()
    wanted = inspect.signature(Dropped().forward).parameters
    for module in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), aim.train()):
        found = inspect.signature(module.forward).parameters
        assert [(name, one.default) for name, one in found.items()] == [
            (name, one.default) for name, one in wanted.items()
        ]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_forward_follows_the_mode_and_the_set(wrap: Callable[[nn.Module], nn.Module]) -> None:
    aim = wrap(made().train())
    aim.eval()
    assert torch.equal(aim(X), aim(X))
    assert torch.equal(aim(X), wrap(made())(X))
    with aim.using("other"):  # type: ignore[operator]
        assert torch.equal(aim(X), wrap(_using(made(), "other"))(X))
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), wrap(aimgraph.strip(made()))(X))


def _using(aim: aimgraph.AimModule, name: str) -> aimgraph.AimModule:
    aim.use(name)
    return aim


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_copies_of_a_wrapped_module_run_on_their_own(wrap: Callable[[nn.Module], nn.Module]) -> None:
    aim = wrap(made())
    expected = aim(X)
    copied = copy.deepcopy(aim)
    with torch.no_grad():
        for parameter in aim.parameters():
            parameter.zero_()
    assert torch.equal(copied(X), expected)
    copied.train()
    assert not torch.equal(run(copied, X, seed=0), run(copied, X, seed=1))
    assert torch.equal(copied.eval()(X), expected)


def test_a_wrapped_module_is_pickled_as_a_plain_one() -> None:
    """A bound method that stands on the instance leads back to it."""
    for module in (Dropped().eval(), made()):
        module.kept = functools.partial(module.forward, scale=3.0)
        again = pickle.loads(pickle.dumps(module))
        assert again.kept.func.__self__ is again
        assert torch.equal(again.kept(X), module.kept(X))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_is_made_of_a_wrapped_module_is_made_without_the_wrapper(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    aim, plain = wrap(made()), made()
    with pytest.warns(UserWarning, match="the forward of the model is wrapped on the instance"):
        folded = aimgraph.fold(aim)
    assert torch.equal(folded(X), aimgraph.fold(plain)(X))
    assert torch.equal(aimgraph.strip(aim)(X), aimgraph.strip(plain)(X))
    for memory in ("constant", "inside"):
        with pytest.warns(UserWarning, match="made without the wrapper"):
            aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory=memory)
    with pytest.warns(UserWarning, match="made without the wrapper"):
        assert aimgraph.verify(aimgraph.strip(plain), aim).ok
    aimgraph.save(aim, tmp_path / "saved")
    assert torch.equal(aimgraph.load(tmp_path / "saved", aimgraph.strip(plain)).eval()(X), plain(X))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("within", ["itself", "a larger model", "nested", "sequential"])
def test_activation_checkpointing_repeats_the_forward_of_its_set(reentrant: bool, within: str) -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        aim = made()
        before = nn.Linear(8, 8)
        nn.init.eye_(before.weight)
        whole = nn.Sequential(before, nn.Tanh(), aim)
        total = torch.zeros(())
        for choose in (lambda: aim.using("other"), lambda: aimgraph.disable_memory(aim), lambda: aim.using("default")):
            with choose():
                total = (
                    total + _called(aim, whole, within, reentrant=reentrant, checkpointed=checkpointed).square().sum()
                )
        total.backward()
        return {name: one.grad for name, one in whole.named_parameters() if one.grad is not None}

    wanted, found = gradients(False), gradients(True)
    assert wanted.keys() == found.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one)


def _called(aim: nn.Module, whole: nn.Sequential, within: str, *, reentrant: bool, checkpointed: bool) -> Tensor:
    x = X.clone().requires_grad_()
    if not checkpointed:
        return aim(x) if within == "itself" else whole(x)
    if within == "itself":
        return checkpoint(aim, x, use_reentrant=reentrant)
    if within == "sequential":
        return checkpoint_sequential(whole, 2, x, use_reentrant=reentrant)
    if within == "nested":
        inner = lambda y: checkpoint(aim, y, use_reentrant=reentrant)  # noqa: E731
        return checkpoint(lambda y: inner(whole[1](whole[0](y))), x, use_reentrant=reentrant)
    return checkpoint(whole, x, use_reentrant=reentrant)
