"""SSIMH: the low frequencies of a target slice are replaced by those of the source. Nothing is trained.

The functions at the end are the whole algorithm on plain arrays; the class only feeds them.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.fft import dctn, idctn

from harness.api import ApplyData, Context, Harmonizer, ImageSet, MethodError, State, hyper
from methods.harmonization._places import nearest_in_place, typical_scans

BATCH = 64  # slices transformed at once


class Ssimh(Harmonizer):
    """Low frequencies from a source reference, all else from the target: its edges, and so its anatomy.

    fourier: amplitudes in a square around frequency zero are the reference's, phases stay the target's. The square's
             half-width is ⌊beta × the shorter side⌋: 2 for 256 pixels at the default, but 0 for fewer than 100.
    cosine:  the lowest `coefficients` × `coefficients` of a cosine transform are the reference's, sign included.

    Either way frequency zero is swapped, so a slice takes at least the reference's mean intensity.
    """

    id = "ssimh"
    reference = "Guan et al., Fast Image-Level MRI Harmonization via Spectrum Analysis, MLMI 2022"
    notes = (
        "The paper's method section was not available. The default swaps cosine coefficients, as the first author's "
        'toolbox, DomainATM, does; spectrum "fourier" swaps amplitudes instead, as Fourier Domain Adaptation does '
        "(Yang and Soatto, CVPR 2020). Beta, and which source slice is the reference, are ours."
    )
    source_free, task_agnostic, unknown_domains = False, True, True

    spectrum: Literal["fourier", "cosine"] = hyper(
        "cosine",
        "what is swapped: amplitudes of the Fourier transform, or coefficients of the cosine transform",
        origin="Yang and Soatto 2020 (fourier); DomainATM, SSIMH.m (cosine)",
    )
    beta: float = hyper(
        0.01,
        "fourier: half-width of the window, as a fraction of the shorter side",
        origin="ours; one of the values of Yang and Soatto 2020",
        ge=0,
        lt=0.5,
    )
    coefficients: int = hyper(3, "cosine: coefficients along each axis", origin="DomainATM, SSIMH.m", ge=1)
    ref_mode: Literal["one", "mean", "site"] = hyper(
        "one",
        "the reference: the slice at the same place of one typical source scan, the mean spectrum at that place over "
        "all source scans, or the mean spectrum of the whole site",
        origin="ours",
    )

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Raises MethodError where source and target slices differ in size, or the source has no brain."""
        source, target = data.source, data.target
        if source.pixels.shape[1:] != target.pixels.shape[1:]:
            raise MethodError(
                f"ssimh: target slices are {_size(target)} pixels, source slices {_size(source)}; prepare both alike"
            )
        references = self._references(source, {scan.stop - scan.start for scan in target.scans})
        swap = swap_amplitudes if self.spectrum == "fourier" else swap_coefficients
        out = np.zeros(target.pixels.shape, np.float32)
        for scan, image, mask in target.volumes():
            wanted = references[len(image)]
            for start in range(0, len(image), BATCH):
                chosen = slice(start, start + BATCH)
                out[scan.slices][chosen] = np.clip(swap(image[chosen], wanted[chosen]).real, 0, 1) * mask[chosen]
        return out

    def _references(self, source: ImageSet, counts: set[int]) -> dict[int, np.ndarray]:
        """For scans of each number of slices what is to be put into them, [number, size, size]."""
        scans = [scan for scan in source.scans if np.asarray(source.mask[scan.slices]).any()]
        if not scans:
            raise MethodError("ssimh: no source scan has brain, so there is no reference")
        if self.ref_mode == "one":
            scans = typical_scans(source, 1)
        total: dict[int, np.ndarray] = {}
        for scan in scans:
            starts = range(scan.start, scan.stop, BATCH)
            parts = [self._low(source.floats(slice(i, min(i + BATCH, scan.stop)))) for i in starts]
            low, brain = np.concatenate(parts), np.asarray(source.mask[scan.slices]).any(axis=(1, 2))
            for count in counts:
                chosen = nearest_in_place(brain, count)
                found = low[brain].mean(axis=0)[None].repeat(count, 0) if self.ref_mode == "site" else low[chosen]
                total[count] = total.get(count, 0) + found
        return {count: each / len(scans) for count, each in total.items()}

    def _low(self, images: np.ndarray) -> np.ndarray:
        """The part of slices' [B, H, W] spectra that is swapped."""
        if self.spectrum == "fourier":
            return amplitudes(images, half_width(self.beta, images.shape[1:]))
        return coefficients(images, min(self.coefficients, *images.shape[1:]))


# ------------------------------------------------------------------------------------------ Fourier


def half_width(beta: float, size: tuple[int, ...]) -> int:
    """⌊beta·min(H, W)⌋ of slices of `size` (H, W)."""
    return math.floor(beta * min(size) + 1e-9)  # products such as 0.29·100 fall just short of whole numbers


def amplitudes(images: np.ndarray, half: int) -> np.ndarray:
    """Amplitudes of frequencies −half..half of `images` [..., H, W], float64 [..., 2·half + 1, 2·half + 1].

    The square is symmetric about frequency zero: only so does a real image stay real.
    """
    rows, columns = _frequencies(half)
    return np.abs(np.fft.fft2(np.asarray(images, np.float64))[..., rows, columns])


def swap_amplitudes(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`images` [..., H, W] with their own phases and, in the window, the amplitudes `wanted` [..., n, n], n odd.

    Complex128: the imaginary part is rounding alone. Where an image has no amplitude, its phase counts as 0.
    """
    rows, columns = _frequencies(wanted.shape[-1] // 2)
    spectrum = np.fft.fft2(np.asarray(images, np.float64))
    own = spectrum[..., rows, columns]
    size = np.abs(own)
    # A ratio of amplitudes leaves the phase alone, and is exactly 1 where nothing changes.
    spectrum[..., rows, columns] = np.where(size > 0, own * (wanted / np.where(size > 0, size, 1)), wanted)
    return np.fft.ifft2(spectrum)


def _frequencies(half: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column indices of the window; negative ones count from the end, as frequencies do."""
    frequencies = np.arange(-half, half + 1)
    return frequencies[:, None], frequencies[None, :]


# ------------------------------------------------------------------------------------------- cosine


def coefficients(images: np.ndarray, size: int) -> np.ndarray:
    """The lowest coefficients of the orthonormal cosine transform of `images` [..., H, W], [..., size, size]."""
    return dctn(np.asarray(images, np.float64), axes=(-2, -1), norm="ortho")[..., :size, :size]


def swap_coefficients(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`images` [..., H, W] with their lowest coefficients replaced by `wanted` [..., size, size]; float64."""
    spectrum = dctn(np.asarray(images, np.float64), axes=(-2, -1), norm="ortho")
    spectrum[..., : wanted.shape[-2], : wanted.shape[-1]] = wanted
    return idctn(spectrum, axes=(-2, -1), norm="ortho")


def _size(images: ImageSet) -> str:
    return " × ".join(map(str, images.pixels.shape[1:]))
