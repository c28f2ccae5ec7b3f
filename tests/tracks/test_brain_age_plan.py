"""What a brain-age benchmark plans: what rows and training sizes share, where ages go, and mistakes of its file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import age_data
import pytest
import tiny
import toy_ages
import yaml

from harness import registry
from harness.engine.plan import Plan
from harness.problems import UserError
from harness.registry import Entry
from harness.spec import load
from harness.tracks.base import Benchmark

BENCHMARKS = tiny.REPO / "benchmarks"
NEWBORNS: dict[str, Any] = {
    "card": "phantom_newborns", "with": {"scans": 24, "volumes": {"voxel_mm": 3.0, "chunk": 4}}
}  # fmt: skip
SEGMENTATION = {
    "filters": [4, 8, 16],
    "patch": 16,
    "stride": 8,
    "jitter": 3,
    "training": {"epochs": None, "iterations": 4},
}
PROPOSED = {"id": "regional_regression", "segmentation": SEGMENTATION, "select": 8}
DRAWEM = {"id": "regional_regression", "segmentation": None}
SLICES = {"id": "2dtta", "slices": 1, "size": [64, 64], "widths": [4, 8], "blocks": [1, 1], "block": "basic"}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.entries()
    toy = Entry("unnamed", "toy_ages:Unnamed", "tests")
    monkeypatch.setattr(registry, "entries", lambda: {**known, toy.id: toy})
    assert toy_ages.Unnamed.id == toy.id


def benchmark(folder: Path, *overrides: str, **changes: Any) -> Benchmark:
    folder.mkdir(parents=True, exist_ok=True)
    file = {
        "benchmark": "toy",
        "track": "brain_age",
        "data": NEWBORNS,
        "methods": {"mean_age": None, "drawem": DRAWEM},
        "metrics": ["mae", "rmse"],
        "report": {"baseline": next(iter(changes.get("methods", {"mean_age": 0})))},
        **changes,
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return load(folder / "toy.yaml", overrides, cache=folder / "cache")


def titles(plan: Plan, kind: str, words: str = "") -> list[str]:
    return sorted(stage.title for stage in plan.stages if stage.kind == kind and words in stage.title)


# ------------------------------------------------------------------------------------------------ sharing


def test_rows_share_a_segmenter_and_what_it_finds(tmp_path: Path) -> None:
    methods = {
        "ridge": PROPOSED,
        "kernel": {**PROPOSED, "regressor": "kernel_ridge", "select": None},
        "shares": {**PROPOSED, "families": ["relational volume"]},
    }
    plan = benchmark(tmp_path, methods=methods, metrics=["mae", "dsc"]).plan
    assert titles(plan, "fit", "patch_segmenter") == ["fit patch_segmenter DHCP"]
    counts = plan.counts()
    assert counts["segment"] == counts["features"] == counts["volumes"]
    assert counts["overlap"] == len(titles(plan, "volumes", "test"))
    assert (counts["fit"], counts["predict"], counts["score"]) == (1 + 3, 3, 3)
    one = benchmark(tmp_path / "one", methods={"ridge": PROPOSED}).plan
    assert {stage.key for stage in one.stages if stage.kind != "score"} <= {stage.key for stage in plan.stages}


def test_a_late_field_trains_nothing_anew(tmp_path: Path) -> None:
    methods = {
        "a": PROPOSED,
        "wider": {**PROPOSED, "segmentation": {**SEGMENTATION, "window_stride": 16}},
        "unet": {**PROPOSED, "segmentation": {**SEGMENTATION, "network": "unet"}},
        "slices": SLICES,
        "often": {**SLICES, "passes": 2},
        "larger": {**SLICES, "size": [80, 80]},
    }
    plan = benchmark(tmp_path, methods=methods).plan
    assert titles(plan, "fit", "patch_segmenter") == ["fit patch_segmenter DHCP", "fit patch_segmenter DHCP (2)"]
    assert plan.counts()["segment"] == 3 * plan.counts()["volumes"]
    assert titles(plan, "fit", "slices") == ["fit slices DHCP"]
    assert titles(plan, "fit", "often") == []
    assert titles(plan, "fit", "larger") == ["fit larger DHCP"]
    assert len(titles(plan, "predict")) == 6


def test_training_sizes_share_volumes_and_the_test_split(tmp_path: Path) -> None:
    methods = {"mean_age": None, "drawem": DRAWEM, "proposed": PROPOSED, "slices": SLICES}
    whole = benchmark(tmp_path / "whole", methods=methods).plan
    found = benchmark(tmp_path / "sizes", methods=methods, training_sizes=["all", 8, 5], seeds=[0, 1])
    plan = found.plan
    for kind in ("volumes", "regions", "ages", "scans"):
        assert plan.counts()[kind] == whole.counts()[kind]
    assert found.places == ("all", "8 scans", "5 scans", "DHCP")
    assert {(c.source, c.target) for c in plan.cells} == {(s, "DHCP") for s in ("all", "8 scans", "5 scans")}
    assert len(plan.cells) == 4 * 3 * 2
    assert {stage.key for stage in whole.stages if "importance" not in stage.kind} <= {s.key for s in plan.stages}
    fits = {s.title: s for s in plan.stages if s.kind == "fit"}
    small, large = (fits[f"fit proposed DHCP ({n} scans)"].params for n in (5, 8))
    assert len(small["train"]) + len(small["validation"]) == 5
    assert set(small["train"]) < set(large["train"])
    assert set(small["validation"]) < set(large["validation"])
    segmenter = fits["fit patch_segmenter DHCP (8 scans)"].params
    assert (segmenter["train"], segmenter["validation"]) == (large["train"], large["validation"])
    other = fits["fit proposed DHCP (8 scans) #1"].params
    assert {*other["train"], *other["validation"]} != {*large["train"], *large["validation"]}, "each seed draws anew"
    asked = [s.params for s in plan.stages if s.kind == "segment" and s.title.endswith("(8 scans)")]
    learnt = [name for params in asked if "scans" in params for name in params["scans"]]
    assert sorted(learnt) == sorted([*large["train"], *large["validation"]]), "nobody else of the pool is segmented"
    tested = [s for s in plan.stages if s.kind == "segment" and " test " in s.title and s.title.endswith("(8 scans)")]
    assert len(tested) == len(titles(plan, "volumes", "test"))
    assert all("scans" not in stage.params for stage in tested)
    shown = [s.title for s in plan.stages if s.kind == "importance"]
    assert sorted(shown) == ["importance drawem DHCP", "importance proposed DHCP"], "of the largest size and one seed"


def test_titles_are_unique(tmp_path: Path) -> None:
    methods = {
        "patch_segmenter": PROPOSED,
        "unet": {**PROPOSED, "segmentation": {**SEGMENTATION, "network": "unet"}},
        "drawem": DRAWEM,
        "mean_age": None,
    }
    for plan in (
        benchmark(tmp_path, methods=methods, training_sizes=["all", 8], seeds=[0, 1]).plan,
        load(BENCHMARKS / "brain_age.yaml", cache=tmp_path).plan,
    ):
        assert [title for title, n in Counter(stage.title for stage in plan.stages).items() if n > 1] == []


# ------------------------------------------------------------------------------------------ where ages go


def readers(plan: Plan, wanted: str) -> set[str]:
    """Kinds of the stages that are handed the ages of a split."""
    of_split = {s.key for s in plan.stages if s.kind == "ages" and s.title.endswith(wanted)}
    assert len(of_split) == 1
    return {stage.kind for stage in plan.stages if of_split & {need.key for need in stage.needs.values()}}


def test_ages_reach_fit_importance_and_score_alone(tmp_path: Path) -> None:
    methods = {"mean_age": None, "drawem": DRAWEM, "proposed": PROPOSED, "slices": SLICES}
    plan = benchmark(tmp_path, methods=methods, training_sizes=["all", 8]).plan
    assert readers(plan, "train") == readers(plan, "validation") == {"fit", "importance"}
    assert readers(plan, "test") == {"importance", "score"}
    tested = next(s.key for s in plan.stages if s.title == "ages DHCP test")
    for stage in plan.stages:
        if stage.kind in ("fit", "predict", "segment", "features", "overlap"):
            assert tested not in plan.ancestors(stage)
        if "patch_segmenter" in stage.title:
            assert all(need.kind != "ages" for need in stage.needs.values())
    nothing = next(s for s in plan.stages if s.title == "fit mean_age DHCP")
    assert {need.kind for need in nothing.needs.values()} == {"scans", "ages"}, "who reads nothing is handed nothing"


def keys(plan: Plan) -> dict[str, str]:
    return {stage.title: stage.key for stage in plan.stages}


def changed(before: Plan, after: Plan) -> set[str]:
    """Titles of the stages that are others."""
    old, new = keys(before), keys(after)
    assert old.keys() == new.keys()
    return {title for title in old if old[title] != new[title]}


def test_ages_of_test_scans_change_scores_alone_of_volumes(tmp_path: Path) -> None:
    ages = [30.0 + i for i in range(12)]
    data = age_data.write_heads(tmp_path / "data", ages)
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(age_data.HEADS))
    section = {"card": str(tmp_path / "heads.yaml"), "root": str(data)}
    methods = {"mean_age": None, "drawem": DRAWEM, "proposed": PROPOSED, "slices": SLICES}

    def planned(name: str) -> Benchmark:
        return benchmark(tmp_path / name, data=section, methods=methods, training_sizes=["all", 6])

    first = planned("first")
    tested = {scan.id for scan in first.dataset.scans("A", "test")}
    assert 0 < len(tested) < 12
    others = [age + 3 if f"A-p{i:02}" in tested else age for i, age in enumerate(ages)]
    age_data.write_ages(data, others)
    scores = {f"score {name} A{size}" for name in methods for size in ("", " (6 scans)")}
    importance = {f"importance {name} A" for name in ("drawem", "proposed")}
    assert changed(first.plan, planned("second").plan) == {"ages A test", *scores, *importance}
    age_data.write_ages(data, [age + 1 for age in others])
    third = changed(first.plan, planned("third").plan)
    assert {
        title for title in third if title.split()[0] in ("volumes", "regions", "segment", "features", "scans")
    } == set()
    assert not any("patch_segmenter" in title for title in third)
    assert {f"fit {name} A" for name in methods} <= third


def test_ages_of_test_scans_change_scores_alone_of_tables(tmp_path: Path) -> None:
    rows = age_data.people()
    methods = {"mean_age": None, "regression": DRAWEM}

    def planned(name: str) -> Benchmark:
        section = {"card": "feature_table", "root": str(age_data.write_table(tmp_path / "data", rows))}
        return benchmark(tmp_path / name, data=section, methods=methods)

    first = planned("first")
    for row in rows:
        if row["split"] == "test":
            row["age"] = 72 - row["age"]
            row["birth_age"] = min(row["birth_age"], row["age"])
    titles = changed(first.plan, planned("second").plan)
    birth = {"features SITE_A test", "scans SITE_A test"}  # who they are, which has the age at birth
    kept = {title for title in titles if title.split()[0] in ("fit", "segment")}
    assert kept == set()
    for row in rows:
        row["birth_age"] = ""
    unborn = planned("third")
    for row in rows:
        if row["split"] == "test":
            row["age"] = 72 - row["age"]
    assert changed(unborn.plan, planned("fourth").plan) == {
        "ages SITE_A test", "score mean_age SITE_A", "score regression SITE_A", "importance regression SITE_A"
    }  # fmt: skip
    assert birth <= titles


# ------------------------------------------------------------------------------------------ without the data


def test_the_small_benchmark_can_be_planned(tmp_path: Path) -> None:
    answer = tiny.run_json("plan", BENCHMARKS / "brain_age.yaml", "--home", tmp_path, cwd=tmp_path)
    plan = load(BENCHMARKS / "brain_age.yaml", cache=tmp_path / "cache").plan
    assert len(plan.cells) == 7 * 2
    assert plan.counts()["segment"] == plan.counts()["overlap"] + len(
        [s for s in plan.stages if s.kind == "segment" and " test " not in s.title]
    )
    assert {stage["title"]: stage["key"] for stage in answer["stages"]} == keys(plan)


@pytest.mark.parametrize("name", ["brain_age_dhcp", "brain_age_features"])
def test_the_published_benchmarks_can_be_planned_without_the_data(tmp_path: Path, name: str) -> None:
    found = load(BENCHMARKS / "paper" / f"{name}.yaml", cache=tmp_path)
    assert found.dataset.missing()
    rows = {row.name for row in found.rows}
    assert {cell.method for cell in found.plan.cells} == rows
    assert {"fit", "predict", "score", "importance", "ages", "features"} <= set(found.plan.counts())
    assert ("segment" in found.plan.counts()) == (name == "brain_age_dhcp")


# -------------------------------------------------------------------------------------------------- mistakes


TABLE = {"card": "feature_table"}
BARE = {"card": "heads.yaml", "with": {"volumes": None}}
UNLABELLED = {"card": "heads.yaml", "with": {"sites": {"A": {"label": None}}}}


@pytest.mark.parametrize(
    ("changes", "line", "message"),
    [
        ({"train": "DHPC"}, "train: ", "unknown site 'DHPC'; did you mean DHCP?"),
        ({"data": {**NEWBORNS, "sites": ["DHPC"]}}, "- DHPC", "unknown site 'DHPC'; did you mean DHCP?"),
        ({"training_sizes": ["all", 400]}, "- 400", "scans to learn from, 400 are asked for; write fewer, or all"),
        ({"training_sizes": [3]}, "- 3", "must be a number of scans, at least 4, or all; got 3"),
        ({"training_sizes": [True]}, "- true", "must be a number of scans"),
        ({"training_sizes": [5, 5]}, "training_sizes", "a training size is listed twice"),
        ({"training_sizes": [4], "validation_share": 0.01}, "- 4", "leave one side empty; write fewer, or all"),
        ({"validation_share": 1.0}, "validation_share", "less than 1"),
        ({"metrics": ["mae", "dice"]}, "- dice", "unknown metric 'dice'"),
        ({"metrics": ["mae", "dsc"]}, "- dsc", "no row makes any; drop it"),
        ({"metrics": ["dsc", "mae"], "data": TABLE}, "- dsc", "no row makes any; drop it"),
        ({"methods": {"none": None}}, "none:", "none is a harmonizer, this place takes a age_estimator"),
        ({"methods": {"patch_segmenter": None}}, "patch_segmenter:", "this place takes a age_estimator"),
        ({"methods": {"unnamed": None}}, "unnamed:", "unnamed reads features and names no family of them"),
        (
            {"methods": {"x": {**DRAWEM, "families": ["surface rato"]}}},
            "x:",
            "DHCP brings no 'surface rato'; did you mean surface ratio?",
        ),
        (
            {"methods": {"x": {**DRAWEM, "families": ["thickness"]}}, "data": TABLE},
            "x:",
            "SITE_A brings no 'thickness'; known: relational volume, surface ratio",
        ),
        ({"methods": {"x": SLICES}, "data": TABLE}, "x:", "x reads volumes; feature_table has none"),
        ({"methods": {"x": SLICES}, "data": BARE}, "x:", "heads has none; write volumes: in a card of images"),
        ({"methods": {"x": DRAWEM}, "data": BARE}, "x:", "relational volume is measured on label maps; heads has none"),
        ({"methods": {"x": DRAWEM}, "data": UNLABELLED}, "x:", "A has no label maps to measure relational volume on"),
        ({"methods": {"x": PROPOSED}, "data": UNLABELLED}, "x:", "x trains a segmenter, and A has no label maps"),
        ({"importance_repeats": 0}, "importance_repeats", "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, changes: dict[str, Any], line: str, message: str) -> None:
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(age_data.HEADS))
    with pytest.raises(UserError) as told:
        benchmark(tmp_path, **changes)
    found = [str(problem) for problem in told.value.problems]
    (hit,) = (text for text in found if message in text)
    assert hit.startswith(f"{tmp_path / 'toy.yaml'}:"), hit
    number = int(hit.removeprefix(f"{tmp_path / 'toy.yaml'}:").partition(":")[0])
    assert line in (tmp_path / "toy.yaml").read_text().splitlines()[number - 1]
    assert all("\n" not in text for text in found)


def test_a_scan_without_an_age_is_told(tmp_path: Path) -> None:
    data = age_data.write_heads(tmp_path / "data", [30.0 + i for i in range(6)])
    text = (data / "people.csv").read_text().replace("p02,32.0", "p02,")
    (data / "people.csv").write_text(text)
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(age_data.HEADS))
    with pytest.raises(UserError, match=r"toy.yaml:\d+:\d+: 1 of 6 scans of A have no age, A-p02 for one; complete"):
        benchmark(tmp_path, data={"card": "heads.yaml", "root": str(data)})


def test_sizes_and_seeds_multiply_within_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most 100,000 can be planned"):
        benchmark(tmp_path, seeds=list(range(5001)), training_sizes=["all", *range(4, 13)])


def test_the_mean_age_reads_nothing_of_any_data(tmp_path: Path) -> None:
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(age_data.HEADS))
    for number, data in enumerate((NEWBORNS, TABLE, BARE, UNLABELLED)):
        plan = benchmark(tmp_path, data=data, methods={"mean_age": None}).plan
        wanted = {"scans": 3, "ages": 3, "fit": 1, "predict": 1, "score": 1}
        assert plan.counts() == (wanted | {"volumes": 1, "regions": 1, "illustrate": 1} if number == 0 else wanted)
