"""Signal equations against brute force, limits, and the model ratios of the sites."""

import dataclasses

import numpy as np
import pytest

from harness.phantom.physics import (
    LABELS,
    TISSUES_3T,
    TISSUES_15T,
    TISSUES_OASIS,
    IrTse,
    Mprage,
    Spgr,
    Tissue,
    Tse,
    mprage,
    spgr,
)
from harness.phantom.sites import SITES, Site, site

GM, WM, CSF = (LABELS.index(name) - 1 for name in ("cerebral_GM", "cerebral_WM", "CSF"))


def pulse_by_pulse(protocol: Mprage, tissue: Tissue, cycles: int = 60) -> float:
    """Follow Mz through whole cycles from equilibrium until it no longer changes; read it at the centre."""

    def recover(mz: float, ms: float) -> float:
        return 1 + (mz - 1) * np.exp(-ms / tissue.t1)

    mz, read, flip = 1.0, 0.0, np.deg2rad(protocol.flip)
    half = protocol.pulses / 2 * protocol.echo_spacing
    for _ in range(cycles):
        mz = recover(-0.96 * mz, protocol.ti - half)
        for pulse in range(protocol.pulses):
            if pulse == protocol.pulses // 2:
                read = mz
            mz = recover(mz * np.cos(flip), protocol.echo_spacing)
        mz = recover(mz, protocol.cycle - protocol.ti - half)
    return tissue.pd * read * np.sin(flip) * np.exp(-protocol.te / tissue.t2_star)


@pytest.mark.parametrize("place", SITES, ids=lambda s: s.name)
def test_mprage_is_the_steady_state_of_the_pulse_train(place: Site) -> None:
    assert isinstance(place.acquisition, Mprage)
    exact = place.acquisition.signal(place.tissues)
    followed = [pulse_by_pulse(place.acquisition, t) for t in place.tissues]
    np.testing.assert_allclose(exact, followed, rtol=1e-9)


def test_mprage_without_inversion_and_gaps_is_spgr() -> None:
    t1 = np.array([600.0, 1200.0, 4000.0])
    ready = mprage(t1, 50, 0.8, cycle=1024, ti=512, echo_spacing=8, pulses=128, flip=10, te=3, inversion=-1)
    np.testing.assert_allclose(ready, spgr(t1, 50, 0.8, tr=8, flip=10, te=3), rtol=1e-12)


def test_mprage_refuses_a_train_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit a cycle"):
        mprage(900, 50, 0.8, cycle=1000, ti=500, echo_spacing=10, pulses=128, flip=8, te=3)


def test_spgr_limits() -> None:
    # Fully relaxed: a 90 degree pulse reads the whole of PD; its maximum lies at the Ernst angle.
    assert spgr(500, 1e9, 0.7, tr=1e6, flip=90, te=0) == pytest.approx(0.7)
    flips = np.linspace(1, 40, 4000)
    best = flips[np.argmax([spgr(900, 50, 1, tr=20, flip=f, te=3) for f in flips])]
    assert best == pytest.approx(np.rad2deg(np.arccos(np.exp(-20 / 900))), abs=0.02)


def test_flair_nulls_fluid_and_t2_brightens_it() -> None:
    fluid = TISSUES_3T[CSF].t1
    tr = 9000.0
    null = -fluid * np.log((1 + np.exp(-tr / fluid)) / 2)
    flair = IrTse(tr=tr, ti=null, te=100).signal(TISSUES_3T)
    assert abs(flair[CSF]) < 1e-12
    assert flair[GM] > flair[WM] > 0
    t2 = Tse(tr=6000, te=100).signal(TISSUES_3T)
    assert t2[CSF] > t2[GM] > t2[WM]


def test_t1_spgr_contrast_and_b1() -> None:
    protocol = Spgr(tr=8, flip=12, te=3)
    s = protocol.signal(TISSUES_3T)
    assert s[WM] > s[GM] > s[CSF]
    np.testing.assert_allclose(
        protocol.signal(TISSUES_3T, b1=1.05), dataclasses.replace(protocol, flip=12.6).signal(TISSUES_3T)
    )


@pytest.mark.parametrize(
    ("name", "gm", "csf"),
    # GM/WM and CSF/WM computed once outside the project; OASIS with effective T1s, its real GM/WM is .614.
    [
        ("CALTECH", 0.70, 0.32),
        ("KKI", 0.44, 0.06),
        ("NYU", 0.57, 0.12),
        ("PITT", 0.65, 0.25),
        ("HBNSI", 0.64, 0.02),
        ("HBNRU", 0.67, 0.26),
        ("OASIS", 0.614, 0.20),
    ],
)
def test_site_contrast(name: str, gm: float, csf: float) -> None:
    place = site(name)
    s = np.abs(place.acquisition.signal(place.tissues))
    assert s[GM] / s[WM] == pytest.approx(gm, abs=0.01)
    assert s[CSF] / s[WM] == pytest.approx(csf, abs=0.01)


def test_oasis_reproduces_the_real_medians() -> None:
    real = {
        "cerebral_GM": 0.614,
        "cerebellum_GM": 0.660,
        "cerebellum_WM": 0.966,
        "brainstem": 0.880,
        "thalamus": 0.839,
        "hippocampus": 0.634,
        "putamen": 0.808,
        "caudate": 0.709,
        "pallidum": 0.968,
        "amygdala": 0.636,
        "ventral_DC": 0.927,
    }
    s = site("OASIS").acquisition.signal(TISSUES_OASIS)
    model = {t.label: v / s[WM] for t, v in zip(TISSUES_OASIS, s, strict=True)}
    for label, ratio in real.items():
        assert model[label] == pytest.approx(ratio, abs=0.02), label


def test_tables_follow_the_labels() -> None:
    for table in (TISSUES_3T, TISSUES_15T, TISSUES_OASIS):
        assert tuple(t.label for t in table) == LABELS[1:]
    with pytest.raises(ValueError, match="must be positive"):
        Tissue("x", 0, 1, 1, 1)


def test_unknown_site_lists_the_known() -> None:
    with pytest.raises(ValueError, match="CALTECH, KKI"):
        site("caltech")
