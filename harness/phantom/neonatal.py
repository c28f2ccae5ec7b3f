"""The two neonatal sites of Table 2.1 in two contrasts, and a newborn's relaxation times by age.

TR, TE, flip angle, voxel size, age range and number of scans are Table 2.1's; DHCP's inversion time is its protocol's.
V2LP's TI, echo spacing and pulses, and the resolution, smoothing, bias and noise of both sites are ours. T2-weighted,
the sites hardly differ in contrast: the shift is resolution, smoothing, coil and noise. T1-weighted, an inversion-
recovery TSE stands against an MPRAGE.

Tissue values are those of Williams 2005 (3 T) and the fall of T2 with age of Counsell 2003, from memory. Unmyelinated
white matter has longer T1 and T2 than cortex, so contrast is the reverse of an adult's.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from harness.phantom.cohort import derive_seed
from harness.phantom.newborn import COMPARTMENTS
from harness.phantom.physics import IrTse, Mprage, Tissue, Tse
from harness.phantom.sites import Site

Contrast = Literal["T1w", "T2w"]

# Compartment: T1 and T2 in ms at 40 weeks, their change a week, PD by CSF. T2* is of no account at these echo times:
# 0.6 of T2. White matter's T2 is 260 - 6 (PMA - 40); in the internal capsule it is 40 % shorter.
_AT_TERM: dict[str, tuple[float, float, float, float, float]] = {
    "cerebral_GM": (2050, -30, 150, -3.0, 0.92),
    "cerebral_WM": (2600, -40, 260, -6.0, 0.94),
    "cerebellum_GM": (1800, -30, 132, -3.0, 0.92),
    "cerebellum_WM": (2000, -35, 165, -4.0, 0.93),
    "CSF": (4200, 0, 1800, 0.0, 1.00),
    "ventricles": (4200, 0, 1800, 0.0, 1.00),
    "brainstem": (1750, -25, 130, -2.5, 0.91),
    "thalamus": (1700, -25, 120, -2.5, 0.91),
    "hippocampus": (2000, -30, 150, -3.0, 0.92),
    "putamen": (1800, -25, 127, -2.5, 0.91),
    "caudate": (1850, -25, 134, -2.5, 0.92),
    "pallidum": (1700, -25, 118, -2.5, 0.90),
    "amygdala": (2000, -30, 150, -3.0, 0.92),
    "ventral_DC": (1750, -25, 126, -2.5, 0.91),
    "early_WM": (1950, -45, 156, -5.0, 0.91),
}

MATURITY_SPREAD = 0.8
"""SD in weeks by which a person's tissue is ahead of or behind its age; T2_SPREAD: half range of T2, as a fraction.
Ours: with growth's own spread they leave an age error of about half a week."""
T2_SPREAD = 0.02


def tissues(pma: float) -> tuple[Tissue, ...]:
    """Mean relaxation times at an age in weeks, in the order of `newborn.COMPARTMENTS`."""
    late = pma - 40
    found = []
    for name in COMPARTMENTS:
        t1, t1_slope, t2, t2_slope, pd = _AT_TERM[name]
        t2 = t2 + t2_slope * late
        found.append(Tissue(name, t1 + t1_slope * late, t2, 0.6 * t2, pd))
    return tuple(found)


def tissues_of(pma: float, seed: int) -> tuple[Tissue, ...]:
    """One person's relaxation times. T1's spread is the renderer's, as for adults."""
    rng = np.random.default_rng(derive_seed("maturity", seed))
    ahead = MATURITY_SPREAD * float(np.clip(rng.standard_normal(), -2.4, 2.4))
    factors = 1 + T2_SPREAD * rng.uniform(-1, 1, len(COMPARTMENTS))
    return tuple(
        Tissue(t.label, t.t1, t.t2 * float(factor), t.t2_star * float(factor), t.pd)
        for t, factor in zip(tissues(pma + ahead), factors, strict=True)
    )


# Ages are a normal distribution cut to 37-45 weeks. DHCP: the shares of the 558 released scans in bins of two weeks
# (5, 22, 43 and 29 % from 37, 38, 40 and 42 weeks). V2LP: scans at term-equivalent age; ours.
_DHCP = {"tissues": tissues(40), "reference": "cerebral_GM", "age_range": (37, 45), "age_normal": (41.1, 1.75)}
_V2LP = {"tissues": tissues(40), "reference": "cerebral_GM", "age_range": (37, 45), "age_normal": (41.5, 1.3)}

NEONATAL: dict[Contrast, tuple[Site, ...]] = {
    "T1w": (
        Site(
            "DHCP",
            "Philips Achieva",
            3.0,
            IrTse(tr=4795, ti=1740, te=8.7),
            voxel_mm=(0.8, 0.8, 0.8),
            smoothing_mm=0.8,  # slices are reconstructed to a volume of 0.5 mm, with motion
            bias_peak=0.20,
            noise=0.06,
            scans=280,
            series="DHCP T1w",
            **_DHCP,  # type: ignore[arg-type]
        ),
        Site(
            "V2LP",
            "Siemens Trio",
            3.0,
            Mprage(cycle=2100, ti=1100, echo_spacing=7.1, pulses=176, flip=9, te=3.39),
            voxel_mm=(1.0, 1.0, 1.0),
            bias_peak=0.25,
            noise=0.05,
            scans=122,
            series="V2LP T1w",
            **_V2LP,  # type: ignore[arg-type]
        ),
    ),
    "T2w": (
        Site(
            "DHCP",
            "Philips Achieva",
            3.0,
            Tse(tr=12000, te=156),
            voxel_mm=(0.8, 0.8, 0.8),
            smoothing_mm=0.8,
            bias_peak=0.15,
            noise=0.05,
            scans=333,
            series="DHCP T2w",
            **_DHCP,  # type: ignore[arg-type]
        ),
        Site(
            "V2LP",
            "Siemens Trio",
            3.0,
            Tse(tr=8910, te=152),
            voxel_mm=(1.0, 1.0, 1.0),
            bias_peak=0.30,
            noise=0.06,
            scans=122,
            series="V2LP T2w",
            **_V2LP,  # type: ignore[arg-type]
        ),
    ),
}


def neonatal_site(name: str, contrast: Contrast) -> Site:
    """The neonatal site called `name`; raises ValueError that lists the known ones."""
    for candidate in NEONATAL[contrast]:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no neonatal phantom site {name!r}; known: {', '.join(s.name for s in NEONATAL[contrast])}")
