"""Options of a memory."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import aimgraph
from aimgraph import AimConfig, ConfigError, presets
from aimgraph.config import START


def test_defaults_are_valid_and_frozen() -> None:
    config = AimConfig()
    assert (config.shape, config.source, config.start, config.lowering) == ("auto", "parameter", START, "split")
    with pytest.raises(Exception, match="frozen"):
        config.name = "other"


@pytest.mark.parametrize(
    "config",
    [
        AimConfig(),
        AimConfig(
            shape=(2, 3, 4), sites=("a.*", "re:b\\d"), exclude=("c",), updates=("x", "y"), carry="state", rate=0.5
        ),
        presets.article(),
        *presets.author(),
    ],
)
def test_json_both_ways(config: AimConfig) -> None:
    assert AimConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "shape": st.one_of(st.just("auto"), st.tuples(st.integers(1, 9)), st.tuples(*[st.integers(1, 9)] * 3)),
            "budget": st.floats(1e-6, 10),
            "seed": st.integers(0, 2**40),
            "sites": st.lists(st.sampled_from(["a", "b.*", "re:c+"]), min_size=1, max_size=3).map(tuple),
            "read": st.sampled_from(["reshape", "resize"]),
            "start": st.sampled_from(["zero_reads", "zero_values", "drawn"]),
            "lowering": st.sampled_from(["split", "concat"]),
        },
    )
)
def test_any_valid_config_survives_json(options: dict[str, object]) -> None:
    config = AimConfig(**options)
    assert AimConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a.b"}, "AimConfig name='a.b': a memory's name is a letter followed by letters"),
        ({"name": "train"}, "every torch.nn.Module has a member of that name"),
        ({"sites": ()}, r"sites=\(\) names no layer"),
        ({"updates": ("re:(",)}, r"the regular expression 're:\(' is invalid"),
        ({"name": "_hidden"}, "a memory's name is a letter"),
        ({"shape": (2, 3)}, r"AimConfig shape="),
        ({"shape": (0,)}, r"positive whole numbers"),
        ({"budget": -1}, r"AimConfig budget=-1: give a finite number above 0"),
        ({"budget": float("nan")}, "finite number"),
        ({"budget": float("inf")}, "finite number"),
        ({"rate": 0}, "AimConfig rate=0"),
        ({"rate": 1.5}, "less than or equal to 1"),
        ({"seed": -1}, "AimConfig seed=-1"),
        ({"sites": ("re:[",)}, r"the regular expression 're:\[' is invalid"),
        ({"carry": "state"}, r"carry='state' needs updates"),
        ({"pool": "batch"}, r"pool='batch' needs updates"),
        ({"mode": "gated"}, r"mode='gated' needs updates"),
        ({"updates": ()}, r"updates=\(\) names no module"),
        ({"updates": "stages", "write_in_eval": True}, 'write_in_eval=True needs carry="state"'),
        ({"source": "ones_conv"}, "needs an explicit shape"),
        ({"source": "coordinates"}, r"needs an explicit shape, e.g. shape=\(7, 7, 2\) for rows and columns"),
        ({"source": "coordinates", "shape": (4, 4, 1)}, "needs two channels or more, row and column"),
        (
            {"source": "coordinates", "shape": (4, 4, 2), "start": "zero_values"},
            r'source=.coordinates. gives values other than zero: use start="zero_reads"',
        ),
        ({"source": torch.ones(4), "start": "zero_values"}, "a tensor as source gives values other than zero"),
        ({"source": torch.ones(4), "shape": (5,)}, r"the source is a tensor \[4\] and shape=\(5,\): give shape=\(4,\)"),
        (
            {"source": torch.ones(2, 2)},
            r"\[rows, cols, channels\] or \[N\], of floating-point numbers; this is",
        ),
        ({"source": torch.ones(4, dtype=torch.int64)}, "floating-point numbers; this is .* of torch.int64"),
        ({"source": torch.tensor([1.0, float("nan")])}, "holds finite numbers"),
        ({"source": torch.ones(3), "start_scale": 2.0}, "start_scale=2.0 is for drawn values: a tensor as source has"),
        ({"source": "ones_conv", "shape": (4,), "start_scale": 2.0}, "source='ones_conv' has its own"),
        ({"start": "none"}, "AimConfig start='none': give 'zero_reads', 'zero_values' or 'drawn'"),
        ({"start_scale": 0}, "AimConfig start_scale=0: give a finite number above 0, or None"),
        ({"start_scale": float("inf")}, "a finite number above 0"),
        ({"trainable": "perhaps"}, "AimConfig trainable='perhaps': give True or False"),
        ({"trainable": False, "start": "zero_values"}, 'keeps all values zero, .* use start="zero_reads"'),
        ({"init": "zeros"}, 'AimConfig init=.zeros.: give start="zero_reads", start="zero_values" or start="drawn"'),
        ({"init": "zero", "start": "drawn"}, "start='drawn' says the same: leave init out"),
        ({"colour": "red"}, r"AimConfig colour='red': unknown option; the options are name, shape"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AimConfig(**options)


def test_the_earlier_name_of_start_is_taken_with_a_warning() -> None:
    with pytest.warns(UserWarning, match='give start="zero_reads", start_scale=0.02'):
        zero = AimConfig(init="zero")
    with pytest.warns(UserWarning, match='give start="drawn"'):
        drawn = AimConfig(init="default")
    assert (zero.start, zero.start_scale, drawn.start, drawn.start_scale) == ("zero_reads", 0.02, "drawn", None)
    base, x = nn.Sequential(nn.Linear(3, 2)), torch.zeros(1, 3)
    with pytest.warns(UserWarning, match='init= has another name: give start="drawn"') as told:
        assert aimgraph.plan(base, x, config=AimConfig(), init="default").memories[0].config.start == "drawn"
    assert told[0].filename == __file__


def test_files_of_before_are_read_without_a_warning() -> None:
    old = AimConfig().to_json()
    del old["start"], old["start_scale"], old["trainable"]
    assert AimConfig.from_json(old | {"init": "zero"}) == AimConfig(start="zero_reads", start_scale=0.02)
    assert AimConfig.from_json(old | {"init": "default"}) == AimConfig(start="drawn")
    ones = old | {"init": "zero", "source": "ones_conv", "shape": [2, 2, 3]}
    assert AimConfig.from_json(ones) == AimConfig(source="ones_conv", shape=(2, 2, 3), start="zero_reads")
    assert "init" not in AimConfig().to_json()


def test_a_tensor_gives_the_shape_and_is_a_name_in_json() -> None:
    values = torch.rand(2, 3, 4)
    config = AimConfig(source=values)
    assert config.shape == (2, 3, 4)
    assert AimConfig(source=values.flatten()).shape == (24,)
    assert AimConfig(source=values.flatten(), shape=(4, 3, 2)).shape == (4, 3, 2)
    assert json.loads(json.dumps(config.to_json()))["source"] == "given"
    assert config == AimConfig(source=values)
    assert config != AimConfig(source=values.clone())
    assert hash(config) == hash(AimConfig(source=values))


def test_values_that_stay_start_with_reads_of_zero() -> None:
    for options in ({"source": torch.ones(3)}, {"source": "coordinates", "shape": (3,)}, {"trainable": False}):
        assert AimConfig(**options).start == "zero_reads"
        assert AimConfig(**options, start="drawn").start == "drawn"
    changed = AimConfig(name="other", start="drawn").with_options(start="zero_values", seed=3)
    assert changed == AimConfig(name="other", start="zero_values", seed=3)


def test_a_callable_has_no_json() -> None:
    with pytest.raises(ConfigError, match="sites is a callable and can't be written as JSON"):
        AimConfig(sites=lambda path, module: True).to_json()


def test_presets_take_overrides() -> None:
    config = presets.article(rate=0.5, lowering="concat")
    assert (config.updates, config.carry, config.rate, config.lowering) == ("stages", "state", 0.5, "concat")
    with pytest.raises(ConfigError, match="unknown option"):
        presets.article(colour="red")
