"""Reports: every number is that of the scores, and nothing that a reader has to know is missing."""

import json
import math
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aimgraph.errors import ConfigError
from aimgraph.experiment.recipe import recipe_of
from aimgraph.experiment.report import picture, report_text, sentence, write_report
from aimgraph.experiment.report.formats import chance, scale_of
from aimgraph.experiment.report.gathered import learning_curves, probe_gaps, spread, strength_curves
from aimgraph.experiment.report.page import html_page, markdown_page
from aimgraph.experiment.report.recipe_text import recipe_text
from aimgraph.experiment.report.tables import Table, arms_table, comparisons_table, origin_table
from aimgraph.experiment.report.verdict import cautions
from aimgraph.experiment.results import Experiment, experiment_of
from aimgraph.web.formats import brief, decimal, signed
from tests.experiment.made_results import NASTY, made_experiment, made_recipe, with_comparisons, with_troubles


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace(",", "").replace("< ", ""))


def column(table: Table, title: str) -> list[str]:
    return [row[table.columns.index(title)].text for row in table.rows]


def scores(experiment: Experiment, arm: str) -> list[float]:
    return [one.test for one in experiment.units if one.unit.arm == arm and one.test is not None]


def test_arms_have_the_means_and_deviations_of_numpy() -> None:
    made = made_experiment()
    table = arms_table(made)
    for place, arm in enumerate(made.arms):
        own = 100 * np.array(scores(made, arm))
        assert number(column(table, "test accuracy, %")[place]) == pytest.approx(own.mean(), abs=0.00501)
        assert number(column(table, "sd")[place]) == pytest.approx(own.std(ddof=1), abs=0.00501)
        assert number(column(table, "seeds")[place]) == 10
        assert number(column(table, "trained")[place]) == made.arms[arm].trained
        assert number(column(table, "parameters")[place]) == made.arms[arm].parameters
    assert column(table, "rate") == ["0.003", "0.01 (edge)", "0.003", "0.01 (edge)"]
    assert column(table, "multiply-adds") == ["3.9 M", "7.8 M", "11.7 M", "15.6 M"]
    assert column(table, "kept bytes") == ["12.3 MB", "24.6 MB", "36.9 MB", "49.2 MB"]


def test_differences_are_those_of_scipy() -> None:
    made = made_experiment()
    table = comparisons_table(made, made.comparisons)
    for place, (one, row) in enumerate(zip(made.comparisons, table.rows, strict=True)):
        arm, base = np.array(scores(made, one.arm)), np.array(scores(made, one.base))
        test = stats.ttest_rel(arm, base)
        ends = column(table, "95 % interval")[place].strip("[]").split(", ")
        assert row[0].text == f"{one.arm} \N{MINUS SIGN} {one.base}"
        assert number(row[2].text) == pytest.approx(100 * (arm - base).mean(), abs=0.00501)
        assert [number(end) for end in ends] == pytest.approx(100 * np.array(test.confidence_interval()), abs=0.00501)
        assert number(column(table, "p")[place]) == pytest.approx(test.pvalue, abs=0.00501)
        assert number(column(table, "P(arm > base)")[place]) == np.mean(arm > base)
    verdicts = column(table, "verdict")
    assert verdicts[:2] == [one.verdict for one in made.comparisons[:2]]
    assert set(verdicts[2:]) == {"exploratory"}
    assert [level != "\N{EN DASH}" for level in column(table, "level")] == [True, True, False, False]


def test_spreads_are_those_of_scipy() -> None:
    values = [0.3, 0.5, 0.9, 0.1]
    found, wanted = spread([*values, math.nan, math.inf]), stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(wanted))
    assert (found.mean, found.sd, found.seeds) == (np.mean(values), np.std(values, ddof=1), 4)
    alone = spread([0.5])
    assert (alone.mean, alone.low, alone.high, alone.seeds) == (0.5, 0.5, 0.5, 1)
    assert math.isnan(alone.sd)
    assert math.isnan(spread([]).mean)


def test_curves_go_on_where_a_seed_ended_early() -> None:
    made = made_experiment(("base", "static"), seeds=3, epochs=4)
    early = next(one for one in made.units if one.unit.arm == "static")
    early.validation, early.seconds = early.validation[:2], [1.0, 3.0]
    units = [one for one in made.units if one.unit.arm == "static"]
    last = np.mean([one.validation[-1] for one in units])
    by_epoch, by_second = (learning_curves(made, by)["static"] for by in ("epochs", "seconds"))
    assert by_epoch.x == [1, 2, 3, 4]
    assert by_epoch.spreads[-1].mean == by_second.spreads[-1].mean == pytest.approx(last)
    assert by_second.x[-1] == pytest.approx(np.mean([8.0, *(sum(one.seconds) for one in units[1:])]))


def test_probes_are_paired_with_the_plain_score() -> None:
    made = made_experiment()
    assert probe_gaps(made, "base") == {}
    found = probe_gaps(made, "update")
    units = [one.probes for one in made.units if one.unit.arm == "update"]
    assert list(found) == ["reset", "mean", "shuffled", "swapped", "state off", "batch 1", "permuted"]
    assert found["mean"].mean == pytest.approx(np.mean([one["mean"] - one["plain"] for one in units]))
    curve = strength_curves(made)["update"]
    assert curve.x == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert curve.spreads[4].mean == pytest.approx(np.mean([one["plain"] for one in units]))
    assert curve.spreads[1].mean == pytest.approx(np.mean([one["strength 0.25"] for one in units]))


def two(gain: float, noise: float = 0.01, **more: object) -> Experiment:
    return made_experiment(("base", "static"), gain=lambda place: gain * place, noise=noise, **more)  # type: ignore[arg-type]


def test_the_sentence_gives_verdict_difference_interval_and_seeds() -> None:
    made = two(0.03)
    (one,) = made.comparisons
    ends = " to ".join(signed(100 * end, 2) for end in (one.low, one.high))
    wanted = f"static helps: its test accuracy is {100 * one.mean:.2f} points above that of base"
    assert sentence(made) == f"{wanted} (95 % interval {ends}, 10 seeds)."
    assert sentence(two(-0.03)).startswith("static hurts: its test accuracy is ")
    assert "points below that of base" in sentence(two(-0.03))
    assert cautions(two(-0.03))[-1].startswith("A rate beyond those that were tried")


def test_no_effect_comes_with_what_would_have_shown() -> None:
    made = two(0.0)
    (one,) = made.comparisons
    assert sentence(made).startswith("No effect of static shown: its test accuracy is ")
    assert f"and a difference of {100 * one.detectable:.2f} points would have shown with 80 % power." in sentence(made)


def test_numbers_of_another_metric_are_no_points() -> None:
    made = two(0.0, metric="R2")
    assert f"its test R² is {abs(made.comparisons[0].mean):.3f} " in sentence(made)
    assert "points" not in sentence(made) + report_text(made)


def test_the_sentence_where_nothing_can_be_compared() -> None:
    assert sentence(two(0.0, noise=0.0)) == (
        "No effect of static shown: it has the test accuracy of base with each of 10 seeds."
    )
    assert sentence(made_experiment(declared=[])).startswith("No comparison was declared beforehand")
    assert "fewer than two seeds of both came through" in sentence(two(0.0, seeds=1))
    broken = two(0.0)
    broken.units[3].test = math.nan
    assert "a score is not a finite number" in sentence(with_comparisons(broken))
    assert "base: 1 test score of 10 is not finite. Its mean leaves that out." in cautions(broken)


def test_several_verdicts_are_one_sentence() -> None:
    text = sentence(made_experiment())
    assert text.count(";") == 1
    assert text.count("(95 % interval") == 2


def test_what_speaks_against_a_verdict_stands_on_top() -> None:
    told = "\n".join(cautions(with_troubles(made_experiment())))
    assert "1 of 2 predictions did not hold: static above 0.9" in told
    assert "2 units were lost, of the arms static (2)" in told
    assert "wide: 1 parameter of the memory stood still, though it was to be trained." in told
    assert "A verdict takes 10 seeds or more: static and base have 9 in common." in told
    quiet = made_experiment(rates=[0.0001, 0.003, 0.1])
    assert cautions(quiet) == []
    quiet.units = [one for one in quiet.units if one.unit.arm != "wide"]
    assert cautions(quiet) == ["wide has no result: none of its units came through."]


def test_a_gain_that_time_eats_up_is_told() -> None:
    made = two(0.03)
    slower = [next(iter(two(-0.03).comparisons))]
    made.at_equal_seconds = slower
    (told,) = [text for text in cautions(made) if "equal seconds" in text]
    assert f"static \N{MINUS SIGN} base is {signed(100 * slower[0].mean, 2)} [" in told


def test_the_text_fits_a_terminal() -> None:
    arms = ["base", *(f"an-arm-with-quite-a-long-name-{place}" for place in range(15))]
    for made in (made_experiment(arms), with_troubles(made_experiment()), two(0.0, seeds=1), two(0.0, metric="R2")):
        text = report_text(made)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "\x1b" not in text
        assert text.replace("R²", "").isascii()
        assert all(arm in text for arm in made.arms if len(arm) < 20)


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    made = with_troubles(made_experiment())
    write_report(made, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "results.json"}
    found = json.loads((folder / "results.json").read_text())
    assert experiment_of(found).to_dict() == made.to_dict()
    assert found["digest"] == made.recipe.digest
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        write_report(made, tmp_path / "file")


def test_what_people_wrote_is_escaped() -> None:
    made = with_troubles(made_experiment(about=NASTY))
    page = html_page(made)
    assert "<script>alert" not in page
    assert "layer1<b>" not in page
    assert "\x1b" not in page + markdown_page(made)
    told = markdown_page(made)
    body = told.partition("```toml")[0]
    assert "<script>" not in body
    assert r"\*\*bold\*\* \`code\`" in body
    assert "\n# second line" not in body
    assert "| base | base | 0.003 |" in body
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in tables if "alert(" in line and " 3 |" in line}) == 1


@pytest.mark.parametrize(
    ("about", "shown"),
    [
        ("1. one", r"1\. one"),
        ("- item", r"\- item"),
        ("--- x", r"\--- x"),
        ("-0.5 is it", "-0.5 is it"),
        ("$x$", r"\$x\$"),
    ],
)
def test_a_line_of_markdown_is_no_list(about: str, shown: str) -> None:
    assert f"\n{shown}\n" in markdown_page(made_experiment(("base", "static"), seeds=2, about=about))


def test_the_markdown_has_whole_tables() -> None:
    body = markdown_page(with_troubles(made_experiment())).partition("```toml")[0]
    block: list[int] = []
    for line in [*body.splitlines(), ""]:
        if line.startswith("|"):
            block.append(line.replace(r"\|", "").count("|"))
        elif block:
            assert len(block) > 2
            assert len(set(block)) == 1
            block = []
    assert body.startswith("# made-up\n")
    assert "\n\n\n" not in body


def test_the_page_is_well_formed_and_names_every_section() -> None:
    for made in (with_troubles(made_experiment()), two(0.0, seeds=1), two(0.0, noise=0.0)):
        page = ElementTree.fromstring(html_page(made))
        names = [one.attrib["id"] for one in page.iter() if "id" in one.attrib]
        assert len(names) == len(set(names))
        assert {"verdict", "arms", "comparisons", "seconds", "lost", "still", "rates", "recipe"} <= set(names)
        described = [one.attrib["aria-labelledby"].split() for one in page.iter() if "aria-labelledby" in one.attrib]
        assert described
        assert {name for pair in described for name in pair} <= set(names)
    assert html_page(made).startswith("<!DOCTYPE html>")


def test_the_recipe_that_is_shown_is_the_recipe() -> None:
    made = with_troubles(made_experiment(about=NASTY))
    shown = recipe_of(tomllib.loads(recipe_text(made.recipe)))
    assert shown == made.recipe
    text = next(one for one in ElementTree.fromstring(html_page(two(0.0))).iter("pre"))
    assert recipe_of(tomllib.loads("".join(text.itertext()))).digest == two(0.0).recipe.digest
    assert made.recipe.digest in column(origin_table(made), "was")


words = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@given(words, st.lists(st.floats(1e-6, 10), min_size=1, max_size=3), st.floats(1e-9, 1e9))
def test_any_recipe_goes_through_toml(about: str, rates: list[float], decay: float) -> None:
    recipe = made_recipe(
        ["base", "stätic.1"], 3, 4, about=about, rates=rates, weight_decay=decay,
        predicted=[{"arm": "base", "at_least": 0.1, "share": 0.5}], augmentation={"flip": True, "contrast": 0.1},
    )  # fmt: skip
    assert recipe_of(tomllib.loads(recipe_text(recipe))).digest == recipe.digest


def test_options_of_a_memory_go_through_toml() -> None:
    content = made_recipe(["base"], 3, 4).model_dump(exclude_none=True)
    options = {"updates": ["layer1", 'a.*"\\'], "start": "zero_values", "start_scale": 0.5, "carry": "state"}
    content["arms"] = {"base": {"kind": "base"}, "möre": {"kind": "state", "options": options}}
    recipe = recipe_of(content)
    assert recipe_of(tomllib.loads(recipe_text(recipe))) == recipe
    assert recipe.arms["möre"].options == options


def test_a_picture_stands_alone() -> None:
    text = picture(made_experiment())
    found = ElementTree.fromstring(text)
    assert float(found.attrib["width"]) > 700
    assert "var(" not in text
    assert "#ffffff" in text
    alone = ElementTree.fromstring(picture(two(0.0, seeds=1)))
    assert float(alone.attrib["width"]) < 500


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1 k"), (999_999, "1 M"), (26_714_360, "26.7 M"), (None, "\N{EN DASH}")],
)
def test_counts_in_brief(value: float | None, told: str) -> None:
    assert brief(value) == told


def test_numbers_as_people_read_them() -> None:
    assert [decimal(value, 2) for value in (-0.001, -1.5, 1e9)] == ["0.00", "\N{MINUS SIGN}1.50", "1e+09"]
    assert [signed(value, 2) for value in (0.0, 0.5, math.nan)] == ["0.00", "+0.50", "\N{EN DASH}"]
    assert [chance(value) for value in (1e-9, 0.0123, 0.5, math.nan)] == ["< 0.001", "0.012", "0.50", "\N{EN DASH}"]
    assert scale_of("accuracy").score(0.1234) == "12.34 %"
    assert scale_of("R2").score(-0.5) == "\N{MINUS SIGN}0.500"
