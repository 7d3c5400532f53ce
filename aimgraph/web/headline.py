"""What a report says first: parameters, sites, values, and whether the network still computes what its base does."""

import json
from typing import Any

from aimgraph.config import AimConfig
from aimgraph.planning.rows import memory_shape
from aimgraph.planning.start import start_text
from aimgraph.web.formats import brief, count, number_of, share_text
from aimgraph.web.subject import Subject


def title_of(subject: Subject) -> str:
    """A heading."""
    model = subject.plan.model or "a model"
    return f"{subject.path} ({model}) and its memory" if subject.path else f"{model} and its memory"


def headline(subject: Subject) -> dict[str, Any]:
    """The texts of the tiles."""
    plan = subject.plan
    sizes = ", ".join(memory_shape(memory) for memory in plan.memories)
    total = sum(memory.size for memory in plan.memories)
    state, told = _identity(subject)
    found = {
        "title": title_of(subject),
        "ratio": share_text(plan.added_parameters / max(1, plan.base_parameters)),
        "ratio_told": f"parameters: {count(plan.base_parameters)} + {count(plan.added_parameters)} of the memory",
        "bar": _budget(subject),
        "size": f"{count(total)} values",
        "size_told": f"{number_of(len(plan.memories), 'memory', 'memories')}: {sizes}",
        "state": state,
        "state_told": told,
        "kept": "",
        "kept_told": "",
    }
    if not plan.base_parameters:
        found |= {"ratio": count(plan.added_parameters), "ratio_told": "parameters of the memory"}
    found |= _sites(subject)
    if plan.kept is not None and not plan.kept.unknown:
        kept = plan.kept
        found["kept"] = brief(kept.lean, "B")
        found["kept_told"] = (
            f"kept for the backward pass with a frozen base; {brief(kept.full, 'B')} where all is trained"
        )
    return found


def _sites(subject: Subject) -> dict[str, str]:
    plan = subject.plan
    if not subject.whole:
        return {"sites": str(plan.sites_read), "sites_told": "layers read the memory"}
    told = "layers and functions that the forward calls read at every call"
    inside = f"; {number_of(plan.fallback, 'site')} inside modules that can't be traced" if plan.fallback else ""
    return {"sites": f"{plan.covered} of {len(plan.called)}", "sites_told": told + inside}


def _identity(subject: Subject) -> tuple[str, str]:
    starts = "; ".join(dict.fromkeys(start_text(memory) for memory in subject.plan.memories))
    if subject.moved:
        return "trained", "the memory has moved from its start, and takes part in what the network computes"
    if any(memory.config.start == "drawn" for memory in subject.plan.memories):
        return "starts changed", f"the network does not compute what its base does: {starts}"
    if subject.moved is False:
        return "as its base", f"not trained yet: the network computes what its base does, bit for bit; {starts}"
    return "starts as its base", f"bit for bit, until the memory is trained; {starts}"


def _budget(subject: Subject) -> dict[str, Any] | None:
    """Shares of a bar: sources, reads and updates; and where the budget ends, if a shape was solved from one."""
    plan = subject.plan
    if not plan.base_parameters or not plan.added_parameters:
        return None
    source = sum(memory.source_parameters for memory in plan.memories)
    updates = sum(update.parameters for memory in plan.memories for update in memory.updates)
    reads = plan.added_parameters - source - updates
    solved = [memory.config.budget for memory in plan.memories if memory.config.shape == "auto"]
    limit = sum(solved) if subject.whole and len(solved) == len(plan.memories) else None
    whole = max(plan.added_parameters / plan.base_parameters, limit or 0.0) * plan.base_parameters
    parts = f"values {count(source)}, reads {count(reads)}, updates {count(updates)}"
    return {
        "shares": [round(100 * part / whole, 2) for part in (source, reads, updates)],
        "limit": None if limit is None else round(100 * limit * plan.base_parameters / whole, 2),
        "told": parts if limit is None else f"{parts}; the budget is {share_text(limit)}",
    }


def config_text(subject: Subject) -> str:
    """The options as a user writes them, and as JSON for ``--config``."""
    configs = [memory.config for memory in subject.plan.memories]
    python = ",\n".join(f"    {_call(config)}" for config in configs)
    data = [_as_json(config) for config in configs]
    return (
        f"# in Python\naim = aimgraph.transform(model, x, config=[\n{python},\n])\n\n"
        f"# as a file for --config\n{json.dumps(data, indent=2)}\n"
    )


def _options(config: AimConfig) -> dict[str, Any]:
    """Those that are not the default."""
    defaults = {name: field.default for name, field in AimConfig.model_fields.items()}
    given = {name: getattr(config, name) for name in AimConfig.model_fields}
    return {name: value for name, value in given.items() if _differs(value, defaults[name])}


def _differs(value: Any, default: Any) -> bool:
    return type(value) is not type(default) or bool(value != default)


def _call(config: AimConfig) -> str:
    return f"aimgraph.AimConfig({', '.join(f'{name}={_told(value)}' for name, value in _options(config).items())})"


def _told(value: Any) -> str:
    """A value as Python, or the name of what Python can't write in a line."""
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    return repr(value) if isinstance(value, str | int | float | bool | tuple | None) else f"<{type(value).__name__}>"


def _as_json(config: AimConfig) -> dict[str, Any]:
    left = {*config.callables, *(name for name, value in _options(config).items() if _told(value).startswith("<"))}
    data: dict[str, Any] = config.model_dump(mode="json", include=set(_options(config)) - left)
    return data
