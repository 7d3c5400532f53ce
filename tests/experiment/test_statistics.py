"""Statistics of paired arms, against scipy and against theory."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from aimgraph.errors import ConfigError
from aimgraph.experiment.statistics import LEVEL, Comparison, compared, sign_flips

N = 10


def scores(seed: int, arms: int, gain: float = 0.0, pairs: int = N) -> dict[str, dict[int, float]]:
    """A base and some arms of one spread, the first with a gain, in deviations of its differences to the base."""
    random = np.random.default_rng(seed)
    base = random.normal(size=pairs)
    made = {"base": dict(enumerate(base))}
    for number in range(arms):
        own = base + random.normal(size=pairs) + (gain if number == 0 else 0.0)
        made[f"arm{number}"] = dict(enumerate(own))
    return made


def declared(arms: int) -> list[tuple[str, str]]:
    return [(f"arm{number}", "base") for number in range(min(arms, 3))]


def test_every_number_is_that_of_scipy() -> None:
    found = scores(0, 3, 1.2)
    for one in compared(found, declared(3)):
        arm, base = (np.array(list(found[name].values())) for name in (one.arm, one.base))
        test = stats.ttest_rel(arm, base)
        assert one.p == pytest.approx(test.pvalue, rel=1e-12)
        assert (one.low, one.high) == pytest.approx(tuple(test.confidence_interval()), rel=1e-12)
        flips = stats.permutation_test((arm - base,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert one.p_flips == pytest.approx(flips.pvalue, rel=1e-12)
        assert one.above == np.mean(arm > base)
        assert one.pairs == N


@pytest.mark.parametrize("seed", range(20))
def test_levels_are_those_of_holm(seed: int) -> None:
    found = compared(scores(seed, 3, 0.8), declared(3))
    rejected = multipletests([one.p for one in found], alpha=LEVEL, method="holm")[0]
    assert [one.verdict != "no effect shown" for one in found] == list(rejected)
    for one in found:
        assert (one.p <= one.level) == (one.verdict != "no effect shown")


@pytest.mark.parametrize("arms", [1, 3, 9])
def test_equal_arms_are_rarely_told_apart(arms: int) -> None:
    told = [any(one.verdict in ("helps", "hurts") for one in _compared(seed, arms)) for seed in range(400)]
    assert np.mean(told) <= 0.075


def _compared(seed: int, arms: int, gain: float = 0.0) -> list[Comparison]:
    others = [(f"arm{number}", "base") for number in range(3, arms)]
    return compared(scores(seed, arms, gain), declared(arms), others)


@pytest.mark.parametrize(("arms", "wanted"), [(1, 0.80), (3, 0.60)])
def test_a_gain_of_one_deviation_is_found_as_often_as_theory_says(arms: int, wanted: float) -> None:
    found = np.mean([_compared(seed, arms, 1.0)[0].verdict == "helps" for seed in range(400)])
    assert abs(found - wanted) <= 0.06
    strict = power(1.0, LEVEL / arms)  # Holm's level of the smallest p; the others' are wider
    assert strict - 0.06 <= found <= power(1.0, LEVEL) + 0.06


def power(effect: float, level: float) -> float:
    """Of a two-sided paired t test on `N` pairs, by the noncentral t distribution."""
    limit, center = stats.t.ppf(1 - level / 2, N - 1), effect * math.sqrt(N)
    return float(stats.nct.sf(limit, N - 1, center) + stats.nct.cdf(-limit, N - 1, center))


@pytest.mark.parametrize("arms", [1, 3])
def test_what_would_have_shown_has_the_power_that_is_told(arms: int) -> None:
    found = compared(scores(3, arms), declared(arms))
    for one in found:
        spread = (one.high - one.mean) / stats.t.ppf(0.975, N - 1) * math.sqrt(N)
        assert power(one.detectable / spread, one.level) == pytest.approx(0.8, abs=1e-4)
    assert "would have shown" in str(found[0])


def test_identical_arms_and_constant_gains() -> None:
    same = {seed: float(seed) for seed in range(N)}
    (one,) = compared({"base": same, "arm": same}, [("arm", "base")])
    assert (one.verdict, one.p, one.p_flips, one.above, one.detectable) == ("no effect shown", 1.0, 1.0, 0.5, 0.0)
    more = {seed: value + 1 for seed, value in same.items()}
    (one,) = compared({"base": same, "arm": more}, [("arm", "base")])
    assert (one.verdict, one.p, one.above) == ("helps", 0.0, 1.0)
    (one,) = compared({"base": more, "arm": same}, [("arm", "base")])
    assert one.verdict == "hurts"


def test_many_pairs_are_flipped_at_random() -> None:
    gaps = np.random.default_rng(1).normal(0.3, 1, 40)
    wanted = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=2).pvalue
    assert sign_flips(gaps) == pytest.approx(wanted, abs=0.02)


def test_others_are_exploratory() -> None:
    found = compared(scores(0, 2, 3.0), [("arm1", "base")], [("arm0", "base"), ("arm0", "arm1")])
    assert [one.verdict for one in found[1:]] == ["exploratory", "exploratory"]


def test_seeds_that_one_arm_lacks_are_left_out() -> None:
    found = scores(0, 1)
    del found["arm0"][4]
    (one,) = compared(found, [("arm0", "base")])
    assert one.pairs == N - 1


def test_what_makes_no_sense_is_refused() -> None:
    found = scores(0, 4)
    with pytest.raises(ConfigError, match="4 comparisons are declared: declare the 3 that the run is for"):
        compared(found, [(f"arm{number}", "base") for number in range(4)])
    with pytest.raises(ConfigError, match="no arm is called 'arm9': there are base, arm0"):
        compared(found, [("arm9", "base")])
    with pytest.raises(ConfigError, match="arm0 and base have 1 seeds in common"):
        compared({"arm0": {0: 1.0}, "base": {0: 2.0}}, [("arm0", "base")])
