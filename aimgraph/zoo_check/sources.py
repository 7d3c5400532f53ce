"""The models that a library has, as manifest entries, and the few of them that every change is checked with."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aimgraph.errors import AimgraphError
from aimgraph.models_zoo.loader import ZOO, import_library
from aimgraph.zoo_check.levels import IMAGE_SIDES, runs
from aimgraph.zoo_check.manifest import Entry, example, read_manifest, shapes

FOLDER = Path(__file__).parent.parent / "models_zoo"
"""Where the manifests and the expected results of the known sources are."""


SOURCES = ("torchvision", "timm", "zoo")


SMALL = {"timm": 28_000_000, "torchvision": 150_000_000, "zoo": 28_000_000}
"""Most parameters of a model that every change is computed with, by source."""


SLOW = ("detection.ssd", "video.mvit", "video.s3d")
"""Families that take large images or videos only: minutes at level ``numeric``."""


MANY = 100
"""Families of at least as many models have two that every change is checked with."""


def list_entries(source: str) -> Iterator[Entry]:
    """One entry per model of a source, as its library names them.

    Raises:
        AimgraphError: The library is not installed, or a model of it can't be built.
    """
    if source == "zoo":
        yield from (sized(Entry(f"zoo/{name}", family=name)) for name in sorted(ZOO))
        return
    library = import_library(source)
    timm = source == "timm"
    make, option = (_timm_entry, "img_size") if timm else (_torchvision_entry, "image_size")
    for name in (library if timm else library.models).list_models():
        yield shrunk(sized(make(library, name)), option)


def _timm_entry(library: Any, name: str) -> Entry:
    config = library.models.get_pretrained_cfg(name, allow_unregistered=True)
    size = "x".join(map(str, config.input_size)) if config is not None else "3x224x224"
    return Entry(f"timm/{name}", inputs=f"2x{size}", family=str(library.models._registry._model_to_module[name]))


def _torchvision_entry(library: Any, name: str) -> Entry:
    """Inputs by task: frames for video, two images for optical flow, and a detector's backbone alone."""
    builder = library.models.get_model_builder(name)
    module = builder.__module__.removeprefix("torchvision.models.")
    family, _, rest = module.partition(".")
    entry = {"name": f"torchvision/{name}", "family": module}
    if family == "video":
        side = 112 if "resnet" in rest else 224
        return Entry(**entry, inputs=f"2x3x16x{side}x{side}")
    if family == "optical_flow":
        return Entry(**entry, inputs="2x3x128x128;2x3x128x128")
    if family == "detection":
        return Entry(**entry, inputs="2x3x320x320", within="backbone", options="weights_backbone=none")
    if family == "segmentation":
        return Entry(**entry, inputs="2x3x224x224", options="weights_backbone=none")
    if family == "quantization":
        return Entry(**entry, inputs="2x3x224x224", options="quantize=true")
    side = 299 if "inception" in name else 224
    return Entry(**entry, inputs=f"2x3x{side}x{side}")


def shrunk(entry: Entry, option: str) -> Entry:
    """The entry with smaller images for levels that compute, where the constructor has to be told their size.

    Args:
        entry: One that takes other things than one batch of images is given back as it is.
        option: What the constructor calls the size.
    """
    given = shapes(entry.inputs)
    if len(given) != 1 or len(given[0]) != 4:
        return entry
    batch, channels, *sides = given[0]
    for side in (side for side in IMAGE_SIDES if side < min(sides)):
        text = f"{batch}x{channels}x{side}x{side}"
        for candidate in (entry, replace(entry, small=text, small_options=f"{option}={side}")):
            try:
                with warnings.catch_warnings(action="ignore"):
                    model = candidate.build("meta", small=True)
            except TypeError:  # there is no such option
                return entry
            except Exception:  # whatever it says about this size
                continue
            if runs(candidate.part(model), example(text, "meta")):
                return candidate
    return entry


def sized(entry: Entry) -> Entry:
    """The entry with its number of parameters, where the model can be built."""
    for device in ("meta", None):  # without values if possible; some constructors compute with them
        try:
            with warnings.catch_warnings(action="ignore"):
                model = entry.build(device)
        except (AimgraphError, RuntimeError, NotImplementedError, TypeError):
            continue
        return replace(entry, parameters=sum(p.numel() for p in entry.part(model).parameters()))
    return entry


def representatives() -> list[Entry]:
    """Of every family, the smallest model at level ``numeric``, unless that one is large.

    Families of many models, and those without a small one, have their middle model at level ``structure``.
    """
    picked = []
    for source in sorted(SOURCES):
        families: dict[str, list[Entry]] = defaultdict(list)
        for entry in read_manifest(FOLDER / f"{source}.csv"):
            families[entry.family].append(entry)
        for family in sorted(families):
            members = sorted(families[family], key=lambda entry: (entry.parameters, entry.name))
            most = 0 if family in SLOW else SMALL[source]
            small = next((entry for entry in members if 0 < entry.parameters <= most), None)
            if small is not None:
                picked.append(replace(small, level="numeric"))
            middle = members[len(members) // 2]
            if small is None or (len(members) >= MANY and middle != small):
                picked.append(replace(middle, level="structure"))
    return picked
