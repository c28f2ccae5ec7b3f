"""What methods of the published benchmark may see, read off its plan, equals the published table's columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from harness.spec import load

# Table 2.2 of the thesis: source-free, task-agnostic, unknown domains.
PUBLISHED = {
    "histogram_matching": (True, True, True),
    "combat": (False, True, False),
    "cycle_gan": (False, True, False),
    "style_transfer": (False, True, False),
    "ssimh": (False, True, True),
    "imunity": (False, True, True),
    "blind_harmony": (True, True, True),
    "aue": (True, False, True),
    "bigaug": (True, False, True),
    "tent": (True, False, True),
    "sar": (True, False, True),
    "harmonizing_flows": (True, True, True),
}


@pytest.fixture(scope="module")
def traits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bool]]:
    file = tiny.REPO / "benchmarks/paper/adult_segmentation.yaml"
    benchmark = load(file, cache=tmp_path_factory.mktemp("cache"))
    assert len(benchmark.sites) == 7
    found: dict[str, dict[str, bool]] = benchmark.extra["traits"]
    return found


def test_no_method_is_missing_or_added(traits: dict[str, dict[str, bool]]) -> None:
    assert traits.keys() == {"none", *PUBLISHED}


@pytest.mark.parametrize("method", PUBLISHED)
def test_access_equals_the_published_table(traits: dict[str, dict[str, bool]], method: str) -> None:
    found = traits[method]
    assert (found["source_free"], found["task_agnostic"], found["unknown_domains"]) == PUBLISHED[method]


def test_a_stopping_rule_that_asks_the_task_model_is_not_task_agnostic(tmp_path: Path) -> None:
    methods = {"none": None, "by_entropy": {"id": "harmonizing_flows", "stopping": "entropy"}}
    benchmark = load(tiny.write(tmp_path, methods=methods), cache=tmp_path / "cache")
    assert not benchmark.extra["traits"]["by_entropy"]["task_agnostic"]
    assert benchmark.extra["traits"]["by_entropy"]["source_free"]
