"""Pictures of four families of textures, drawn at random: gradient noise, Gabor noise, checkerboards and blobs.

They stand in for photographs of textures where none are at hand. Lengths are in pixels; all choices are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FINEST, COARSEST = 6.0, 96.0  # range of the lengths of a pattern, drawn evenly in their logarithm


def draw_texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """One texture, float32 [size, size] in [0, 1], of a random family, with random lengths, directions and contrast."""
    pattern = _stretched(FAMILIES[int(rng.integers(len(FAMILIES)))](rng, size))
    contrast = rng.uniform(0.3, 1.0)
    return (rng.uniform(0, 1 - contrast) + contrast * pattern).astype(np.float32)


def perlin(rng: np.random.Generator, size: int) -> np.ndarray:
    """Gradient noise (Perlin, SIGGRAPH 1985 and 2002), one to five octaves, each of half the length of the last."""
    length, persistence = _length(rng), rng.uniform(0.4, 0.9)
    octaves = int(rng.integers(1, 6))
    return np.sum([persistence**i * _gradient_noise(rng, size, max(2.0, length / 2**i)) for i in range(octaves)], 0)


def gabor(rng: np.random.Generator, size: int) -> np.ndarray:
    """Gabor noise (Lagae et al., SIGGRAPH 2009), one to three directions: white noise in Gaussian bands."""
    down, right = _frequencies(size)
    noise = np.fft.rfft2(rng.standard_normal((size, size)))
    gain = np.zeros(noise.shape)
    for _ in range(int(rng.integers(1, 4))):
        frequency, angle = 1 / _length(rng), rng.uniform(0, np.pi)
        width = frequency * rng.uniform(0.1, 0.5)
        centre = frequency * np.sin(angle), frequency * np.cos(angle)
        for sign in (-1, 1):
            gain += np.exp(-((down - sign * centre[0]) ** 2 + (right - sign * centre[1]) ** 2) / (2 * width**2))
    return np.fft.irfft2(noise * gain, (size, size))


def checker(rng: np.random.Generator, size: int) -> np.ndarray:
    """A checkerboard with cells of any proportion, turned, its edges more or less soft."""
    angle, softness = rng.uniform(0, np.pi), 10 ** rng.uniform(-1.5, 0)
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    waves = [
        np.sin(np.pi * (axis / _length(rng) + rng.uniform(0, 2)))
        for axis in (
            rows * np.cos(angle) + columns * np.sin(angle),
            columns * np.cos(angle) - rows * np.sin(angle),
        )
    ]
    return np.tanh(waves[0] / softness) * np.tanh(waves[1] / softness)


def blobs(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smoothed white noise, cut at a random height by a more or less steep edge."""
    down, right = _frequencies(size)
    spread = _length(rng) / 4
    smooth = np.exp(-2 * (np.pi * spread) ** 2 * (down**2 + right**2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * smooth, (size, size))
    return np.tanh((field / field.std() - rng.uniform(-1, 1)) * 10 ** rng.uniform(-0.3, 1.3))


FAMILIES: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (perlin, gabor, checker, blobs)


def _length(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(FINEST), np.log(COARSEST))))


def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cycles per pixel along rows [size, 1] and columns [1, size // 2 + 1], as a real transform has them."""
    return np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]


def _gradient_noise(rng: np.random.Generator, size: int, length: float) -> np.ndarray:
    """One octave [size, size]: random unit gradients at lattice points `length` apart, joined by a quintic."""
    at = np.arange(size) / length + rng.random()
    corner = at.astype(np.int64)
    offset = at - corner
    angles = rng.uniform(0, 2 * np.pi, (corner[-1] + 2, corner[-1] + 2))
    downs, rights = np.sin(angles), np.cos(angles)

    def ramp(below: int, beside: int) -> np.ndarray:
        index = np.ix_(corner + below, corner + beside)
        return downs[index] * (offset - below)[:, None] + rights[index] * (offset - beside)[None]

    fade = offset**3 * (offset * (6 * offset - 15) + 10)
    upper = ramp(0, 0) + fade[None] * (ramp(0, 1) - ramp(0, 0))
    lower = ramp(1, 0) + fade[None] * (ramp(1, 1) - ramp(1, 0))
    return upper + fade[:, None] * (lower - upper)


def _stretched(pattern: np.ndarray) -> np.ndarray:
    """From its lowest value to its highest as 0 to 1; 1/2 where it is flat."""
    low, high = pattern.min(), pattern.max()
    return (pattern - low) / (high - low) if high > low else np.full(pattern.shape, 0.5)
