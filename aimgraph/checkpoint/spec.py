"""What a checkpoint's JSON file says: its schema, strictly checked, and example inputs as data.

Nothing in it is executed: layers are named one by one, never by patterns, and no class is looked up.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aimgraph.compiler.aim_paths import DEFAULT
from aimgraph.errors import CheckpointError

FORMAT: Literal["aimgraph checkpoint"] = "aimgraph checkpoint"


VERSION: Literal[1] = 1


LARGEST = 64 * 2**20
"""Bytes that a spec may have. A network of 100,000 layers takes about 20 MB."""


Size: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


Shape: TypeAlias = Annotated[tuple[Size, ...], Field(max_length=64)]


Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorEntry(_Strict):
    """A tensor of the file.

    Attributes:
        dtype: ``float32``, ...
        shape: Its shape.
        sha256: Of its values, in row-major order, little-endian.
    """

    dtype: str
    shape: Shape
    sha256: Sha256


class FileEntry(_Strict):
    """The file that holds the tensors, beside the spec.

    Attributes:
        name: Its name: no path.
        bytes: Its size.
        sha256: Of all of it.
    """

    name: Annotated[str, Field(pattern=r"^tensors-[0-9a-f]{16}\.safetensors$")]
    bytes: Size
    sha256: Sha256


class LayerEntry(_Strict):
    """A tensor of the base's state dict.

    Attributes:
        dtype: ``float32``, ...
        shape: Its shape.
        sample: Digest of some of its values: tells another training run, not one changed value.
    """

    dtype: str
    shape: Shape
    sample: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class BaseEntry(_Strict):
    """The fingerprint of the base.

    Attributes:
        name: Its class, to be shown.
        layers: Key of its state dict -> what it is; empty where there is a digest.
        sha256: Of the fingerprint, where the file holds values alone.
    """

    name: str
    layers: dict[str, LayerEntry] = {}
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "BaseEntry":
        if (self.sha256 is None) == ("layers" not in self.model_fields_set):
            raise ValueError("a base has either layers or a digest")
        return self


class ReadEntry(_Strict):
    """A read weight.

    Attributes:
        site: The layer.
        name: Where it lives below ``aim.<memory>.reads``.
        channels: k.
        lowering: ``split`` or ``concat``.
        grids: S of each call.
        values: Which value of the memory each call reads: 0 for the source, i for the i-th update.
    """

    site: str
    name: str
    channels: Size
    lowering: Literal["split", "concat"]
    grids: tuple[Shape, ...]
    values: tuple[Size, ...]


class DrawnEntry(_Strict):
    """Read weights that the file does not hold, because they are drawn again.

    Attributes:
        sites: The layers, in graph order: how many characters a path has in common with the one before, and the rest.
        plan: SHA-256 of the entries of the reads.
        sha256: Of the weights as they are drawn: float32, little-endian, read by read.
    """

    sites: Annotated[tuple[tuple[Annotated[int, Field(ge=0, lt=1000)], str], ...], Field(max_length=100_000)]
    plan: Sha256
    sha256: Sha256


class MemoryEntry(_Strict):
    """A memory: what was asked for and what became of it.

    Attributes:
        config: Fields of `aimgraph.AimConfig`.
        shape: Resolved shape.
        reads: In graph order; none where they are drawn.
        updates: Where each kept update takes its features from.
        drawn: What stands in place of the reads in a file of values alone.
    """

    config: dict[str, Any]
    shape: Annotated[tuple[Annotated[int, Field(gt=0, lt=2**63)], ...], Field(min_length=1, max_length=3)]
    reads: tuple[ReadEntry, ...]
    updates: tuple[str, ...]
    drawn: DrawnEntry | None = None

    @property
    def name(self) -> str:
        """Name of the memory."""
        return str(self.config.get("name", "memory"))


class SetEntry(_Strict):
    """A memory set besides the default one.

    Attributes:
        name: Its name.
        shares_reads: Whether it has values only, read by the default set's read weights.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    shares_reads: bool


class PartEntry(_Strict):
    """A transformed part of the model.

    Attributes:
        path: Of the part; empty for the model itself.
        inputs: What it was transformed with, as `inputs_to_json` writes it; None where that can't be written.
        frozen: Whether its base is.
        enabled: Whether its memory takes part.
        memories: Its memories.
        sets: Its memory sets besides the default one.
        use: The set in use.
        batches: The two batch sizes that it was looked at, where they are others than one and the next.
        fixed_reads: Whether `freeze_reads` has fixed its read weights.
    """

    path: str
    inputs: Any
    frozen: bool
    enabled: bool
    memories: Annotated[tuple[MemoryEntry, ...], Field(min_length=1)]
    sets: tuple[SetEntry, ...] = ()
    use: str = DEFAULT
    batches: tuple[Size, Size] | None = None
    fixed_reads: bool = False


class Spec(_Strict):
    """All of it.

    Attributes:
        format: Says what this file is.
        version: Of the format.
        aimgraph: Version of aimgraph that wrote it.
        torch: Version of torch that it ran with.
        what: ``values`` alone; ``memory``; ``trainable``: with what else of the model is trained; or ``all``: with the
            base.
        base: Its fingerprint.
        parts: The transformed parts.
        tensors: Key of the model's state dict -> what the file holds.
        file: The file that holds them.
        sha256: Of everything above.
    """

    format: Literal["aimgraph checkpoint"] = FORMAT
    version: Literal[1] = VERSION
    aimgraph: str
    torch: str
    what: Literal["values", "memory", "trainable", "all"]
    base: BaseEntry
    parts: Annotated[tuple[PartEntry, ...], Field(min_length=1)]
    tensors: dict[str, TensorEntry]
    file: FileEntry
    sha256: Sha256 = "0" * 64

    @model_validator(mode="after")
    def _parts_differ(self) -> "Spec":
        paths = [part.path for part in self.parts]
        if len(set(paths)) < len(paths):
            raise ValueError(f"a part is there twice: {sorted(paths)}")
        return self

    @model_validator(mode="after")
    def _values_have_digests(self) -> "Spec":
        memories = [memory for part in self.parts for memory in part.memories]
        alone = {self.base.sha256 is not None, *(memory.drawn is not None for memory in memories)}
        if alone != {self.what == "values"}:
            raise ValueError("values alone come with digests of the base and of the reads, and nothing else does")
        if self.what == "values" and not all(one.shares_reads for part in self.parts for one in part.sets):
            raise ValueError("values alone come without read weights of a memory set")
        return self

    def written(self) -> bytes:
        """The file's content, with its digest."""
        data = {"format": FORMAT, "version": VERSION} | self.model_dump(mode="json", exclude_unset=True)
        data["sha256"] = _digest(data)
        compact: dict[str, Any] = {"separators": (",", ":")} if self.what == "values" else {"indent": 1}
        return (json.dumps(data, allow_nan=False, **compact) + "\n").encode()


def _digest(data: dict[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_spec(raw: bytes, place: str) -> Spec:
    """The spec that `Spec.written` made.

    Args:
        raw: Content of the file.
        place: Its path, for messages.

    Raises:
        CheckpointError: It is damaged, of a later version, or not a spec.
    """
    try:
        data = json.loads(raw, parse_constant=_no_number, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is damaged: it is no JSON file ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f'{place} is no checkpoint of aimgraph: it lacks "format": "{FORMAT}"')
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{place} is damaged: its version is {version!r:.40}")
    if version > VERSION:
        raise CheckpointError(
            f"{place} has version {version} of the format, and this aimgraph reads up to version {VERSION}: "
            f"install the one that wrote it ({data.get('aimgraph')!r:.40}) or a later one"
        )
    try:
        if data.get("sha256") != _digest(data):
            raise CheckpointError(f"{place} is damaged: its content does not have the digest that stands in it")
        return Spec.model_validate_json(raw)
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc']))[:120] or 'the whole'}: {one['msg'].removeprefix('Value error, ')[:200]}"
            for one in error.errors(include_url=False, include_input=False)[:3]
        ]
        raise CheckpointError(f"{place} is no valid checkpoint: {'; '.join(told)}") from error
    except RecursionError as error:
        raise CheckpointError(f"{place} is no valid checkpoint: it is nested too deeply") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return made
