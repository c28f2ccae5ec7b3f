"""The qualitative panels: what one slice looks like before and after each method, and what was predicted on it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.results.exhibits import Panel
from harness.results.figures import shortened, styled

COLUMNS = ("input", "harmonised", "prediction", "label")


@styled
def panels(shown: Sequence[Panel], label_names: Sequence[str] = ()) -> Figure:
    """A line per panel: input, harmonised, prediction and label over the input, one colour per label."""
    high, wide = next((p.input.shape for p in shown if p.input is not None), (1, 1))
    figure = Figure(figsize=(0.8 + 1.6 * 4, 1.6 * len(shown) * high / wide + 0.7), layout="constrained")
    axes = figure.subplots(len(shown), 4, squeeze=False)
    highest = max([1, *(int(a.max()) for p in shown for a in (p.prediction, p.label) if a is not None)])
    colours = label_colours(highest + 1)
    for line, panel in zip(axes, shown, strict=True):
        for axis, name in zip(line, COLUMNS, strict=True):
            _picture(axis, panel, name, colours)
        line[0].set_ylabel(shortened(panel.method, 18), fontsize=8)
    for axis, name in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(name)
    used = sorted({int(i) for p in shown for a in (p.prediction, p.label) if a is not None for i in np.unique(a)} - {0})
    names = [label_names[i] if i < len(label_names) else f"label {i}" for i in used]
    patches = [Patch(color=colours[i, :3], label=name) for i, name in zip(used, names, strict=True)]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=7)
    return figure


def label_colours(count: int) -> np.ndarray:
    """[count, 4] RGBA float, label 0 transparent; neighbours differ in hue and in lightness."""
    colours = np.zeros((count, 4))
    for label in range(1, count):
        # Steps of the golden ratio keep any number of hues apart.
        hue, lightness = (label * 0.618034) % 1, (0.45, 0.6, 0.75)[label % 3]
        colours[label] = (*colorsys.hls_to_rgb(hue, lightness, 0.85), 0.75)
    return colours


def _picture(axis: Axes, panel: Panel, name: str, colours: np.ndarray) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    pixels = getattr(panel, name)
    if pixels is None:
        axis.text(0.5, 0.5, "no image", ha="center", va="center", color="#777777", transform=axis.transAxes)
        return
    if name in ("input", "harmonised"):
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        return
    under = panel.harmonised if name == "prediction" and panel.harmonised is not None else panel.input
    if under is not None:
        axis.imshow(under, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.imshow(colours[pixels], interpolation="nearest")


@styled
def samples(shown: Sequence[Panel]) -> Figure:
    """One method's harmonised slices: a line for each target, its raw slice first, then a column for each source.

    Above them stands a raw slice of each source, as far as it is a target of another one: the look to be reached.
    """
    sources = list(dict.fromkeys(panel.source for panel in shown))
    present = {panel.target for panel in shown}
    targets = [site for site in sources if site in present]
    targets += [site for site in dict.fromkeys(panel.target for panel in shown) if site not in sources]
    raw = {panel.target: panel.input for panel in shown if panel.input is not None}
    high, wide = next((pixels.shape for pixels in raw.values()), (1, 1))
    size = (1.25 * (len(sources) + 1) + 0.6, 1.25 * high / wide * (len(targets) + 1) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(targets) + 1, len(sources) + 1, squeeze=False)
    axes[0, 0].set_axis_off()
    for axis, source in zip(axes[0, 1:], sources, strict=True):
        _slice(axis, raw.get(source))
        axis.set_title(shortened(source, 16), fontsize=8)
    axes[0, 1].set_ylabel("source", fontsize=8)
    found = {(panel.target, panel.source): panel for panel in shown}
    for line, target in zip(axes[1:], targets, strict=True):
        _slice(line[0], raw.get(target))
        line[0].set_ylabel(shortened(target, 14), fontsize=8)
        for axis, source in zip(line[1:], sources, strict=True):
            panel = found.get((target, source))
            _slice(axis, panel.harmonised if panel is not None else None)
    axes[1, 0].set_title("target, raw", fontsize=8)
    return figure


def _slice(axis: Axes, pixels: np.ndarray | None) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if pixels is None:
        axis.set_facecolor("#f4f4f4")
    else:
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
