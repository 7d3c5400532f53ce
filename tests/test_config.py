"""Options of a memory."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimgraph import AimConfig, ConfigError, presets


def test_defaults_are_valid_and_frozen() -> None:
    config = AimConfig()
    assert (config.shape, config.source, config.init, config.lowering) == ("auto", "parameter", "zero", "split")
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
            "init": st.sampled_from(["zero", "default"]),
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
        ({"colour": "red"}, r"AimConfig colour='red': unknown option; the options are name, shape"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AimConfig(**options)


def test_a_callable_has_no_json() -> None:
    with pytest.raises(ConfigError, match="sites is a callable and can't be written as JSON"):
        AimConfig(sites=lambda path, module: True).to_json()


def test_presets_take_overrides() -> None:
    config = presets.article(rate=0.5, lowering="concat")
    assert (config.updates, config.carry, config.rate, config.lowering) == ("stages", "state", 0.5, "concat")
    with pytest.raises(ConfigError, match="unknown option"):
        presets.article(colour="red")
