"""What a user can ask of one memory, validated and JSON both ways."""

import difflib
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from aimgraph.errors import ConfigError

SitePredicate: TypeAlias = Callable[[str, nn.Module], bool]
PartFactory: TypeAlias = Callable[[Any], Any]
Positive: TypeAlias = Annotated[int, Field(gt=0)]

ARTICLE_BUDGET = 0.0126
"""Added parameters per base parameter in the article: 24.1 M / 23.8 M - 1."""

Kind: TypeAlias = Literal["zero_reads", "zero_values", "drawn"]

START: Kind = "zero_reads"
"""The start of a memory that asks for none."""

EARLIER_DEVIATION = 0.02
"""Standard deviation of the values that ``init="zero"`` drew."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class AimConfig(BaseModel):
    """Options of one memory. Frozen; ``AimConfig(...)`` raises `ConfigError` on anything invalid.

    Attributes:
        name: Name of the memory; everything it adds lives under ``aim.<name>``.
        shape: ``(rows, cols, channels)``, ``(N,)``, or ``"auto"``: the smallest grid of the base
            with as many channels as `budget` allows.
        budget: For ``shape="auto"``, the most parameters to add, as a fraction of the base's.
        source: ``"parameter"``: N free values; ``"ones_conv"``: the article's layer fed with ones; ``"coordinates"``:
            row and column of each place, as in CoordConv; a tensor of the values, [rows, cols, channels] or [N]; the
            name of a source that `aimgraph.register` knows; or a factory ``SourceSpec -> nn.Module`` of your own.
        trainable: Whether the source is trained; False for values that stay as they are.
        seed: Seed of the private generator that draws everything this memory adds.
        sites: Layers that read: ``"all"``, globs or ``re:`` regexes over layer paths, or a callable
            ``(path, module) -> bool``. A pattern that matches nothing is an error.
        exclude: Globs or ``re:`` regexes of layers that don't read.
        within: Path of the one submodule to transform, in place of it in the model; the whole model if left out.
        read: ``"reshape"``: reshape and zero-pad; ``"resize"``: resample the map (2-D grids); another registered name;
            or a factory ``ReadSpec -> nn.Module``, which is called once for every site.
        updates: ``None``; ``"stages"``: after the last tensor of each resolution; or module paths
            whose output is written into the memory.
        block: What stands there: ``"conv_sigmoid"``: the article's three convolutions; another registered name; or a
            factory ``BlockSpec -> nn.Module``.
        pool: ``None``: one memory per sample after an update; ``"batch"``: their mean.
        mode: ``"replace"`` the memory on update, or mix through a learned gate (``"gated"``).
        carry: How a memory reaches the next batch: ``"gradient"`` or ``"state"``.
        rate: Step of the carried state towards what the updates wrote, in (0, 1].
        write_in_eval: Whether the carried state is written in eval mode too.
        start: Which factor of a read is zero before training. ``"zero_reads"``: the read weights, and values are
            drawn; ``"zero_values"``: the values, and read weights are drawn; with both the output equals the base's,
            bit for bit. ``"drawn"``: none, read weights are drawn by their layers' own initialiser.
        start_scale: Of what is drawn: the standard deviation of the values, or with ``"zero_values"`` a factor on the
            read weights. By default that of `aimgraph.planning.start.scale_of`: with ``"zero_reads"`` a formula of the
            layers that read.
        lowering: ``"split"``: ``y = layer(x) + layer_m(m)``; ``"concat"``: the literal form, in which read weights are
            part of the layers' own weights.

    Example:
        >>> AimConfig(shape=(7, 7, 16), sites=("layer4.*",)).shape
        (7, 7, 16)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str = "memory"
    shape: Literal["auto"] | tuple[Positive] | tuple[Positive, Positive, Positive] = "auto"
    budget: float = Field(default=ARTICLE_BUDGET, gt=0, allow_inf_nan=False)
    source: str | PartFactory | Tensor = "parameter"
    trainable: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)
    sites: str | tuple[str, ...] | SitePredicate = "all"
    exclude: str | tuple[str, ...] = ()
    within: str | None = Field(default=None, min_length=1)
    read: str | PartFactory = "reshape"
    updates: Literal["stages"] | tuple[str, ...] | None = None
    block: str | PartFactory = "conv_sigmoid"
    pool: Literal["batch"] | None = None
    mode: Literal["replace", "gated"] = "replace"
    carry: Literal["gradient", "state"] = "gradient"
    rate: float = Field(default=0.1, gt=0, le=1)
    write_in_eval: bool = False
    start: Kind = START
    start_scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lowering: Literal["split", "concat"] = "split"

    def __init__(self, **options: Any) -> None:
        """Validate `options`.

        ``init=``, the earlier name of ``start=``, is taken with a warning: ``"zero"`` is ``"zero_reads"`` with values
        of a standard deviation of 0.02, and ``"default"`` is ``"drawn"``.

        Raises:
            ConfigError: An option is unknown, of the wrong type, out of range or contradictory.
        """
        if "init" in options:
            options, said = renamed_init(options)
            warnings.warn(f"AimConfig(init=...) has another name: give {said}", stacklevel=2)
        try:
            super().__init__(**_completed(options))
        except ValidationError as error:
            raise ConfigError(_explain(error, options)) from error

    @field_validator("name")
    @classmethod
    def _name_is_an_identifier(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a memory's name is a letter followed by letters, digits or '_'")
        if name == "sets":
            raise ValueError("memory sets live under aim.sets")
        if hasattr(nn.Module(), name):
            raise ValueError("every torch.nn.Module has a member of that name")
        return name

    @field_validator("sites", "exclude", "updates")
    @classmethod
    def _patterns_compile(cls, patterns: Any) -> Any:
        for pattern in () if callable(patterns) or patterns is None else as_patterns(patterns):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except (re.error, OverflowError, RecursionError) as error:
                    raise ValueError(f"the regular expression {pattern!r} is invalid: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _options_agree(self) -> "AimConfig":
        if self.sites == ():
            raise ValueError('sites=() names no layer: use sites="all" for every layer')
        if self.updates == ():
            raise ValueError("updates=() names no module: use updates=None for a memory without updates")
        for option in ("carry", "pool", "mode", "block"):
            value = getattr(self, option)
            if self.updates is None and value != type(self).model_fields[option].default:
                raise ValueError(f'{option}={value!r} needs updates, e.g. updates="stages"')
        if self.write_in_eval and self.carry != "state":
            raise ValueError('write_in_eval=True needs carry="state"')
        return self

    @model_validator(mode="after")
    def _source_fits(self) -> "AimConfig":
        name = self.source if isinstance(self.source, str) else "a tensor" if isinstance(self.source, Tensor) else ""
        problems = {
            "ones_conv": self.shape == "auto" and 'source="ones_conv" needs an explicit shape, e.g. shape=(7, 7, 64)',
            "coordinates": self._problem_of_coordinates(),
            "a tensor": self._problem_of_values(),
        }
        if problem := problems.get(name):
            raise ValueError(problem)
        shown = "a tensor as source" if name == "a tensor" else f"source={name!r}"
        if name in ("coordinates", "a tensor") and self.start == "zero_values":
            raise ValueError(f'{shown} gives values other than zero: use start="zero_reads" with it')
        if name in problems and self.start_scale is not None and self.start != "zero_values":
            raise ValueError(f"start_scale={self.start_scale} is for drawn values: {shown} has its own")
        if not self.trainable and self.start == "zero_values" and self.updates is None:
            raise ValueError(
                'trainable=False with start="zero_values" keeps all values zero, so that nothing could learn: use '
                'start="zero_reads" with it'
            )
        return self

    def _problem_of_coordinates(self) -> str:
        """Why coordinates can't fill the memory; empty if they can."""
        if self.shape == "auto":
            return 'source="coordinates" needs an explicit shape, e.g. shape=(7, 7, 2) for rows and columns'
        if len(self.shape) == 3 and self.shape[2] == 1:
            return 'source="coordinates" needs two channels or more, row and column: give shape=(rows, cols, 2)'
        return ""

    def _problem_of_values(self) -> str:
        """Why a tensor can't be the values of the memory; empty if it can."""
        values = self.source
        if not isinstance(values, Tensor):
            return ""
        if values.dim() not in (1, 3) or not values.numel() or not values.is_floating_point():
            return f"a tensor as source is [rows, cols, channels] or [N], of floating-point numbers; {_told(values)}"
        if values.is_meta or not bool(values.isfinite().all()):
            return f"a tensor as source holds finite numbers; {_told(values)} and does not"
        if self.shape == "auto" or tuple(values.shape) in (tuple(self.shape), (math.prod(self.shape),)):
            return ""
        return f"the source is a tensor {list(values.shape)} and shape={self.shape}: give shape={tuple(values.shape)}"

    def with_options(self, **options: Any) -> "AimConfig":
        """A config with other options in place of its own; defaults that follow from others do so anew.

        Raises:
            ConfigError: As for `AimConfig`.
        """
        return AimConfig(**({name: getattr(self, name) for name in self.model_fields_set} | options))

    def __eq__(self, other: object) -> bool:
        """Whether all options are the same; tensors are if they are the same object, as hashes have it."""
        if not isinstance(other, AimConfig):
            return NotImplemented
        mine, theirs = (
            dict(one) | {"source": id(one.source) if isinstance(one.source, Tensor) else one.source}
            for one in (self, other)
        )
        return mine == theirs

    @property
    def callables(self) -> tuple[str, ...]:
        """The options that are callables."""
        return tuple(option for option in ("sites", "source", "read", "block") if callable(getattr(self, option)))

    def to_json(self) -> dict[str, Any]:
        """The options as JSON-ready data.

        Raises:
            ConfigError: An option is a callable, which no file can hold.
        """
        for option in self.callables:
            remedy = (
                "use globs or 're:' regexes instead"
                if option == "sites"
                else f"register it with aimgraph.register({option!r}, name, factory) and give its name instead"
            )
            raise ConfigError(f"memory {self.name!r}: {option} is a callable and can't be written as JSON; {remedy}")
        if isinstance(self.source, Tensor):  # a checkpoint holds the values beside it
            return self.model_copy(update={"source": "given"}).to_json()
        return self.model_dump(mode="json", exclude={"block"} if self.block == "conv_sigmoid" else None)  # as it was

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "AimConfig":
        """The config that `to_json` wrote, here or in an earlier version.

        Raises:
            ConfigError: `data` is not a valid set of options.
        """
        if "init" in data:
            data, _ = renamed_init(data)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


def renamed_init(options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Options with ``start`` in place of ``init``, its earlier name, and what stands in them now, in words.

    Raises:
        ConfigError: Both are there, or ``init`` is neither of its two values.
    """
    rest = {name: value for name, value in options.items() if name != "init"}
    init = options["init"]
    if init not in ("zero", "default"):
        raise ConfigError(f'AimConfig init={init!r}: give start="zero_reads", start="zero_values" or start="drawn"')
    if "start" in rest:
        raise ConfigError(f"AimConfig init={init!r}: start={rest['start']!r} says the same: leave init out")
    if init == "default":
        return rest | {"start": "drawn"}, 'start="drawn"'
    if rest.get("source", "parameter") != "parameter":
        return rest | {"start": "zero_reads"}, 'start="zero_reads"'
    scaled = {"start": "zero_reads", "start_scale": EARLIER_DEVIATION} | rest
    return scaled, f'start="zero_reads", start_scale={scaled["start_scale"]}'


def _completed(options: dict[str, Any]) -> dict[str, Any]:
    """The options with what follows from them: the shape of a tensor, and a start that values can have which stay."""
    source, more = options.get("source"), dict[str, Any]()
    if isinstance(source, Tensor) and options.get("shape", "auto") == "auto" and source.dim() in (1, 3):
        more["shape"] = tuple(source.shape)
    kept = isinstance(source, Tensor) or (isinstance(source, str) and source == "coordinates")
    if kept or options.get("trainable") is False:
        more["start"] = options.get("start", "zero_reads")
    return options | more


def _told(values: Tensor) -> str:
    return f"this is {list(values.shape)} of {values.dtype}"


def as_patterns(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    """One pattern or several, as a tuple; ``"all"`` is every path."""
    if patterns == "all":
        return ("*",)
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


_TAKES = {
    "shape": '"auto", (N,) or (rows, cols, channels), of positive whole numbers, such as (7, 7, 64)',
    "updates": '"stages", module paths or patterns in a tuple, such as ("layer1", "layer2"), or None',
    "sites": '"all", a glob or "re:..." pattern, a tuple of these, or a callable that takes a site',
    "exclude": 'a glob or "re:..." pattern, or a tuple of these',
    "name": "a letter followed by letters, digits or '_'",
    "budget": "a finite number above 0, the most parameters to add as a fraction of the base's, such as 0.01",
    "seed": "a whole number, 0 or more",
    "rate": "a number above 0, less than or equal to 1",
    "write_in_eval": "True or False",
    "trainable": "True or False",
    "start_scale": "a finite number above 0, or None",
    "within": "the path of a submodule, or None",
    "source": "a registered name, a tensor of the values, or a factory of your own",
    **dict.fromkeys(("read", "block"), "a registered name, or a factory of your own"),
}
"""What an option takes; of those with a few values, these are told."""


def _explain(error: ValidationError, options: Mapping[str, Any]) -> str:
    """One line per problem: the option, the value seen, what is wrong with it."""
    lines: list[str] = []
    for problem in error.errors(include_url=False):
        option = problem["loc"][0] if problem["loc"] else ""
        where = f" {option}={options.get(str(option), problem['input'])!r}" if option else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown option; the options are {', '.join(AimConfig.model_fields)}"
        elif option in _TAKES and problem["type"] != "value_error":
            message = f"give {_TAKES[str(option)]}{_meant(options[str(option)])}"
        elif problem["type"] == "literal_error":
            message = f"give {problem['ctx']['expected']}"
        lines.append(f"AimConfig{where}: {message}")
    return "\n".join(dict.fromkeys(lines))


def _meant(value: Any) -> str:
    """The name that a text may have been meant to be; empty if there is none."""
    near = difflib.get_close_matches(value, ("stages", "auto", "all"), n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
