"""A model planned, or transformed and compared with its base, as several commands do it."""

from typing import TYPE_CHECKING, Any

from aimgraph.cli.asked import Asked
from aimgraph.cli.progress import Progress, progress
from aimgraph.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from aimgraph.api.report import Report
    from aimgraph.compiler.program import HistoryEntry, Pass, Program
    from aimgraph.emit.module import AimModule
    from aimgraph.planning.plan import Plan

EXIT_DIFFERENT = 1


def planned(asked: Asked, shown: Progress, base: "nn.Module | None" = None) -> "Plan":
    """The plan of what was asked for; of `base`, if that is there already."""
    from aimgraph.api.transform import plan

    base = asked.base() if base is None else base
    shown.step("planning")
    return plan(base, asked.example_inputs(), **asked.settings())


def transformed(
    asked: Asked, dump: str | None = None, passes: str | None = None
) -> "tuple[AimModule, Report, list[HistoryEntry]]":
    """The transformed model, how it compares with its base, and the passes that made it."""
    with progress(f"loading {asked.model}") as shown:
        from aimgraph.api.strip import strip
        from aimgraph.api.transform import transform
        from aimgraph.api.verify import verify
        from aimgraph.passes import WidenChannels

        settings = asked.settings() if passes is None else _settings(asked, passes)
        history: list[HistoryEntry] = []
        base = asked.base()
        shown.step("transforming: tracing")

        def watch(done: "Pass", program: "Program") -> None:
            history.append(program.history[-1])
            shown.step(f"transforming: after {done.name}, {program.stage.name.lower()}")

        aim = transform(base, asked.example_inputs(), **settings, dump=dump, watch=[watch])
        widened = any(entry.modified and entry.name == WidenChannels().name for entry in history)
        shown.step("comparing with the base")
        return aim, verify(strip(aim) if widened else base, aim), history


def _settings(asked: Asked, passes: str) -> dict[str, Any]:
    """The arguments of `aimgraph.transform` that ``--passes`` gives."""
    from aimgraph.cli.sequence import sequence

    given = [name for name, value in asked.memory.items() if value is not None and value != ()]
    if given:
        raise ConfigError(f"--passes says what the memory is, too: give {given} as memory{{...}}")
    asked_for = sequence(passes)
    batches = {"example_batches": asked.example_batches()}
    return batches | {"passes": asked_for.passes, **({"config": asked_for.configs} if asked_for.configs else {})}
