"""What each level of a zoo check does with one model."""

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from aimgraph.api.transform import transform
from aimgraph.api.verify import outputs
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import AimgraphError, TraceError
from aimgraph.fake.faker import Faker
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import input_shapes
from aimgraph.planning.plan import Plan
from aimgraph.tracing.observe import observe
from aimgraph.widen.subject import OUTPUT
from aimgraph.zoo_check.manifest import Entry, example, is_images
from aimgraph.zoo_check.numeric import GRADIENTS, compare
from aimgraph.zoo_check.onnx import export
from aimgraph.zoo_check.rows import BASE, CRASHED, FAILED, PASSED, REFUSED, Row
from aimgraph.zoo_check.source import source_problem
from aimgraph.zoo_check.widen import WIDER, widen_problem


def check(entry: Entry, level: str) -> Row:
    """One model at one level, in this process.

    Args:
        entry: The model.
        level: ``structure``: transform it on the meta device and account for every layer;
            ``numeric``: compute with it; ``onnx``: export it and compare; ``widen``: give it half as many parameters
            more, and compare; ``source``: write its source, and compare in a process without aimgraph.
    """
    started = time.perf_counter()
    with warnings.catch_warnings(action="ignore"):
        try:
            row = _RUN[level](entry)
        except AimgraphError as error:
            row = Row(entry.called, level, REFUSED, reason=_line(error))
        except Exception as error:  # any model's own code; the row says what it was
            row = Row(entry.called, level, CRASHED, reason=f"{type(error).__name__}: {_line(error)}")
    return replace(row, seconds=row.seconds or time.perf_counter() - started)


def _structure(entry: Entry) -> Row:
    model, device = without_values(entry)
    try:
        aim, seconds = _transformed(entry, model, example(entry.inputs, device) if entry.inputs else None)
    except TraceError:
        if device != "meta":
            raise
        model = entry.build()  # it decides something by values
        aim, seconds = _transformed(entry, model, example(entry.inputs) if entry.inputs else None)
    return _account(entry, "structure", aim, seconds)


def _transformed(entry: Entry, model: nn.Module, inputs: Arguments | None, **options: Any) -> tuple[AimModule, float]:
    """The transformed part of the model, which is the whole one or stands in it; and the seconds that it took."""
    started = time.perf_counter()
    whole = transform(model, inputs, within=entry.within or None, **options)
    seconds = time.perf_counter() - started
    part = whole.get_submodule(entry.within)
    assert isinstance(part, AimModule)
    return part, seconds


def without_values(entry: Entry) -> tuple[nn.Module, str]:
    """The model on the meta device if it can be built there, and the device it is on."""
    try:
        return entry.build("meta"), "meta"
    except Exception:  # a constructor that needs values; what is really wrong comes up once more
        return entry.build(), "cpu"


def _numeric(entry: Entry) -> Row:
    model, inputs = small_model(entry)
    aim, seconds = _transformed(entry, model, inputs)
    problem, without = compare(entry.part(model), aim, inputs)
    full = example(entry.inputs) if entry.inputs else None
    if problem.startswith(GRADIENTS) and full and inputs and input_shapes(full) != input_shapes(inputs):
        # at a reduced size, windows can be cropped around a memory that is small itself: look at the full one
        model = _built(entry, small=False)
        aim, _ = _transformed(entry, model, full)
        problem, without = compare(entry.part(model), aim, full)
    if problem:
        return Row(entry.called, "numeric", FAILED, reason=_line(problem))
    row = _account(entry, "numeric", aim, seconds)
    reasons = (row.reason, f"not compared: {'; '.join(without)}" if without else "")
    return replace(row, reason=". ".join(filter(None, reasons)))


def _onnx(entry: Entry) -> Row:
    model, inputs = small_model(entry)
    aim, seconds = _transformed(entry, model.eval(), inputs, start="drawn")
    problem, base = export(entry.part(model), aim)
    if problem:
        return Row(entry.called, "onnx", BASE if base else FAILED, reason=_line(problem))
    return _account(entry, "onnx", aim, seconds)


def _widen(entry: Entry) -> Row:
    model, inputs = small_model(entry)
    started = time.perf_counter()
    problem, plan, compared = widen_problem(entry.part(model), inputs)
    stay = [group for group in plan.groups if group.reason and group.reason != OUTPUT]
    counts = Counter(re.sub(r" \([\w./-]+:\d+ in \S+\)$|'\[.*\]'", "", group.reason) for group in stay)
    row = Row(
        entry.called,
        "widen",
        FAILED if problem else PASSED if plan.factor >= WIDER else REFUSED,
        rewritten=sum(bool(group.added) for group in plan.groups),
        called=sum(group.reason != OUTPUT for group in plan.groups),
        left="; ".join(f"{count} x {reason}" for reason, count in sorted(counts.items())),
        seconds=time.perf_counter() - started,
    )
    return replace(row, reason=_line(problem or f"{plan.factor:.2f} x the parameters{compared}"))


def _source(entry: Entry) -> Row:
    model, inputs = small_model(entry)
    aim, seconds = _transformed(entry, model, inputs, start="drawn")
    record = record_of(aim)
    problem = source_problem(aim, inputs or record.inputs, grad=record.grad)
    if problem:
        return Row(entry.called, "source", FAILED, reason=_line(problem))
    return _account(entry, "source", aim, seconds)


_RUN: dict[str, Callable[[Entry], Row]] = {
    **{"structure": _structure, "numeric": _numeric, "onnx": _onnx},
    **{"widen": _widen, "source": _source},
}


IMAGE_SIDES = (64, 56, 96, 84, 128, 112, 160, 140, 192, 168)
"""Sides of images to try for levels that compute; patches have 14 or 16 pixels."""


def small_model(entry: Entry) -> tuple[nn.Module, Arguments | None]:
    """The model with values, drawn after a fixed seed, and the smallest inputs it runs on."""
    model = _built(entry, small=True)
    if entry.small or not entry.inputs:
        return model, example(entry.small) if entry.small else None
    full = example(entry.inputs)
    if is_images(entry.inputs):
        for side in (side for side in IMAGE_SIDES if side < min(full[0][0].shape[-2:])):
            inputs: Arguments = tuple(torch.zeros(*t.shape[:-2], side, side) for t in full[0]), {}
            if _runs_with_values(entry.part(model), inputs):
                return model, inputs
    return model, full


def _runs_with_values(model: nn.Module, inputs: Arguments) -> bool:
    """Whether a model with values takes these inputs, in train and in eval mode."""
    copy = copy_module(model)
    try:
        for train in (True, False):
            outputs(copy.train(train), inputs)
    except Exception:  # whatever it says about this size
        return False
    return True


def _built(entry: Entry, *, small: bool) -> nn.Module:
    torch.manual_seed(0)
    return entry.build(small=small)


def runs(model: nn.Module, inputs: Arguments) -> bool:
    """Whether `model` takes these inputs, in train and in eval mode, by its shapes alone."""
    seen = observe(Faker(model), {}, inputs)
    return not any(item.error for item in seen.values())


def _account(entry: Entry, level: str, aim: AimModule, seconds: float) -> Row:
    """The row of a transformed model: passed if every layer that is called reads, or says why not."""
    planned = record_of(aim).plan
    counts = planned.covered, len(planned.called), planned.layers, planned.fallback
    row = Row(entry.called, level, PASSED, *counts, left=_left(planned), seconds=seconds)
    if planned.covered == len(planned.called):
        return row
    missing = next(name for name in planned.called if name in planned.left)
    return replace(row, reason=f"called but not read: {missing}: {planned.left[missing]}")


def _left(plan: Plan) -> str:
    """How many layers are left as they are, for which reason: ``2 x never called``."""
    # without the name of the one module that a reason is about
    counts = Counter(re.sub(r"inside \S+ ", "inside a module ", reason) for reason in plan.left.values())
    return "; ".join(f"{count} x {reason}" for reason, count in sorted(counts.items()))


def _line(message: object) -> str:
    """The first line of an error or a text, short enough for a table."""
    text = str(message).strip().split("\n")[0]
    return text if len(text) <= 240 else f"{text[:240]}..."
