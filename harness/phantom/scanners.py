"""Scanners of the patients' phantom: four contrasts, named after the data sets whose protocols they stand for.

Protocols are from memory of the data sets' sheets and common practice; what is not published (inversion and cycle times
of IXI's T1w, everything of BRATS, whose scans come from many hospitals) is ours, set so that ratios of lesions to
normal brain come near those measured on real scans. All at 3 T. The seven sites of `sites` serve for T1w too.

After gadolinium, what stays in the vessels shortens T1 a little everywhere: R1 rises by some 0.1 / s in grey matter and
by half of it in white, after their blood volumes of 4 and 2 % (ours). Where the barrier is open, see `lesions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from harness.phantom.physics import TISSUES_3T, IrTse, Mprage, Spgr, Tissue, Tse
from harness.phantom.sites import SITES, Site

Contrast = Literal["T1w", "T1CE", "T2w", "FLAIR"]
CONTRASTS: tuple[Contrast, ...] = ("T1w", "T1CE", "T2w", "FLAIR")

DEFAULT = "BRATS"
"""The scanner of a site that names none; it has every contrast."""

_VESSELS = {"cerebral_WM": 0.05, "cerebellum_WM": 0.05, "CSF": 0.0, "ventricles": 0.0, "brainstem": 0.05}
"""Rise of R1 after gadolinium, 1 / s; 0.1 elsewhere."""


def with_gadolinium(tissues: tuple[Tissue, ...]) -> tuple[Tissue, ...]:
    """Normal tissues a few minutes after the injection."""
    return tuple(replace(t, t1=1 / (1 / t.t1 + _VESSELS.get(t.label, 0.1) / 1000)) for t in tissues)


IXI_T1 = Site(
    "IXI",
    "Philips Intera",
    3.0,
    # TR 9.6 (echo spacing), TE 4.6 and 8 degrees are the sheet's.
    Mprage(cycle=2600, ti=950, echo_spacing=9.6, pulses=150, flip=8, te=4.6),
    TISSUES_3T,
    voxel_mm=(1.2, 0.94, 0.94),
    bias_peak=0.18,
    noise=0.022,
    age_range=(20, 86),
    scans=581,
    smoothing_mm=1.0,  # registration to a common space interpolates; so below
    series="IXI T1w",
)

ATLAS_T1 = Site(
    "ATLAS",
    "Siemens Trio",
    3.0,
    Mprage(cycle=2300, ti=900, echo_spacing=7.1, pulses=192, flip=9, te=2.98),
    TISSUES_3T,
    voxel_mm=(1.0, 1.0, 1.0),
    bias_peak=0.28,
    noise=0.040,
    age_range=(20, 90),
    scans=655,
    smoothing_mm=1.2,
    series="ATLAS T1w",
)

BRATS_T1 = Site(
    "BRATS",
    "Siemens Verio",
    3.0,
    Spgr(tr=9.0, flip=15, te=3.7),
    TISSUES_3T,
    voxel_mm=(1.0, 1.0, 1.0),
    bias_peak=0.22,
    noise=0.030,
    age_range=(20, 85),
    scans=1251,
    smoothing_mm=1.0,
    series="BRATS T1w",
)

BRATS_T1CE = replace(
    BRATS_T1,
    acquisition=Spgr(tr=9.0, flip=13, te=3.7),
    tissues=with_gadolinium(TISSUES_3T),
    noise=0.028,
    series="BRATS T1CE",
)

BRATS_T2 = replace(
    BRATS_T1,
    acquisition=Tse(tr=5000, te=95),
    voxel_mm=(0.9, 0.9, 3.0),
    noise=0.035,
    bias_peak=0.18,
    series="BRATS T2w",
)

BRATS_FLAIR = replace(
    BRATS_T1,
    acquisition=IrTse(tr=9000, ti=2500, te=110),
    voxel_mm=(1.2, 1.2, 3.0),
    noise=0.035,
    bias_peak=0.20,
    series="BRATS FLAIR",
)

IXI_T2 = replace(IXI_T1, acquisition=Tse(tr=5725, te=100), voxel_mm=(0.94, 0.94, 1.25), noise=0.03, series="IXI T2w")

SCANNERS: Mapping[Contrast, tuple[Site, ...]] = {
    "T1w": (BRATS_T1, IXI_T1, ATLAS_T1, *SITES),
    "T1CE": (BRATS_T1CE,),
    "T2w": (BRATS_T2, IXI_T2),
    "FLAIR": (BRATS_FLAIR,),
}


def scanner(name: str, contrast: Contrast) -> Site:
    """The scanner of that name for the contrast; raises ValueError that lists the known ones."""
    for candidate in SCANNERS[contrast]:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no {contrast} scanner {name!r}; known: {', '.join(s.name for s in SCANNERS[contrast])}")
