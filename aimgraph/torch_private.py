"""Every name of torch that is not public, and how each supported version has it.

The rest of aimgraph takes these names from here, so a new version of torch is looked into in one file. Unless a line
says otherwise, every version in `TESTED` has the name in the same place, with the same meaning.

Names that only ever stand behind the dot of a user's object are not wrapped. On `nn.Module`: ``_modules``,
``_parameters``, ``_buffers``, ``_non_persistent_buffers_set``, ``_forward_hooks``, ``_forward_pre_hooks``,
``_state_dict_hooks``, ``_load_state_dict_pre_hooks``, ``_apply``, ``_conv_forward``. On `torch.fx.GraphModule`:
``_graph``. ``_is_impure`` marks a module whose calls dead-code elimination keeps; ``_orig_mod`` and
``_fsdp_wrapped_module`` are the names that wrappers register a module under.
"""

import keyword
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any, TypeAlias

import torch
import torch.nn.attention
from torch import Tensor, _compile, _ops, fx, nn, overrides
from torch._subclasses import fake_tensor
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.fx import graph as fx_graph
from torch.fx.experimental import symbolic_shapes
from torch.nn.modules import batchnorm, conv
from torch.nn.modules import module as nn_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _device, _python_dispatch, _pytree, checkpoint, weak

TESTED = ((2, 9), (2, 13), (2, 14), (2, 15))
"""Versions of torch with which all tests pass; `docs/compatibility.md` has the results."""


CLAMP_PASSES_ENDS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
"""Whether ``torch.clamp`` lets a gradient through where its input is at an end; from torch 2.14 on it does not."""

# Nested containers of tensors: leaves, structure, and a function applied to all leaves or those of a type.
tree_flatten, tree_unflatten, tree_leaves = _pytree.tree_flatten, _pytree.tree_unflatten, _pytree.tree_leaves
tree_map, tree_map_only = _pytree.tree_map, _pytree.tree_map_only
tree_flatten_with_path, keystr = _pytree.tree_flatten_with_path, _pytree.keystr  # with the place of each leaf

# Tensors of a shape, strides, a dtype and a device, without values; and what fails because there are none.
FakeTensor = fake_tensor.FakeTensor
FakeTensorMode = fake_tensor.FakeTensorMode
DataDependentOutputException = fake_tensor.DataDependentOutputException
DynamicOutputShapeException = fake_tensor.DynamicOutputShapeException
unset_fake_temporarily = fake_tensor.unset_fake_temporarily

# Modes that see each operation of the dispatcher, or each function of torch that is called.
TorchDispatchMode = _python_dispatch.TorchDispatchMode
dispatch_modes_disabled = _python_dispatch._disable_current_modes
current_function_mode: Callable[[], Any] = overrides._get_current_function_mode
function_mode_popped: Any = overrides._pop_mode_temporarily

# Operators that are registered, as `torch.ops` has them: one overload, and all of a name.
OpOverload = _ops.OpOverload
OpOverloadPacket = _ops.OpOverloadPacket

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs when a module is called, or its gradient computed, besides its forward."""
    return nn_module._has_any_global_hook() or any(getattr(module, name) for name in _HOOKS)


ConvNd = conv._ConvNd  # what every convolution inherits from
NormBase = batchnorm._NormBase  # what every norm with statistics of its channels inherits from
WrappedHook = nn_module._WrappedHook  # a load hook of a state dict, with a weak reference to its module

asserted: Callable[..., Any] = torch._assert  # what an assertion of a traced forward calls
is_jit_tracing: Callable[[], bool] = torch.jit._trace.is_tracing  # by torch.jit.trace
disable_dynamo = _compile._disable_dynamo  # as torch.compiler.disable, which imports the compiler for seconds
is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # on any device
copy_all: Callable[[list[Tensor], list[Tensor]], None] = torch._foreach_copy_  # many tensors into as many, at once
is_batchedtensor = torch._C._functorch.is_batchedtensor  # what a function sees below torch.vmap

# Functions and methods that were marked with ``torch.fx.wrap``, in all files: changed in place.
WRAPPED_FUNCTIONS = _symbolic_trace._wrapped_fns_to_patch
WRAPPED_METHODS = _symbolic_trace._wrapped_methods_to_patch

WeakTensorKeyDictionary = weak.WeakTensorKeyDictionary  # goes by the identity of tensors

PARAMETER_MARKS = ("_is_param", "_is_buffer")
"""Attributes by which torch tells an instance of `nn.Parameter` or `nn.Buffer` that is of another class."""


CHECK = "_check_with"
"""Name in `torch` of the function below ``torch._check``: error class, condition, message."""


KERNEL_CHOICES = tuple(name for name in ("_sdpa_kernel",) if hasattr(torch.nn.attention, name))
"""Names in `torch.nn.attention` of what ``sdpa_kernel`` calls, also inside functions that it decorates."""


FRESH_NODES = frozenset(
    {"ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "LinearBackward0", "UnsafeViewBackward0", "AddBackward0"}
)
"""Backward nodes of a convolution, a linear layer, and a sum: none saves its output."""


COMPILED = ("_code", "_lineno_map", *(("_prologue_start",) if hasattr(fx_graph.PythonCode, "_prologue_start") else ()))
"""What a `torch.fx.GraphModule` keeps about the forward that it has compiled; the last one from torch 2.10 on."""


GRAPH_NAMES = (
    *("_graph", "_code", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras", "meta", "shape_env"),
    *("_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks"),
)
"""All that a `torch.fx.GraphModule` keeps on itself besides what an `nn.Module` does, of any version."""


Function: TypeAlias = Callable[..., Any]


@contextmanager
def patched(*patches: tuple[Any, str, Callable[[Any], Any]]) -> Iterator[None]:
    """Replace attributes of modules and classes, and put them back.

    Args:
        *patches: Owner, name, and what makes the new attribute of the one that the owner has or inherits, None without.
    """
    originals = [vars(owner).get(name) for owner, name, _ in patches]
    try:
        for (owner, name, patch), original in zip(patches, originals, strict=True):
            setattr(owner, name, patch(getattr(owner, name, None) if original is None else original))
        yield
    finally:
        for (owner, name, _), original in zip(patches, originals, strict=True):
            if original is not None:
                setattr(owner, name, original)
            elif name in vars(owner):
                delattr(owner, name)


def default_device() -> Any:
    """What ``torch.device`` or ``torch.set_default_device`` has set; the public way takes thirty times as long."""
    return _device.CURRENT_DEVICE


def active_fake_mode() -> Any:
    """The mode in which what is made now is fake; None outside of one."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)


def is_exporting() -> bool:
    """Whether torch.export runs this, as ``torch.compiler.is_exporting`` says, but for what torch 2.9 compiles."""
    return bool(torch.compiler._is_exporting_flag)


def same_sizes(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether sizes are the same; in all runs of a program that torch.export makes, without limiting it to that."""
    if not is_exporting():
        return sizes == others
    return all(symbolic_shapes.statically_known_true(one == other) for one, other in zip(sizes, others, strict=True))


def is_captured() -> bool:
    """Whether torch.compile or torch.jit.trace makes a program of what runs, for other sizes and modes than these."""
    return torch.compiler.is_compiling() or is_jit_tracing()


def is_transformed() -> bool:
    """Whether `torch.func` transforms what runs, or forward-mode differentiation goes along with it."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_dispatched() -> bool:
    """Whether a mode sees each operation of the dispatcher that runs now."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for several, as the gradients of ``torch.autograd.grad(is_grads_batched=True)`` do."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(tensor)) or is_batchedtensor(tensor)


def in_backward() -> bool:
    """Whether a backward pass runs, and this inside it."""
    return bool(torch._C._current_graph_task_id() != -1)


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows it as a view of another tensor."""
    return tensor._is_view()


def version_of(value: Any) -> int:
    """How often a tensor has been overwritten; 0 for anything else."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def storage_of(tensor: Tensor) -> int:
    """The identity of the memory that a tensor is in, of fake ones, too."""
    return int(tensor.untyped_storage()._cdata)


def autocast_options(context: torch.autocast) -> dict[str, Any]:
    """The keyword arguments that an autocast was made with."""
    return {"dtype": context.fast_dtype, "enabled": context._enabled, "cache_enabled": context._cache_enabled}


def has_bfloat16_kernels() -> bool:
    """Whether this processor computes convolutions and products of bfloat16 no slower than those of float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compiled_from(module: Any) -> nn.Module | None:
    """What ``torch.compile`` made a module of; None for any other."""
    held = getattr(module, "_modules", {}).items()  # by name: importing the compiler takes seconds
    return next((one for name, one in held if name == "_orig_mod"), None)


def active_ddp() -> Any:
    """The `DistributedDataParallel` around the forward that runs, None without one or where inputs are uneven."""
    wrapper = DistributedDataParallel._get_active_ddp_module()
    return None if wrapper is None or wrapper._join_config.enable else wrapper


def operators_of(function: Function) -> list[Any]:
    """The operators of the dispatcher that do what a function of `torch.nn.functional` does, each of its overloads.

    Args:
        function: Any function; one of others has none.
    """
    name = getattr(function, "__name__", "")
    if getattr(torch.nn.functional, name, None) is not function or not hasattr(torch.ops.aten, name):
        return []
    packet = getattr(torch.ops.aten, name)
    return [packet, *(getattr(packet, one) for one in packet.overloads() if one != "out")]


def operator_named(name: str) -> Any:
    """The operator that prints as `name`: ``aten.conv2d.default``, or ``aten.conv2d`` for all of its overloads."""
    return reduce(getattr, name.split("."), torch.ops)


def codegen_of(graph: fx.Graph) -> Any:
    """What prints the code of a graph."""
    return graph._codegen


def own_call(kind: Any) -> None:
    """Give a class derived from that of a `torch.fx.GraphModule` its call: torch would make it one that calls itself.

    ``fully_shard`` derives such classes.
    """
    if "_wrapped_call" not in vars(kind) and hasattr(kind, "_wrapped_call"):
        kind._wrapped_call = kind._wrapped_call


@contextmanager
def keywords_quoted() -> Iterator[None]:
    """Let torch.fx print names that are keywords of Python, as ``getattr(self.layers, "class")``."""

    def quoting(original: Function) -> Function:
        def quoted(base: str, target: str) -> Any:
            if not any(keyword.iskeyword(name) for name in target.split(".")):
                return original(base, target)
            for name in target.split("."):
                plain = name.isidentifier() and not keyword.iskeyword(name)
                base = f"{base}.{name}" if plain else f'getattr({base}, "{name}")'
            return base

        return quoted

    with patched((fx_graph, "_format_target", quoting)):
        yield


@contextmanager
def checkpoint_replaced(variants: Callable[[Function, Function], tuple[Function, Function]]) -> Iterator[None]:
    """Replace what ``torch.utils.checkpoint`` is made of.

    Args:
        variants: Given ``CheckpointFunction.apply``, which the reentrant variant calls with the function, whether to
            keep random states, and the arguments; and the generator around the call, which takes the function first.
            torch 2.14 has a new name for the one that it calls.
    """
    function: Any = checkpoint.CheckpointFunction
    module: Any = checkpoint
    name = "_checkpoint_without_reentrant_generator"
    name = f"{name}_impl" if hasattr(module, f"{name}_impl") else name
    apply, around = variants(function.apply, getattr(module, name))
    with patched((function, "apply", lambda _: staticmethod(apply)), (module, name, lambda _: around)):
        yield


def checkpointed_calls() -> list[Any]:
    """What stands for the checkpointed calls around what runs now, the innermost first.

    Each is the same object in the forward that is checkpointed and where that runs again in the backward pass. Of
    calls within each other that are not reentrant, a forward sees the innermost one only.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    cells = getattr(hooks[0], "__closure__", None) if hooks else None
    found = [cell.cell_contents for cell in cells or () if isinstance(cell.cell_contents, checkpoint._CheckpointFrame)]
    if torch.is_grad_enabled() and not in_backward():
        return found
    function: Any = checkpoint.CheckpointFunction
    reentrant = (function.forward.__code__, function.backward.__code__)
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code in reentrant:
            found.append(frame.f_locals["ctx"])
        elif frame.f_code.co_name == "unpack_hook" and frame.f_code.co_filename == checkpoint.__file__:
            found.append(frame.f_locals["frame"])
    return found


@cache
def warn_if_untested() -> None:
    """Say once per process, to the caller of the caller, that this version of torch is not in `TESTED`."""
    if tuple(map(int, torch.__version__.split(".")[:2])) not in TESTED:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        warnings.warn(
            f"aimgraph is not tested with torch {torch.__version__}: if something fails, try one of {tested}",
            stacklevel=3,
        )
