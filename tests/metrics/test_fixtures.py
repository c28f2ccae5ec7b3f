"""The reference values measured from other libraries on shared inputs (../shared/metric_fixtures)."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from harness.metrics.intensity import foreground_histogram, site_histogram, wasserstein
from harness.metrics.overlap import dsc, joint_counts
from harness.metrics.ranking import bootstrap_mean, friedman, holm, mean_ranks, nemenyi_cd, paired_t, wilcoxon
from harness.metrics.regression import regression_scores
from harness.metrics.surface import SurfaceDistances, surface_distances

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "metric_fixtures"

if not FOLDER.is_dir():
    pytest.skip("reference values are not at hand (../shared/metric_fixtures)", allow_module_level=True)


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_fixtures", FOLDER / "fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIXTURES = _module()


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    return FIXTURES.load(FOLDER / "fixtures.npz")


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return json.loads((FOLDER / "reference.json").read_text())


def number(entry: Any) -> float | None:
    """A reference value; None where the library raised an error."""
    if isinstance(entry, dict):
        return number(entry["value"]) if "value" in entry else None
    return float(entry)


def same(got: float, entry: Any) -> bool:
    """Equal to the last bit, nan to nan; an error of the library demands nothing."""
    want = number(entry)
    return want is None or got == want or (math.isnan(got) and math.isnan(want))


# ------------------------------------------------------------------------------------------------ overlap


@pytest.mark.parametrize("case", ["brain", "edge"])
def test_dsc_equals_medpy_bit_for_bit(case: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    counts = joint_counts(inputs[f"{case}_gt"], inputs[f"{case}_pred"], 15)
    peers = reference["seg"][case]["dsc"]
    got = [[counts[i, i], counts[:, i].sum(), counts[i].sum()] for i in range(15)]
    assert got == peers["counts_tp_pred_gt"]
    scores = dsc(counts)
    assert all(same(scores[i], peers["medpy.dc"][i]) for i in range(15))
    both = ~np.isnan(scores)  # where neither map has the label, SimpleITK gives 0
    np.testing.assert_allclose(scores[both], np.array(peers["sitk.dice"])[both], rtol=3e-16)
    wanted = reference["recommended"]["seg"][case]
    assert all(same(scores[int(label)], row["dsc"]) for label, row in wanted["labels"].items())
    assert np.nanmean(scores[1:]) == pytest.approx(wanted["mean_dsc"], rel=1e-15)


# ------------------------------------------------------------------------------------------------ surface


def check_hd95(found: SurfaceDistances, peers: dict[str, Any], *, one_empty: bool = False) -> None:
    """MedPy and MONAI bit for bit, and the quantiles of both directions. Both differ by design on empty masks."""
    assert same(found.hd95_torch, peers["monai.hd95"])
    if found.state != "ok":
        return
    assert same(found.hd95_pooled, peers["medpy.hd95"])
    if "ref" not in peers:
        return
    ref = peers["ref"]
    assert same(found.hd95, ref["hd95_max_of_directed"])
    assert same(found.hd95_pooled, ref["hd95_pooled"])
    for distances, name in ((found.gt_to_pred, "gt_to_pred"), (found.pred_to_gt, "pred_to_gt")):
        np.testing.assert_allclose(
            np.percentile(distances, [50, 90, 95, 100]), ref[f"q50_90_95_100_{name}"], rtol=1e-15
        )
    assert found.gt_to_pred.size == ref["n_surf_gt"]
    assert found.pred_to_gt.size == ref["n_surf_pred"]
    assert np.concatenate([found.gt_to_pred, found.pred_to_gt]).mean() == pytest.approx(
        ref["assd_mean_of_both"], rel=1e-12
    )


@pytest.mark.parametrize("case", ["brain", "edge"])
def test_hd95_equals_the_recommended_values_medpy_and_monai(
    case: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]
) -> None:
    gt, pred = inputs[f"{case}_gt"], inputs[f"{case}_pred"]
    true, unit = surface_distances(gt, pred, 15, [FIXTURES.SPACING[case], (1, 1, 1)])
    wanted, peers = reference["recommended"]["seg"][case], reference["seg"][case]
    for label, row in wanted["labels"].items():
        found = true[int(label)]
        assert found.state == row["state"]
        assert same(found.hd95, row["hd95"])
        assert same(found.hd95_pooled, row["hd95_pooled"])
        check_hd95(found, peers["hd"][label])
        check_hd95(unit[int(label)], peers["hd_unit"][label])
    scored = [found for found in true.values() if found.state != "both_empty"]
    penalised = [found for found in scored if found.state != "ok"]
    assert (len(scored), len(penalised)) == (wanted["n_scored"], wanted["n_penalised"])
    assert scored[0].penalty == wanted["penalty_mm"]
    assert np.mean([found.hd95 for found in scored]) == pytest.approx(wanted["mean_hd95"], rel=1e-14)


@pytest.mark.parametrize("case", ["brain", "edge"])
def test_2d_slices(case: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    gt, pred = (np.ascontiguousarray(inputs[f"{case}_{side}"][:, :, 16]) for side in ("gt", "pred"))
    (found,) = surface_distances(gt, pred, 15, [FIXTURES.SPACING[case][:2]])
    for label, peers in reference["seg"][case]["slice16"].items():
        check_hd95(found[int(label)], peers)


def test_tiny_pairs(inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    for name, peers in reference["seg"]["tiny"].items():
        gt, pred = (inputs[f"tiny_{name}_{side}"].astype(np.uint8) for side in ("gt", "pred"))
        (found,) = surface_distances(gt, pred, 2, [inputs[f"tiny_{name}_spacing"].tolist()])
        check_hd95(found[1], peers)
        assert same(dsc(joint_counts(gt, pred, 2))[1], peers["medpy.dc"])


# ---------------------------------------------------------------------------------------------- intensity


@pytest.mark.parametrize("target", ["hist_t1", "hist_t2"])
def test_wasserstein_equals_scipy_on_samples(
    target: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]
) -> None:
    source_images, target_images = inputs["hist_src"], inputs[target]
    wanted = reference["hist"][target]
    source, other = (foreground_histogram(images, images > 0) for images in (source_images, target_images))
    assert wasserstein(source, other) == pytest.approx(wanted["scipy.hist256_foreground_unit_range"], abs=1e-15)
    for name in ("scipy.samples_pooled_foreground", "scipy.hist256_pooled_foreground", "cdf_formula_pooled_foreground"):
        assert wasserstein(source, other) * 255 == pytest.approx(wanted[name], rel=1e-13)
    whole = [foreground_histogram(images, None) for images in (source_images, target_images)]
    assert wasserstein(*whole) * 255 == pytest.approx(wanted["scipy.hist256_pooled_with_background"], rel=1e-13)
    singles = [
        [foreground_histogram(image, image > 0) for image in images] for images in (source_images, target_images)
    ]
    pairs = [wasserstein(a, b) * 255 for a, b in itertools.product(*singles)]
    assert np.mean(pairs) == pytest.approx(wanted["mean_of_all_pairs"], rel=1e-13)
    per_image = [wasserstein(b, source) * 255 for b in singles[1]]
    assert np.mean(per_image) == pytest.approx(wanted["mean_of_per_target_image_vs_pooled_source"], rel=1e-13)


def test_subject_equal_pooling_is_near_voxel_pooling(inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    sites = [site_histogram((image, image > 0) for image in inputs[name]) for name in ("hist_src", "hist_t1")]
    assert wasserstein(*sites) * 255 == pytest.approx(reference["hist"]["hist_t1"]["mean_of_all_pairs"], rel=0.01)


# ---------------------------------------------------------------------------------------- ranks and tests


@pytest.mark.parametrize("name", ["rank_full", "rank_missing", "rank_demsar"])
def test_ranks_and_friedman(name: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    table = inputs[name]
    lower = [False] * 14 if name == "rank_demsar" else inputs["rank_lower"].tolist()
    wanted, peers = reference["recommended"]["ranks"][name], reference["ranks"][name]
    ranks, test = mean_ranks(table, lower), friedman(table, lower)
    np.testing.assert_allclose(ranks.mean_rank, wanted["mean_rank"], rtol=1e-15)
    np.testing.assert_allclose(ranks.mean_rank, peers["polars.mean_rank_average"], rtol=1e-15)
    assert ranks.n_settings == test.n == wanted["n_settings"] == len(peers["complete_settings"])
    assert ranks.n_dropped == table.shape[1] - wanted["n_settings"]
    if "mean_rank_available_cells" in peers:
        np.testing.assert_allclose(ranks.mean_rank_available, peers["mean_rank_available_cells"], rtol=1e-15)
    assert test.chi2 == pytest.approx(wanted["friedman_chi2"], rel=1e-13)
    assert test.p == pytest.approx(wanted["friedman_p"], rel=1e-11)
    assert (test.f, test.f_p) == pytest.approx(tuple(peers["iman_davenport_F_of_corrected"]), rel=1e-11)
    assert nemenyi_cd(len(table), test.n) == pytest.approx(peers["nemenyi_cd_0.05"], rel=1e-12)


def test_all_tied_is_nan_as_in_scipy(reference: dict[str, Any]) -> None:
    test = friedman(np.ones((3, 5)), True)
    assert same(test.chi2, reference["ranks"]["all_tied"][0])
    assert same(test.p, reference["ranks"]["all_tied"][1])


def test_paired_tests(inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    scores = inputs["paired"]
    for pair, wanted in reference["tests"]["pairs"].items():
        a, b = (scores[int(i)] for i in pair.split("-"))
        t, w = paired_t(a, b), wilcoxon(a, b)
        assert (t.statistic, t.p) == pytest.approx(tuple(wanted["scipy.ttest_rel"]), rel=1e-10)
        assert (w.statistic, w.p) == pytest.approx(
            tuple(wanted["scipy.wilcoxon_asymptotic_pratt_corrFalse_integer"]), rel=1e-12
        )
        assert w.n_zero == wanted["n_zero"]


def test_degenerate_pairs(reference: dict[str, Any]) -> None:
    """scipy's t is nan there too; its Wilcoxon p is nan, ours is 1 on purpose."""
    equal = np.full(6, 0.7)
    assert same(paired_t(equal, equal).p, reference["tests"]["ttest_zero_variance"][1])
    assert same(wilcoxon(equal, equal).statistic, reference["tests"]["all_zero_differences"][0])
    assert wilcoxon(equal, equal).p == 1


@pytest.mark.parametrize("name", ["statsmodels.holm_integer", "statsmodels.holm_raw"])
def test_holm(name: str, reference: dict[str, Any]) -> None:
    wanted = reference["tests"][name]
    adjusted = holm(wanted["p"])
    np.testing.assert_allclose(adjusted, wanted["adjusted"], rtol=1e-14)
    assert [bool(p <= 0.05) for p in adjusted] == wanted["reject"]


def test_bootstrap_equals_scipy(inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    for method in ("BCa", "percentile", "basic"):
        got = bootstrap_mean(inputs["boot_skew"], seed=7, method=method)
        np.testing.assert_allclose([got.low, got.high], reference["tests"]["bootstrap_skew_mean"][method], rtol=1e-13)
    wanted = reference["tests"]["bootstrap_mean_diff"]
    first = np.random.default_rng(12345).integers(0, 24, 24)
    assert first.tolist() == wanted["first_resample_indices"]
    for method in ("BCa", "percentile", "basic"):
        difference = np.round(inputs["paired"][3] - inputs["paired"][0], 12)
        got = bootstrap_mean(difference, seed=12345, method=method)
        np.testing.assert_allclose([got.low, got.high, got.standard_error], wanted[f"scipy.{method}"], rtol=1e-12)


# ---------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize(
    "case",
    [
        "typical",
        "biased",
        "negative",
        "perfect",
        "const_pred",
        "const_target",
        "const_both",
        "n2",
        "n1",
        "large_offset",
    ],
)
def test_regression(case: str, inputs: dict[str, np.ndarray], reference: dict[str, Any]) -> None:
    target, predicted = inputs[f"reg_{case}_z"], inputs[f"reg_{case}_p"]
    scores = regression_scores(target, predicted)
    wanted = reference["recommended"]["regression"][case]
    for name in ("mae", "mse", "rmse", "bias"):
        assert same(getattr(scores, name), wanted[name]), name
    for name in ("r2", "r2_pearson"):
        assert getattr(scores, name) == pytest.approx(float(wanted[name]), rel=1e-12, nan_ok=True), name
    if not math.isnan(scores.r2):
        assert scores.r2 == pytest.approx(reference["regression"][case]["sklearn.r2"], rel=1e-11)
