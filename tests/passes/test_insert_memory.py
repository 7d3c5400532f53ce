"""The literal seed form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.compiler.aim_paths import AIM
from aimgraph.compiler.graph_text import graph_text
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Stage
from aimgraph.config import AimConfig
from aimgraph.models_zoo import mlp
from aimgraph.passes import PLANNING, InsertMemory
from aimgraph.planning.reads import ReadCall
from aimgraph.reproducible import own_stream
from aimgraph.runtime.layer_kinds import FUNCTIONS
from aimgraph.runtime.layer_kinds.conv import FewPlacesConv2d
from aimgraph.runtime.reads.view import expand_batch, fit, interleave, read_view
from aimgraph.tracing.affine import classify_layers
from aimgraph.tracing.watch_calls import WatchCalls, names_in
from tests.nets import NETS, build, randomise
from tests.passes.helpers import after, calls, execute, fingerprint, planned, program_for, randomise_program
from tests.tracing.bases import X


def test_golden_of_a_convolution_and_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(80, 2))
    program, x = program_for(net, torch.zeros(2, 3, 4, 5), AimConfig(shape=(4, 5, 2)))
    text = graph_text(after(program, x, InsertMemory).graphs["both"])
    assert text == "\n".join(
        [
            "%input_1 : [num_users=3] = placeholder[target=input]  # [2, 3, 4, 5]",
            "%aim_memory_source : [num_users=2] = call_module[target=aim.memory.source](args = (), kwargs = {})"
            "  # [1, 40]",
            "%reshape_1 : [num_users=1] = call_method[target=reshape](args = (%aim_memory_source, -1, 40), kwargs = {})"
            "  # [1, 40]",
            "%reshape : [num_users=1] = call_method[target=reshape]"
            "(args = (%aim_memory_source, -1, 4, 5, 2), kwargs = {})"
            "  # [1, 4, 5, 2]",
            "%permute : [num_users=1] = call_method[target=permute](args = (%reshape, [0, 3, 1, 2]), kwargs = {})"
            "  # [1, 2, 4, 5]",
            "%clone : [num_users=1] = call_method[target=clone]"
            "(args = (%permute,), kwargs = {memory_format: torch.contiguous_format})  # [1, 2, 4, 5]",
            "%fit : [num_users=1] = call_function[target=aimgraph.runtime.reads.view.fit]"
            "(args = (%clone, %input_1, 1, 0, 0), kwargs = {})  # [1, 2, 4, 5]",
            "%expand_batch : [num_users=1] = call_function[target=aimgraph.runtime.reads.view.expand_batch]"
            "(args = (%fit, %input_1, 0), kwargs = {})  # [2, 2, 4, 5]",
            "%cat : [num_users=1] = call_function[target=torch.cat](args = ([%input_1, %expand_batch], 1), kwargs = {})"
            "  # [2, 5, 4, 5]",
            "%_0 : [num_users=1] = call_module[target=aim._concat.0](args = (%cat,), kwargs = {})  # [2, 4, 4, 5]",
            "%_1 : [num_users=3] = call_module[target=1](args = (%_0,), kwargs = {})  # [2, 80]",
            "%fit_1 : [num_users=1] = call_function[target=aimgraph.runtime.reads.view.fit]"
            "(args = (%reshape_1, %_1, 1, 0, 2), kwargs = {})  # [1, 40]",
            "%expand_batch_1 : [num_users=1] = call_function[target=aimgraph.runtime.reads.view.expand_batch]"
            "(args = (%fit_1, %_1, 0), kwargs = {})  # [2, 40]",
            "%cat_1 : [num_users=1] = call_function[target=torch.cat](args = ([%_1, %expand_batch_1], 1), kwargs = {})"
            "  # [2, 120]",
            "%_2 : [num_users=1] = call_module[target=aim._concat.2](args = (%cat_1,), kwargs = {})  # [2, 2]",
            "return _2  # [2, 2]",
        ]
    )


@pytest.mark.parametrize("name", NETS)
def test_equal_to_the_formula_written_by_hand(name: str) -> None:
    """Every site's output is layer([x ; m]; [Wx | Wm], b), each input recorded on the way."""
    program, x = program_for(name, None, AimConfig(shape=(2, 2, 4)))
    program = after(program, x, InsertMemory)
    randomise_program(program)
    graph = "eval" if "eval" in program.graphs else "both"
    base, _ = build(name, torch.float64)
    base.eval(), program.root.eval()
    source = program.root.get_parameter("aim.memory.source.value")
    pending: dict[str, list[tuple[str, ReadCall]]] = {}
    for read in program.plan.memories[0].reads:
        for call in read.calls:
            if call.graph == graph:
                pending.setdefault(read.site, []).append((read.name, call))

    def term(site: str, x: Tensor, kwargs: dict[str, object]) -> Tensor:
        name, call = pending[site].pop(0)
        view = fit(read_view(source[None], call.spec), x, call.spec.channel_axis, call.spec.batch_axis)
        result: Tensor = program.root.get_submodule(f"aim.memory.reads.{name}")(view, **kwargs)
        return result

    def add_memory(site: str) -> Callable[..., Tensor]:
        return lambda _, args, kwargs, out: out + term(site, args[0], kwargs)

    class Functions(WatchCalls):
        """Adds the memory to what a forward gets from a function."""

        def called(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
            out = super().called(name, function, args, kwargs)
            if name not in functions:
                return out
            given = dict(zip(FUNCTIONS[function].arguments, args, strict=False)) | kwargs
            own = {key: value for key, value in given.items() if key not in ("input", "weight", "bias", "groups")}
            added = term(name, given["input"], own)
            return out + added.repeat(1, out.shape[1] // added.shape[1], *[1] * (out.dim() - 2))

    kinds = classify_layers(base)  # before the hooks
    functions = {site.path for site in program.plan.sites if site.function}
    for site in set(pending) - functions:
        base.get_submodule(site).register_forward_hook(add_memory(site), with_kwargs=True)
    with Functions(names_in(base, kinds)):
        expected = base(x)
    assert (expected - execute(program, x, graph)).abs().max() < 1e-9
    assert not any(pending.values())


def test_no_widened_weight_is_allocated() -> None:
    program, x = planned("conv2d", shape=(4, 4, 8))
    before = sum(p.numel() for p in program.root.parameters())
    result = Pipeline((InsertMemory(),)).run(program)
    assert result.modified
    assert result.program.stage is Stage.MEMORY
    added = sum(p.numel() for n, p in program.root.named_parameters() if n.startswith(f"{AIM}."))
    assert sum(p.numel() for p in program.root.parameters()) == before + added
    assert added == program.plan.added_parameters
    assert execute(program, x).shape == (2, 4, 4, 5)


def test_grouped_layers_interleave_and_views_are_shared() -> None:
    program, x = program_for("depthwise")
    program = after(program, x, InsertMemory)
    assert len(calls(program, interleave)) == 2
    program, x = program_for(mlp(6, (6, 6, 6), 3).double(), torch.zeros(2, 6, dtype=torch.float64))
    program = after(program, x, InsertMemory)
    assert len(calls(program, "reshape")) == 1
    assert len(calls(program, fit)) == len(calls(program, expand_batch)) == 4


def test_layers_that_transform_their_weight_get_a_term() -> None:
    program, x = program_for("standardised")
    program = after(program, x, InsertMemory)
    targets = [str(node.target) for node in program.graphs["both"].nodes if node.op == "call_module"]
    assert "0" in targets
    assert "aim.memory.reads.0" in targets
    assert "aim._concat.2" in targets
    read = program.root.get_submodule("aim.memory.reads.0")
    assert type(read) is FewPlacesConv2d  # as torch has it, whatever the layer does to its weight


def test_the_same_seed_gives_the_same_program() -> None:
    prints = []
    for _ in range(2):
        program, x = program_for("residual")
        torch.manual_seed(len(prints))
        prints.append(fingerprint(after(program, x, InsertMemory)))
    assert prints[0] == prints[1]


def test_a_stream_of_its_own_restores_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with own_stream("test"):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


def test_planning_alone_adds_nothing() -> None:
    program, _x = program_for("residual")
    before = fingerprint(program)
    assert fingerprint(Pipeline(PLANNING).run(program).program) == before


def test_memories_with_the_same_seed_differ() -> None:
    configs = [aimgraph.AimConfig(name=name, shape=(6,), start="drawn") for name in ("u", "v")]
    aim = aimgraph.transform(nn.Sequential(nn.Linear(4, 4)), X, config=configs)
    assert not torch.equal(aim.get_parameter("aim.u.source.value"), aim.get_parameter("aim.v.source.value"))
    assert not torch.equal(aim.get_parameter("aim.u.reads.0.weight"), aim.get_parameter("aim.v.reads.0.weight"))


class _OneMore(nn.Module):
    """The batch of the second layer is the model's plus one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.extra = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([torch.relu(self.a(x)), self.extra], 0))


def test_a_batch_that_is_no_multiple_reads_the_batch_mean() -> None:
    base = _OneMore()
    aim = aimgraph.transform(base, X, updates=("a",), shape=(3,), verify="full")
    call = aimgraph.plan(aim).memories[0].reads[1].calls[0]
    assert (call.value, call.mean, call.note) == (1, True, "its batch is not the model's: reads the batch mean")
    assert torch.equal(aim(X), base(X))
    assert randomise(aim)(X).shape == (4, 3)
