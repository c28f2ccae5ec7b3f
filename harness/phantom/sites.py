"""The seven adult T1 sites of Table 2.1 as data: protocol, field, voxel, nuisances, ages.

TR, TE, flip angle, voxel size, age range and number of scans are Table 2.1's. Its "TR" mixes two meanings:
for CALTECH, NYU, PITT, HBNSI and HBNRU it is the MPRAGE cycle, for KKI (8) and OASIS (9.7) the echo spacing.
TI, echo spacing, pulses, field strength and scanner are not in the paper; they follow the ABIDE, HBN and
OASIS protocol sheets from memory (OASIS: TI 20 and TD 200 ms around 128 pulses, Marcus 2007).
Bias and noise levels are ours, within the usual 10-30 % (3 T) or 5-15 % (1.5 T) peak and 2-5 % noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.phantom.physics import TISSUES_3T, TISSUES_15T, TISSUES_OASIS, Acquisition, Mprage, Tissue


@dataclass(frozen=True)
class Site:
    """One site.

    tissues: relaxation times at its field, in label order (label 1 first); of newborns, at 40 weeks, by compartment.
    voxel_mm: acquired voxel along (left-right, anterior-posterior, superior-inferior), in Table 2.1's order.
    bias_peak: largest deviation of the smooth bias field from 1. noise: SD of the Gaussian noise in each of
    the two channels, as a fraction of the signal of the tissue `reference`; fixed for the site.
    smoothing_mm: full width at half maximum of a Gaussian that image and noise go through after sampling.
    age_range: years, or weeks of newborns, both ends included. age_normal: mean and SD of ages, cut to the range; None:
    uniform. scans: MRIs of the paper. series: name behind the scans' noise and bias, the site's own by default.
    """

    name: str
    scanner: str
    field_t: float
    acquisition: Acquisition
    tissues: tuple[Tissue, ...]
    voxel_mm: tuple[float, float, float]
    bias_peak: float
    noise: float
    age_range: tuple[float, float]
    scans: int
    reference: str = "cerebral_WM"
    smoothing_mm: float = 0.0
    age_normal: tuple[float, float] | None = None
    series: str = ""

    @property
    def stream(self) -> str:
        return self.series or self.name


SITES: tuple[Site, ...] = (
    Site(
        "CALTECH",
        "Siemens Trio",
        3.0,
        Mprage(cycle=1590, ti=800, echo_spacing=6.9, pulses=176, flip=10, te=2.73),
        TISSUES_3T,
        voxel_mm=(1.0, 1.0, 1.0),
        bias_peak=0.25,
        noise=0.025,
        age_range=(17, 56),
        scans=19,
    ),
    Site(
        "KKI",
        "Philips Achieva",
        3.0,
        # The cycle is a guess; with it GM/WM is .44, real scans of the same scanner (Kirby21) have .46.
        Mprage(cycle=3000, ti=860, echo_spacing=8.0, pulses=160, flip=8, te=3.70),
        TISSUES_3T,
        voxel_mm=(1.0, 1.0, 1.0),
        bias_peak=0.20,
        noise=0.020,
        age_range=(8, 13),
        scans=20,
    ),
    Site(
        "NYU",
        "Siemens Allegra",
        3.0,
        Mprage(cycle=2530, ti=1100, echo_spacing=7.6, pulses=128, flip=7, te=3.25),
        TISSUES_3T,
        voxel_mm=(1.3, 1.0, 1.3),
        bias_peak=0.22,
        noise=0.025,
        age_range=(6, 39),
        scans=20,
    ),
    Site(
        "PITT",
        "Siemens Allegra",
        3.0,
        Mprage(cycle=2100, ti=1000, echo_spacing=9.2, pulses=176, flip=7, te=3.93),
        TISSUES_3T,
        voxel_mm=(1.1, 1.1, 1.1),
        bias_peak=0.22,
        noise=0.030,
        age_range=(9, 35),
        scans=20,
    ),
    Site(
        "HBNSI",
        "Siemens Avanto",
        1.5,
        Mprage(cycle=2730, ti=1000, echo_spacing=4.6, pulses=176, flip=7, te=1.64),
        TISSUES_15T,
        voxel_mm=(1.0, 1.0, 1.0),
        bias_peak=0.12,
        noise=0.045,
        age_range=(5, 21),
        scans=77,
    ),
    Site(
        "HBNRU",
        "Siemens Trio",
        3.0,
        Mprage(cycle=2500, ti=1060, echo_spacing=7.2, pulses=224, flip=8, te=3.15),
        TISSUES_3T,
        voxel_mm=(0.8, 0.8, 0.8),
        bias_peak=0.25,
        noise=0.035,
        age_range=(5, 21),
        scans=57,
    ),
    Site(
        "OASIS",
        "Siemens Vision",
        1.5,
        # Cycle = TI 20 + 128 pulses of 9.7 + TD 200; the centre is 641 ms after the inversion.
        Mprage(cycle=1462, ti=641, echo_spacing=9.7, pulses=128, flip=10, te=4.0),
        TISSUES_OASIS,
        voxel_mm=(1.0, 1.0, 1.25),
        bias_peak=0.15,
        noise=0.040,
        age_range=(18, 96),
        scans=117,
    ),
)


def site(name: str) -> Site:
    """The site called `name`; raises ValueError that lists the known ones."""
    for candidate in SITES:
        if candidate.name == name:
            return candidate
    raise ValueError(f"no phantom site {name!r}; known: {', '.join(s.name for s in SITES)}")
