"""What each metric is called, measured in and better towards. Light: tables and specs read it without numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True)
class MetricInfo:
    """One metric of the records.

    unit: of the stored value; "" where it has none. `scale` and `shown_unit` say how tables show it.
    per_label: one record per structure; else `label` is "". per_subject: else one record per site, `subject` "".
    reduce: how the labels of one scan become one number.
    variant_of: another definition of the same quantity. Variants are shown, but ranked only where the metric
    they vary is absent: counting one quantity twice would weight it double.
    counts: whether it may enter ranks. Costs, bounds that no method can reach in practice, and what silence does best
    never do.
    """

    id: str
    name: str
    doc: str
    unit: str = ""
    lower_is_better: bool = False
    digits: int = 2
    per_label: bool = False
    per_subject: bool = False
    shown_unit: str = ""
    scale: float = 1.0
    reduce: Literal["mean", "sum"] = "mean"
    variant_of: str = ""
    counts: bool = True

    @property
    def arrow(self) -> str:
        """ "↓" where lower is better, else "↑"."""
        return "↓" if self.lower_is_better else "↑"

    @property
    def heading(self) -> str:
        """Name and unit as a column shows them, e.g. "DSC %"."""
        return f"{self.name} {self.shown_unit}".strip()

    def text(self, value: float | None) -> str:
        """A value as tables show it; "–" where there is none."""
        return "–" if value is None else f"{value * self.scale:z.{self.digits}f}".replace("-", "−")

    def in_unit(self, age_unit: str) -> MetricInfo:
        """The metric as it is called where ages are in this unit, "weeks" or "years"; others are as they were."""
        return replace(
            self,
            unit=self.unit.replace("weeks", age_unit),
            shown_unit=self.shown_unit.replace("weeks", age_unit),
        )

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is strictly better than the second."""
        return first < second if self.lower_is_better else first > second


def _share(metric_id: str, name: str, doc: str, **more: Any) -> MetricInfo:
    """A metric between 0 and 1, shown in percent."""
    return MetricInfo(metric_id, name, doc, shown_unit="%", scale=100, **more)


_ALL = (
    _share(
        "dsc",
        "DSC",
        "Dice similarity of one structure in one scan: 2TP/(P+G). Absent in both: left out; in one: 0.",
        per_label=True,
        per_subject=True,
    ),
    MetricInfo(
        "hd95",
        "HD95",
        "Larger of the two directed 95th percentiles of surface distance, true voxel spacing. A structure missing in "
        "the prediction or the label counts as the diagonal of the volume.",
        unit="mm",
        shown_unit="mm",
        lower_is_better=True,
        per_label=True,
        per_subject=True,
    ),
    MetricInfo(
        "hd95_pooled",
        "HD95 pooled",
        "95th percentile of the distances of both directions together, true voxel spacing.",
        unit="mm",
        shown_unit="mm",
        lower_is_better=True,
        per_label=True,
        per_subject=True,
        variant_of="hd95",
    ),
    MetricInfo(
        "hd95_unit",
        "HD95 unit",
        "As pooled, with a spacing of 1 along every axis: comparable with published tables that pass none.",
        unit="voxel",
        shown_unit="voxel",
        lower_is_better=True,
        per_label=True,
        per_subject=True,
        variant_of="hd95",
    ),
    MetricInfo(
        "hd95_missing",
        "missing",
        "Structures per scan that are in the label or the prediction only, and so carry the HD95 penalty.",
        unit="structures",
        lower_is_better=True,
        per_label=True,
        per_subject=True,
        reduce="sum",
        variant_of="hd95",
    ),
    MetricInfo(
        "mae",
        "MAE",
        "Absolute error of the predicted age of one scan; its mean is the mean absolute error.",
        unit="weeks",
        shown_unit="weeks",
        lower_is_better=True,
        per_subject=True,
    ),
    MetricInfo(
        "mse",
        "MSE",
        "Squared error of the predicted age of one scan; its mean is the mean squared error.",
        unit="weeks²",
        shown_unit="weeks²",
        lower_is_better=True,
        per_subject=True,
    ),
    MetricInfo(
        "rmse",
        "RMSE",
        "Root of the mean squared error of the predicted ages of one site's scans.",
        unit="weeks",
        shown_unit="weeks",
        lower_is_better=True,
        variant_of="mse",
    ),
    MetricInfo(
        "error_sd",
        "SD of |error|",
        "Population standard deviation of the absolute errors of one site's scans: what is printed after an MAE as ±.",
        unit="weeks",
        shown_unit="weeks",
        lower_is_better=True,
        counts=False,
    ),
    MetricInfo(
        "r2",
        "R²",
        "Coefficient of determination 1 − SSE/SST of the ages of one site's scans. Bias lowers it, it has no lower "
        "bound, and the mean age of the scored scans scores 0.",
        digits=3,
        variant_of="rmse",
    ),
    MetricInfo(
        "r2_pearson",
        "R² Pearson",
        "Squared Pearson correlation of predicted and true age of one site's scans, also called R² in print: blind to "
        "bias and scale. Undefined where all predictions are equal.",
        digits=3,
        variant_of="r2",
    ),
    MetricInfo(
        "wasserstein",
        "WD",
        "1-Wasserstein distance between the grey-level histograms of the harmonised site and the source site: brain "
        "voxels only, 256 levels scaled to 0..1.",
        lower_is_better=True,
        digits=4,
    ),
    MetricInfo(
        "psnr",
        "PSNR",
        "Peak signal-to-noise ratio against the same subject imaged at the source site, brain voxels.",
        unit="dB",
        shown_unit="dB",
        per_subject=True,
    ),
    MetricInfo(
        "ssim",
        "SSIM",
        "Structural similarity with the same subject imaged at the source site, brain voxels.",
        digits=4,
        per_subject=True,
    ),
    _share(
        "auroc",
        "AUROC",
        "Area under the ROC curve over the pixels of all images pooled; every distinct score is a threshold.",
    ),
    _share(
        "ap",
        "AP",
        "Average precision (AUPRC) over the pixels of all images pooled. A constant map scores the share of abnormal "
        "pixels.",
    ),
    _share(
        "aupro",
        "AUPRO",
        "Area under the per-region overlap curve up to a false-positive rate of 0.3, divided by 0.3; regions are "
        "connected over faces, edges and corners.",
    ),
    _share(
        "image_auroc",
        "image AUROC",
        "Area under the ROC curve of images, each scored by the largest value of its map.",
    ),
    _share(
        "max_dice_global",
        "global max Dice",
        "Dice of the pixels of all images pooled at the threshold that is best for the scored labels: pixel-level "
        "F1max.",
    ),
    _share(
        "max_dice_shared",
        "shared max Dice",
        "Mean over images of their Dice at the one threshold that is best for the scored labels.",
        variant_of="max_dice_global",
    ),
    _share(
        "dice_operating",
        "Dice at threshold",
        "Dice of one subject at the threshold that healthy validation maps fixed at a stated false-positive rate.",
        per_subject=True,
    ),
    _share(
        "fpr_healthy",
        "FPR healthy",
        "Share of the pixels of one healthy subject that are called abnormal at the threshold fixed beforehand.",
        lower_is_better=True,
        per_subject=True,
        counts=False,
    ),
    _share(
        "max_dice_oracle",
        "oracle max Dice",
        "Mean over images of the Dice at the threshold that is best for each image by its own label: a bound, never "
        "ranked.",
        variant_of="max_dice_global",
        counts=False,
    ),
    _share(
        "auroc_full",
        "AUROC full",
        "As AUROC, with the background of the images among the normal pixels.",
        variant_of="auroc",
    ),
    _share(
        "ap_full",
        "AP full",
        "As AP, with the background of the images among the normal pixels.",
        variant_of="ap",
    ),
    _share(
        "max_dice_binned",
        "max Dice by size",
        "Dice of the pixels of all images of one bin of lesion area at the threshold that is best for the bin. Bins "
        "are in pixels, scaled from slices of 128 × 128.",
        per_label=True,
        variant_of="max_dice_global",
    ),
    _share(
        "max_dice_binned_mm2",
        "max Dice by mm²",
        "As max Dice by size, with bins in mm²: those of slices of 128 × 128 pixels of 2 mm.",
        per_label=True,
        variant_of="max_dice_global",
    ),
    _share(
        "max_dice_bin_weighted",
        "bin-weighted max Dice",
        "Mean of the bins' max Dice by size, weighted by their images: what some publications call the average.",
        variant_of="max_dice_global",
    ),
    _share(
        "dice_gap",
        "oracle gap",
        "Global max Dice less the pooled Dice at the threshold fixed on healthy slices: what the labels would add.",
        lower_is_better=True,
        counts=False,
    ),
    MetricInfo(
        "parameters",
        "parameters",
        "Parameters of all networks that a detection calls.",
        shown_unit="M",
        scale=1e-06,
        lower_is_better=True,
        counts=False,
    ),
    MetricInfo(
        "evaluations",
        "evaluations",
        "Network evaluations for one slice, counted as they happen; those of autoencoders and of perceptual losses "
        "are left out.",
        lower_is_better=True,
        digits=1,
        counts=False,
    ),
    MetricInfo(
        "seconds_per_slice",
        "time",
        "Time of a detection for one slice, loading of weights included.",
        unit="s",
        shown_unit="s",
        lower_is_better=True,
        digits=3,
        counts=False,
    ),
    MetricInfo(
        "peak_memory",
        "memory",
        "Largest memory during a detection: of the GPU where there is one, else of the process.",
        unit="byte",
        shown_unit="GiB",
        scale=1 / 2**30,
        lower_is_better=True,
        counts=False,
    ),
)

METRICS: Mapping[str, MetricInfo] = MappingProxyType({metric.id: metric for metric in _ALL})
"""Every metric that records may hold, by id."""


def ranked(metrics: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics that count in mean ranks: no costs, and variants only where what they vary is absent."""
    present = list(metrics)
    return tuple(m for m in present if METRICS[m].counts and METRICS[m].variant_of not in present)
