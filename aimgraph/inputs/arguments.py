"""The arguments of a forward: what the inputs of its graph are."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

from aimgraph.errors import ExampleInputError
from aimgraph.torch_private import tree_leaves

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


NOT_GIVEN = ...
"""Default of an input that must be given, behind one that need not be, and of one whose own default has no source."""


PRINTED = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Argument:
    """One argument of a forward.

    Attributes:
        name: Of the graph's input.
        value: What the example gives, or the default.
        keyword: The keyword that passes it; none if it is passed by position.
        given: Whether the example gives it.
        default: Its own default, in a tuple; empty if there is none.
    """

    name: str
    value: Any
    keyword: str = ""
    given: bool = True
    default: tuple[Any, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether its value is a constant of the graph: those not given, None, flags and strings."""
        return not self.given or self.value is None or isinstance(self.value, bool | str)

    @property
    def passed(self) -> Any:
        """What the graph's input takes: `NOT_GIVEN` for a default that has no source."""
        return self.value if self.given or isinstance(self.value, PRINTED) else NOT_GIVEN


def arguments_of(root: nn.Module, inputs: Arguments) -> list[Argument]:
    """The arguments of the root's forward, those of ``*args`` and ``**kwargs`` one by one.

    Raises:
        ExampleInputError: The inputs don't fit the forward's signature.
    """
    args, kwargs = inputs
    signature = inspect.signature(root.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ExampleInputError(f"the example inputs don't fit {type(root).__name__}.forward: {error}") from error
    taken = set(signature.parameters)
    found: list[Argument] = []
    for number, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            for index, item in enumerate(bound.arguments.get(name, ())):
                found.append(Argument(_free(f"{name}_{index}", taken), item))
        elif parameter.kind is parameter.VAR_KEYWORD:
            for key, item in bound.arguments.get(name, {}).items():
                found.append(Argument(_free(key, taken), item, key))
        else:
            by_place = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and number < len(args)
            positional = by_place or parameter.kind is parameter.POSITIONAL_ONLY
            default = () if parameter.default is parameter.empty else (parameter.default,)
            value = bound.arguments.get(name, parameter.default)
            found.append(Argument(name, value, "" if positional else name, name in bound.arguments, default))
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def bound_arguments(root: nn.Module, inputs: Arguments) -> dict[str, Any]:
    """Name of an input of the graph -> what it takes, defaults included.

    Raises:
        ExampleInputError: The inputs don't fit the forward's signature.
    """
    return {argument.name: argument.passed for argument in arguments_of(root, inputs)}


def hidden_tensors(inputs: Arguments) -> str:
    """A remark on objects among the inputs that tensors can't be seen in; empty if there are none.

    Sizes of these tensors can't be told or changed, and a second batch size can't be tried.
    """
    kinds = [type(leaf) for leaf in tree_leaves(inputs) if not isinstance(leaf, Tensor) and _holds_tensors(leaf)]
    if not kinds:
        return ""
    name = kinds[0].__name__
    return (
        f". The tensors in a {name} can't be seen: torch.export.register_dataclass({name}) shows those of a dataclass, "
        f"torch.utils._pytree.register_pytree_node({name}, ...) those of any class"
    )


def _holds_tensors(value: Any) -> bool:
    """Whether there are tensors in an object, in those that it holds, and so on."""
    waiting, seen = [(value, 0)], set[int]()
    while waiting:
        one, depth = waiting.pop()
        if id(one) not in seen and depth < _DEEPEST:
            seen.add(id(one))
            leaves = tree_leaves(_held_by(one))
            if any(isinstance(leaf, Tensor) for leaf in leaves):
                return True
            waiting += [(leaf, depth + 1) for leaf in leaves]
    return False


_DEEPEST = 4
"""How many objects may be around a tensor: what holds an object of any kind may lead to all there is."""


def _held_by(value: Any) -> list[Any]:
    if isinstance(value, type | nn.Module | ModuleType | FunctionType):
        return []
    held = [vars(value)] if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        held += [getattr(value, name, None) for name in ((names,) if isinstance(names, str) else names)]
    if isinstance(value, Mapping):
        held.append(dict(value))
    elif isinstance(value, list | tuple | set):
        held.append(dict(enumerate(value)))
    return held


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of an output: tuples, lists, dicts, dataclasses, and subclasses and nests of them."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(list(leaf.values()))
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, item.name) for item in fields(leaf)])
        elif isinstance(leaf, list | tuple):
            found += tensors_in([*leaf])
    return found
