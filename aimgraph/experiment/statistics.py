"""What differences between arms that were run with the same seeds say.

Every comparison is paired by seed: a paired t interval, the sign-flip test beside it, and the chance that the one arm
is above the other. Verdicts are for the comparisons that were declared before, at most three, at levels by Holm; all
others are exploratory.

Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats
from statsmodels.stats.power import TTestPower

from aimgraph.errors import ConfigError

Verdict: TypeAlias = Literal["helps", "hurts", "no effect shown", "exploratory"]

LEVEL = 0.05
"""Chance that any of the declared comparisons is called an effect where there is none."""

POWER = 0.8
"""Chance that a difference is found, for which the smallest one is given."""

MOST_DECLARED = 3

EXACT = 16
"""Pairs of which all sign flips are looked at; of more, `FLIPS` are drawn."""

FLIPS = 20_000


@dataclass(frozen=True)
class Comparison:
    """One arm beside another, paired by seed.

    Attributes:
        arm: Its name.
        base: What it is compared with.
        pairs: How many seeds both have.
        mean: Of the differences, arm - base, in the unit of the scores.
        low: Lower end of the 95 % interval of the mean (paired t).
        high: Its upper end.
        p: Two-sided, paired t.
        p_flips: Two-sided, of the sign-flip test.
        above: Share of the pairs in which the arm is above, ties counted half.
        level: At which it is judged; of an exploratory one, 0.05.
        detectable: The smallest difference that is found at that level with 80 % power, given the spread of these.
        verdict: In words.
    """

    arm: str
    base: str
    pairs: int
    mean: float
    low: float
    high: float
    p: float
    p_flips: float
    above: float
    level: float
    detectable: float
    verdict: Verdict

    def __str__(self) -> str:
        """One line."""
        told = f"{self.arm} - {self.base}: {self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}], p = {self.p:.2g}"
        small = f"; {self.detectable:.2g} would have shown" if self.verdict == "no effect shown" else ""
        return f"{told}: {self.verdict}{small}"


def compared(
    scores: Mapping[str, Mapping[int, float]],
    declared: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]] = (),
) -> list[Comparison]:
    """Compare arms, the declared comparisons first.

    Args:
        scores: Arm -> seed -> score, of which more is better.
        declared: (arm, base) of the comparisons that were declared before anything was run, at most three.
        others: Those that nobody declared.

    Raises:
        ConfigError: There are too many, an arm is unknown, or two have fewer than two seeds in common.
    """
    if len(declared) > MOST_DECLARED:
        raise ConfigError(f"{len(declared)} comparisons are declared: declare the {MOST_DECLARED} that the run is for")
    found = [paired(scores, arm, base) for arm, base in (*declared, *others)]
    return [*judged(found[: len(declared)]), *found[len(declared) :]]


def differences(scores: Mapping[str, Mapping[int, float]], arm: str, base: str) -> list[float]:
    """Differences, arm - base, for each seed that both have, in the order of the seeds.

    Raises:
        ConfigError: An arm is unknown, or there are fewer than two.
    """
    for name in (arm, base):
        if name not in scores:
            raise ConfigError(f"no arm is called {name!r}: there are {', '.join(scores)}")
    seeds = sorted(scores[arm].keys() & scores[base].keys())
    if len(seeds) < _FEWEST:
        raise ConfigError(
            f"{arm} and {base} have {len(seeds)} seeds in common: a spread takes two, a verdict ten or more"
        )
    return [scores[arm][seed] - scores[base][seed] for seed in seeds]


_FEWEST = 2


def paired(scores: Mapping[str, Mapping[int, float]], arm: str, base: str) -> Comparison:
    """One comparison, not judged yet.

    Raises:
        ConfigError: An arm is unknown, or the two have fewer than two seeds in common.
    """
    gaps = np.array(differences(scores, arm, base))
    low, high = interval(gaps)
    above = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
    return Comparison(
        arm=arm,
        base=base,
        pairs=len(gaps),
        mean=float(gaps.mean()),
        low=low,
        high=high,
        p=p_value(gaps),
        p_flips=sign_flips(gaps),
        above=above,
        level=LEVEL,
        detectable=detectable(gaps, LEVEL),
        verdict="exploratory",
    )


def judged(declared: Sequence[Comparison]) -> list[Comparison]:
    """Verdicts by Holm: the smallest p at the strictest level, and no further where one fails."""
    order = sorted(range(len(declared)), key=lambda place: declared[place].p)
    made, going_on = list(declared), True
    for rank, place in enumerate(order):
        one, level = declared[place], LEVEL / (len(declared) - rank)
        shown = going_on and one.p <= level
        if going_on and not shown:
            going_on, last = False, level
        level = level if shown else last
        verdict: Verdict = ("helps" if one.mean > 0 else "hurts") if shown else "no effect shown"
        gap = one.detectable * _effect(one.pairs, level) / _effect(one.pairs, LEVEL) if one.detectable else 0.0
        made[place] = replace(one, level=level, verdict=verdict, detectable=gap)
    return made


def interval(gaps: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean of paired differences, by Student's t."""
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    reach = float(stats.t.ppf(1 - (1 - CONFIDENCE) / 2, len(gaps) - 1)) * error
    mean = float(gaps.mean())
    return mean - reach, mean + reach


CONFIDENCE = 0.95


def p_value(gaps: np.ndarray) -> float:
    """Two-sided, of the paired t test; 1 where no pair differs, 0 where all differ by the same."""
    if gaps.std(ddof=1) == 0:
        return 1.0 if gaps[0] == 0 else 0.0
    return float(stats.ttest_1samp(gaps, 0.0).pvalue)


def sign_flips(gaps: np.ndarray) -> float:
    """Two-sided, of the test that flips the signs of differences, of which nothing but symmetry is assumed.

    All flips are looked at for up to 16 pairs; of more, 20,000 are drawn after a fixed seed.
    """
    if len(gaps) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(gaps))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(FLIPS, len(gaps)))
        signs[0] = 1.0  # the flip that was seen
    sums = np.abs(signs @ gaps)
    return float((sums >= sums[0] - 1e-12 * np.abs(gaps).sum()).mean())


def detectable(gaps: np.ndarray, level: float) -> float:
    """The smallest mean difference that a paired t test finds with 80 % power, given the spread of these."""
    return float(gaps.std(ddof=1)) * _effect(len(gaps), level)


@cache
def _effect(pairs: int, level: float) -> float:
    """The same in deviations of the differences."""
    return float(TTestPower().solve_power(nobs=pairs, alpha=level, power=POWER, alternative="two-sided"))
