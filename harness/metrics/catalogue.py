"""What each metric is called, measured in and better towards. Light: tables and specs read it without numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


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
    unit: str
    lower_is_better: bool
    digits: int
    per_label: bool
    per_subject: bool
    doc: str
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

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is strictly better than the second."""
        return first < second if self.lower_is_better else first > second


_ALL = (
    MetricInfo(
        "dsc",
        "DSC",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=True,
        per_subject=True,
        doc="Dice similarity of one structure in one scan: 2TP/(P+G). Absent in both: left out; in one: 0.",
    ),
    MetricInfo(
        "hd95",
        "HD95",
        unit="mm",
        shown_unit="mm",
        lower_is_better=True,
        digits=2,
        per_label=True,
        per_subject=True,
        doc="Larger of the two directed 95th percentiles of surface distance, true voxel spacing. A structure "
        "missing in the prediction or the label counts as the diagonal of the volume.",
    ),
    MetricInfo(
        "hd95_pooled",
        "HD95 pooled",
        unit="mm",
        shown_unit="mm",
        lower_is_better=True,
        digits=2,
        per_label=True,
        per_subject=True,
        doc="95th percentile of the distances of both directions together, true voxel spacing.",
        variant_of="hd95",
    ),
    MetricInfo(
        "hd95_unit",
        "HD95 unit",
        unit="voxel",
        shown_unit="voxel",
        lower_is_better=True,
        digits=2,
        per_label=True,
        per_subject=True,
        doc="As pooled, with a spacing of 1 along every axis: comparable with published tables that pass none.",
        variant_of="hd95",
    ),
    MetricInfo(
        "hd95_missing",
        "missing",
        unit="structures",
        lower_is_better=True,
        digits=2,
        per_label=True,
        per_subject=True,
        doc="Structures per scan that are in the label or the prediction only, and so carry the HD95 penalty.",
        reduce="sum",
        variant_of="hd95",
    ),
    MetricInfo(
        "mae",
        "MAE",
        unit="weeks",
        shown_unit="weeks",
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=True,
        doc="Absolute error of the predicted age of one scan; its mean is the mean absolute error.",
    ),
    MetricInfo(
        "mse",
        "MSE",
        unit="weeks²",
        shown_unit="weeks²",
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=True,
        doc="Squared error of the predicted age of one scan; its mean is the mean squared error.",
    ),
    MetricInfo(
        "wasserstein",
        "WD",
        unit="",
        lower_is_better=True,
        digits=4,
        per_label=False,
        per_subject=False,
        doc="1-Wasserstein distance between the grey-level histograms of the harmonised site and the source "
        "site: brain voxels only, 256 levels scaled to 0..1.",
    ),
    MetricInfo(
        "psnr",
        "PSNR",
        unit="dB",
        shown_unit="dB",
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=True,
        doc="Peak signal-to-noise ratio against the same subject imaged at the source site, brain voxels.",
    ),
    MetricInfo(
        "ssim",
        "SSIM",
        unit="",
        lower_is_better=False,
        digits=4,
        per_label=False,
        per_subject=True,
        doc="Structural similarity with the same subject imaged at the source site, brain voxels.",
    ),
    MetricInfo(
        "auroc",
        "AUROC",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Area under the ROC curve over the pixels of all images pooled; every distinct score is a threshold.",
    ),
    MetricInfo(
        "ap",
        "AP",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Average precision (AUPRC) over the pixels of all images pooled. A constant map scores the share of "
        "abnormal pixels.",
    ),
    MetricInfo(
        "aupro",
        "AUPRO",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Area under the per-region overlap curve up to a false-positive rate of 0.3, divided by 0.3; regions are "
        "connected over faces, edges and corners.",
    ),
    MetricInfo(
        "image_auroc",
        "image AUROC",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Area under the ROC curve of images, each scored by the largest value of its map.",
    ),
    MetricInfo(
        "max_dice_global",
        "global max Dice",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Dice of the pixels of all images pooled at the threshold that is best for the scored labels: "
        "pixel-level F1max.",
    ),
    MetricInfo(
        "max_dice_shared",
        "shared max Dice",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Mean over images of their Dice at the one threshold that is best for the scored labels.",
        variant_of="max_dice_global",
    ),
    MetricInfo(
        "dice_operating",
        "Dice at threshold",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=True,
        doc="Dice of one subject at the threshold that healthy validation maps fixed at a stated false-positive rate.",
    ),
    MetricInfo(
        "fpr_healthy",
        "FPR healthy",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=True,
        doc="Share of the pixels of one healthy subject that are called abnormal at the threshold fixed beforehand.",
        counts=False,
    ),
    MetricInfo(
        "max_dice_oracle",
        "oracle max Dice",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Mean over images of the Dice at the threshold that is best for each image by its own label: a bound, "
        "never ranked.",
        variant_of="max_dice_global",
        counts=False,
    ),
    MetricInfo(
        "auroc_full",
        "AUROC full",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="As AUROC, with the background of the images among the normal pixels.",
        variant_of="auroc",
    ),
    MetricInfo(
        "ap_full",
        "AP full",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="As AP, with the background of the images among the normal pixels.",
        variant_of="ap",
    ),
    MetricInfo(
        "max_dice_binned",
        "max Dice by size",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=True,
        per_subject=False,
        doc="Dice of the pixels of all images of one bin of lesion area at the threshold that is best for the bin. "
        "Bins are in pixels, scaled from slices of 128 × 128.",
        variant_of="max_dice_global",
    ),
    MetricInfo(
        "max_dice_binned_mm2",
        "max Dice by mm²",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=True,
        per_subject=False,
        doc="As max Dice by size, with bins in mm²: those of slices of 128 × 128 pixels of 2 mm.",
        variant_of="max_dice_global",
    ),
    MetricInfo(
        "max_dice_bin_weighted",
        "bin-weighted max Dice",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=False,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Mean of the bins' max Dice by size, weighted by their images: what some publications call the average.",
        variant_of="max_dice_global",
    ),
    MetricInfo(
        "dice_gap",
        "oracle gap",
        unit="",
        shown_unit="%",
        scale=100,
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Global max Dice less the pooled Dice at the threshold fixed on healthy slices: what the labels would add.",
        counts=False,
    ),
    MetricInfo(
        "parameters",
        "parameters",
        unit="",
        shown_unit="M",
        scale=1e-6,
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Parameters of all networks that a detection calls.",
        counts=False,
    ),
    MetricInfo(
        "evaluations",
        "evaluations",
        unit="",
        shown_unit="",
        scale=1,
        lower_is_better=True,
        digits=1,
        per_label=False,
        per_subject=False,
        doc="Network evaluations for one slice, counted as they happen; those of autoencoders and of perceptual "
        "losses are left out.",
        counts=False,
    ),
    MetricInfo(
        "seconds_per_slice",
        "time",
        unit="s",
        shown_unit="s",
        scale=1,
        lower_is_better=True,
        digits=3,
        per_label=False,
        per_subject=False,
        doc="Time of a detection for one slice, loading of weights included.",
        counts=False,
    ),
    MetricInfo(
        "peak_memory",
        "memory",
        unit="byte",
        shown_unit="GiB",
        scale=1 / 2**30,
        lower_is_better=True,
        digits=2,
        per_label=False,
        per_subject=False,
        doc="Largest memory during a detection: of the GPU where there is one, else of the process.",
        counts=False,
    ),
)

METRICS: Mapping[str, MetricInfo] = MappingProxyType({metric.id: metric for metric in _ALL})
"""Every metric that records may hold, by id."""


def ranked(metrics: Iterable[str]) -> tuple[str, ...]:
    """Those of the metrics that count in mean ranks: no costs, and variants only where what they vary is absent."""
    present = list(metrics)
    return tuple(m for m in present if METRICS[m].counts and METRICS[m].variant_of not in present)
