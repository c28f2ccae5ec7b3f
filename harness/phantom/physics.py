"""From relaxation times to signal: tissue tables and the signal equations of the four sequences.

Times are in ms, angles in degrees, field strength in tesla, proton density relative to CSF = 1. All signal
functions are vectorised over tissues and *signed*: the sign says whether the magnetisation is still inverted
when it is read. Mix tissues first (partial volume), take the magnitude last, as a scanner does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LABELS: tuple[str, ...] = (
    "background",
    "cerebral_GM",
    "cerebral_WM",
    "cerebellum_GM",
    "cerebellum_WM",
    "CSF",
    "ventricles",
    "brainstem",
    "thalamus",
    "hippocampus",
    "putamen",
    "caudate",
    "pallidum",
    "amygdala",
    "ventral_DC",
)
"""The 15 groups of the thesis; a label's value in a label map is its place here. 0 gives no signal."""


@dataclass(frozen=True)
class Tissue:
    """One label's MR properties: T1, T2, T2* in ms; proton density relative to CSF."""

    label: str
    t1: float
    t2: float
    t2_star: float
    pd: float

    def __post_init__(self) -> None:
        if min(self.t1, self.t2, self.t2_star, self.pd) <= 0:
            raise ValueError(f"tissue {self.label}: T1, T2, T2* and PD must be positive, got {self}")


TISSUES_3T: tuple[Tissue, ...] = (
    # Literature means (Wansapura 1999, Gelman 2001, Stanisz 2005, Lin 2001), from memory; the published
    # spread is large (GM 1330-1820, WM 830-1085).
    Tissue("cerebral_GM", 1500, 95, 55, 0.82),
    Tissue("cerebral_WM", 850, 75, 48, 0.70),
    Tissue("cerebellum_GM", 1400, 95, 55, 0.82),
    Tissue("cerebellum_WM", 900, 78, 48, 0.71),
    Tissue("CSF", 4160, 1500, 800, 1.00),
    Tissue("ventricles", 4160, 1500, 800, 1.00),
    Tissue("brainstem", 1000, 80, 48, 0.73),
    Tissue("thalamus", 1200, 85, 48, 0.78),
    Tissue("hippocampus", 1450, 100, 55, 0.83),
    Tissue("putamen", 1300, 80, 40, 0.80),
    Tissue("caudate", 1400, 88, 45, 0.81),
    Tissue("pallidum", 1000, 62, 28, 0.74),
    Tissue("amygdala", 1450, 98, 55, 0.83),
    Tissue("ventral_DC", 1050, 78, 42, 0.74),
)


def _at_lower_field(t1: dict[str, float]) -> tuple[Tissue, ...]:
    """3 T table with other T1s. T2* is 1.25 times longer at 1.5 T (ours; it matters little at TE <= 4 ms)."""
    return tuple(replace(t, t1=t1.get(t.label, t.t1), t2_star=1.25 * t.t2_star) for t in TISSUES_3T)


TISSUES_OASIS: tuple[Tissue, ...] = _at_lower_field(
    # Effective T1s at 1.5 T: with the OASIS MPRAGE they reproduce the structure/WM ratios measured on 35
    # real OASIS-1 scans (WM fixed at 620 ms). They absorb what a label's median absorbs: partial volume.
    {
        "cerebral_GM": 1180,
        "cerebral_WM": 620,
        "cerebellum_GM": 1100,
        "cerebellum_WM": 650,
        "brainstem": 740,
        "thalamus": 830,
        "hippocampus": 1160,
        "putamen": 875,
        "caudate": 1010,
        "pallidum": 660,
        "amygdala": 1155,
        "ventral_DC": 705,
    }
)

TISSUES_15T: tuple[Tissue, ...] = _at_lower_field(
    # A generic 1.5 T brain, ours: WM as above, grey matter between BrainWeb's 833 ms and the effective
    # 1180 ms, chosen so that the OASIS protocol gives GM/WM = .70 and HBN-SI .64 (uncalibrated model).
    {
        "cerebral_GM": 1050,
        "cerebral_WM": 620,
        "cerebellum_GM": 1000,
        "cerebellum_WM": 650,
        "brainstem": 740,
        "thalamus": 810,
        "hippocampus": 1030,
        "putamen": 850,
        "caudate": 950,
        "pallidum": 660,
        "amygdala": 1030,
        "ventral_DC": 705,
    }
)


def mprage(
    t1: npt.ArrayLike,
    t2_star: npt.ArrayLike,
    pd: npt.ArrayLike,
    *,
    cycle: float,
    ti: float,
    echo_spacing: float,
    pulses: int,
    flip: float,
    te: float,
    inversion: float = 0.96,
) -> Array:
    """Steady-state MPRAGE signal at the k-space centre, arrays of any one shape in, the same shape out.

    One cycle is: inversion (Mz -> -inversion * Mz), recovery, `pulses` excitations `echo_spacing` apart with
    the centre one at `ti` after the inversion, recovery until `cycle`. Every step is affine in Mz, so the
    whole cycle is Mz -> slope * Mz + offset and its fixed point is exact: no iteration to convergence.

    Raises ValueError when the train does not fit between the inversion and the end of the cycle.
    """
    before = ti - pulses / 2 * echo_spacing
    after = cycle - ti - pulses / 2 * echo_spacing
    if before < 0 or after < 0:
        raise ValueError(
            f"MPRAGE: {pulses} pulses of {echo_spacing} ms around TI {ti} ms do not fit a cycle of {cycle} ms"
        )
    t1_, star, density = (np.asarray(x, dtype=np.float64) for x in (t1, t2_star, pd))
    angle = np.deg2rad(flip)
    decay = np.exp(-echo_spacing / t1_)

    decay_before = np.exp(-before / t1_)
    slope = -inversion * decay_before
    offset = 1 - decay_before
    centre_slope, centre_offset = slope, offset
    for pulse in range(pulses):
        if pulse == pulses // 2:
            centre_slope, centre_offset = slope, offset
        slope = slope * np.cos(angle) * decay
        offset = offset * np.cos(angle) * decay + 1 - decay
    decay_after = np.exp(-after / t1_)
    slope, offset = slope * decay_after, offset * decay_after + 1 - decay_after

    start = offset / (1 - slope)
    return density * (centre_slope * start + centre_offset) * np.sin(angle) * np.exp(-te / star)


def spgr(t1: npt.ArrayLike, t2_star: npt.ArrayLike, pd: npt.ArrayLike, *, tr: float, flip: float, te: float) -> Array:
    """Spoiled gradient echo in steady state (Ernst 1966): PD sin a (1-E1)/(1-E1 cos a) exp(-TE/T2*)."""
    t1_, star, density = (np.asarray(x, dtype=np.float64) for x in (t1, t2_star, pd))
    angle, e1 = np.deg2rad(flip), np.exp(-tr / t1_)
    return density * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * np.exp(-te / star)


def tse(t1: npt.ArrayLike, t2: npt.ArrayLike, pd: npt.ArrayLike, *, tr: float, te: float, train: float = 0.0) -> Array:
    """Turbo spin echo: PD (1 - exp(-(TR - train)/T1)) exp(-TE/T2); `train` = echoes times echo spacing."""
    t1_, t2_, density = (np.asarray(x, dtype=np.float64) for x in (t1, t2, pd))
    return density * (1 - np.exp(-(tr - train) / t1_)) * np.exp(-te / t2_)


def ir_tse(t1: npt.ArrayLike, t2: npt.ArrayLike, pd: npt.ArrayLike, *, tr: float, ti: float, te: float) -> Array:
    """Inversion-recovery TSE (FLAIR): PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2), signed."""
    t1_, t2_, density = (np.asarray(x, dtype=np.float64) for x in (t1, t2, pd))
    return density * (1 - 2 * np.exp(-ti / t1_) + np.exp(-tr / t1_)) * np.exp(-te / t2_)


@dataclass(frozen=True)
class Mprage:
    """An MPRAGE protocol. `cycle` is the time from one inversion to the next, what Siemens calls TR."""

    cycle: float
    ti: float
    echo_spacing: float
    pulses: int
    flip: float
    te: float

    def signal(self, tissues: Sequence[Tissue], t1_factor: npt.ArrayLike = 1.0, b1: float = 1.0) -> Array:
        """Signed signal [len(tissues)]; `t1_factor` scales T1 (scalar or one each), `b1` the flip angle."""
        t1, _, star, pd = _columns(tissues, t1_factor)
        return mprage(
            t1,
            star,
            pd,
            cycle=self.cycle,
            ti=self.ti,
            echo_spacing=self.echo_spacing,
            pulses=self.pulses,
            flip=self.flip * b1,
            te=self.te,
        )


@dataclass(frozen=True)
class Spgr:
    """A spoiled gradient-echo protocol."""

    tr: float
    flip: float
    te: float

    def signal(self, tissues: Sequence[Tissue], t1_factor: npt.ArrayLike = 1.0, b1: float = 1.0) -> Array:
        """Signal [len(tissues)]; arguments as for `Mprage.signal`."""
        t1, _, star, pd = _columns(tissues, t1_factor)
        return spgr(t1, star, pd, tr=self.tr, flip=self.flip * b1, te=self.te)


@dataclass(frozen=True)
class Tse:
    """A turbo-spin-echo protocol. B1 errors are refocused to first order and ignored."""

    tr: float
    te: float
    train: float = 0.0

    def signal(self, tissues: Sequence[Tissue], t1_factor: npt.ArrayLike = 1.0, b1: float = 1.0) -> Array:
        """Signal [len(tissues)]; arguments as for `Mprage.signal`, `b1` has no effect."""
        t1, t2, _, pd = _columns(tissues, t1_factor)
        return tse(t1, t2, pd, tr=self.tr, te=self.te, train=self.train)


@dataclass(frozen=True)
class IrTse:
    """An inversion-recovery turbo-spin-echo protocol (adiabatic inversion: B1 errors are ignored)."""

    tr: float
    ti: float
    te: float

    def signal(self, tissues: Sequence[Tissue], t1_factor: npt.ArrayLike = 1.0, b1: float = 1.0) -> Array:
        """Signed signal [len(tissues)]; arguments as for `Mprage.signal`, `b1` has no effect."""
        t1, t2, _, pd = _columns(tissues, t1_factor)
        return ir_tse(t1, t2, pd, tr=self.tr, ti=self.ti, te=self.te)


Acquisition = Mprage | Spgr | Tse | IrTse


def _columns(tissues: Sequence[Tissue], t1_factor: npt.ArrayLike) -> tuple[Array, Array, Array, Array]:
    """T1 (times the factor), T2, T2*, PD, each [len(tissues)]."""
    table = np.array([(t.t1, t.t2, t.t2_star, t.pd) for t in tissues], dtype=np.float64)
    return table[:, 0] * np.asarray(t1_factor, dtype=np.float64), table[:, 1], table[:, 2], table[:, 3]
