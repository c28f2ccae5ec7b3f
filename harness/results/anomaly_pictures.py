"""Pictures of the anomaly track: maps over a few slices with what they call abnormal, and how methods came to them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.results import detections
from harness.results.detections import Detection, Pictures
from harness.results.figures import shortened, styled
from harness.results.shown import Shown

LESION, FIXED, BEST = "#00c46a", "#56B4E9", "#ffffff"
DASHED = (0, (2, 1))
ACROSS = 10
"""Methods beside one another; more are shown in a second figure."""
STEPS = 12
"""Pictures of a strip beside one another; more go on below."""
MOST_STRIPS = 4
MARGIN = 2
CELL, GAP, LEFT = 1.1, 0.05, 0.3
"""Inches: side of a picture, space between two, and room for names at the left."""

Box = tuple[slice, slice]


def all_pictures(folder: Path, settings: Sequence[str], names: Sequence[str]) -> Iterator[Shown]:
    """Maps of each setting, methods in the order given, then a figure of strips for each method."""
    found = detections.read_detections(folder)
    for setting in settings:
        own = [detection for detection in found if detection.target == setting]
        methods = [name for name in names if name in {detection.method for detection in own}]
        parts = evenly(methods, ACROSS)
        for number, part in enumerate(parts, 1):
            more = f" Methods {number} of {len(parts)}." if len(parts) > 1 else ""
            caption = f"{setting}: example slices and maps.{more}"
            figure = panels([detection for detection in own if detection.method in part], part)
            yield Shown(f"maps-{setting}-{number}", f"maps {setting}", caption, figure, raster=True)
    shown = detections.read_pictures(folder)
    for name in names:
        own_pictures = _spread([each for each in shown if each.method == name and each.captions], settings)
        if own_pictures:
            yield Shown(f"steps-{name}", "steps", f"{name}.", strips(own_pictures[:MOST_STRIPS]), raster=True)


def _spread(found: Sequence[Pictures], settings: Sequence[str]) -> list[Pictures]:
    """The same, one of each setting before a second of any."""
    turns: dict[str, int] = {}
    keyed: list[tuple[int, int, int, Pictures]] = []
    for each in found:
        turns[each.target] = turns.get(each.target, 0) + 1
        place = settings.index(each.target) if each.target in settings else len(settings)
        keyed.append((turns[each.target], place, len(keyed), each))
    return [each for *_, each in sorted(keyed, key=lambda item: item[:3])]


def evenly(items: Sequence[Any], most: int) -> list[list[Any]]:
    """The items in as few parts of at most `most` as there can be, of nearly one length."""
    count = math.ceil(len(items) / most)
    bounds = [len(items) * part // count for part in range(count + 1)] if count else [0]
    return [list(items[start:stop]) for start, stop in itertools.pairwise(bounds)]


class _Sheet:
    """A figure of pictures, each put in its place; x and y in inches from the upper left. One set of axes is fast."""

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height))
        self._axis = self.figure.add_axes((0, 0, 1, 1))
        self._axis.set(xlim=(0, width), ylim=(height, 0))
        self._axis.set_axis_off()
        self._axis.set_autoscale_on(False)

    def picture(self, x: float, y: float, pixels: np.ndarray, *, top: float = 255, colours: str = "gray") -> None:
        """Pixels CELL wide; `colours` run from 0 to `top`."""
        extent = (x, x + CELL, y + _height(pixels.shape), y)
        self._axis.imshow(pixels, cmap=colours, vmin=0, vmax=top, interpolation="nearest", extent=extent, aspect="auto")

    def outline(self, x: float, y: float, inside: np.ndarray, colour: str, dashes: object = "-") -> None:
        """A line about the pixels `inside` of a picture in this place."""
        if not inside.any():
            return
        # Framed by what is outside, so that a line closes at the border too.
        framed = np.pad(inside, 1).astype(np.float32)
        side = CELL / inside.shape[1]
        rows, columns = (side * (np.arange(length) - 0.5) for length in framed.shape)
        self._axis.contour(
            x + columns, y + rows, framed, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=[dashes]
        )

    def text(self, x: float, y: float, text: str, size: float = 7, **look: Any) -> None:
        """Text whose lower left corner is here."""
        self._axis.text(x, y, text, fontsize=size, **{"ha": "left", "va": "bottom", **look})

    def beside(self, y: float, text: str, height: float) -> None:
        """The name of a line, upright at its left."""
        self.text(LEFT - 0.06, y + height / 2, shortened(text, 24), rotation=90, ha="right", va="center")


def _height(shape: Sequence[int]) -> float:
    return CELL * shape[0] / shape[1]


# ------------------------------------------------------------------------------------------- maps


@styled
def panels(shown: Sequence[Detection], methods: Sequence[str]) -> Figure:
    """A line for each slice, the input with the lesion's outline and each method's map; below it reconstructions.

    A map's colours run from 0 to twice the best threshold, alike for all slices of a method; an outline on it holds
    what is called abnormal, solid at the threshold fixed on healthy slices, dashed at the one that the labels chose.
    """
    found = {(each.subject, each.number, each.method): each for each in shown}
    slices = {(each.subject, each.number): each for each in reversed(shown)}
    tops = {name: colour_top([each for each in shown if each.method == name]) for name in methods}
    rebuilt = any(each.reconstruction is not None for each in shown)
    boxes = {place: _box(each.input) for place, each in slices.items()}
    heights = {place: _height(slices[place].input[box].shape) for place, box in boxes.items()}
    at = [LEFT + (CELL + GAP) * number for number in range(len(methods) + 1)]
    y = 0.4
    deep = sum((height + GAP) * (1 + rebuilt) for height in heights.values())
    sheet = _Sheet(max(at[-1] + CELL, 5.4), y + deep + 0.3)
    sheet.text(at[0], y - 0.04, "input", 8, weight="bold")
    for x, name in zip(at[1:], methods, strict=True):
        sheet.text(x, y - 0.18, shortened(name, 17), 7.5, weight="bold")
        sheet.text(x, y - 0.04, f"0 to {tops[name]:.3g}", 6.5, color="#555555")
    for place in dict.fromkeys((each.subject, each.number) for each in shown):
        box, height, one = boxes[place], heights[place], slices[place]
        sheet.beside(y, f"{place[0]}, {place[1]}", height)
        sheet.picture(at[0], y, one.input[box])
        sheet.outline(at[0], y, one.lesion[box], LESION)
        if rebuilt:
            sheet.picture(at[0], y + height + GAP, one.input[box])
        for x, name in zip(at[1:], methods, strict=True):
            detection = found.get((*place, name))
            if detection is None:
                sheet.text(x + CELL / 2, y + height / 2, "no map", ha="center", va="center", color="#777777")
                continue
            sheet.picture(x, y, _finite(detection.map)[box], top=tops[name], colours="magma")
            fixed, best = called(detection)
            sheet.outline(x, y, fixed[box], FIXED)
            sheet.outline(x, y, best[box], BEST, DASHED)
            if detection.reconstruction is not None:
                sheet.picture(x, y + height + GAP, detection.reconstruction[box])
        y += (height + GAP) * (1 + rebuilt)
    handles = [
        Line2D([], [], color=LESION, lw=1.4, label="lesion"),
        Line2D([], [], color=FIXED, lw=1.4, label="abnormal at the fixed threshold"),
        Line2D([], [], color="#444444", lw=1.4, ls=DASHED, label="at the best threshold (white)"),
    ]
    sheet.figure.legend(handles=handles, loc="lower left", ncols=3, fontsize=7, borderaxespad=0.2)
    return sheet.figure


def colour_top(shown: Sequence[Detection]) -> float:
    """Where the colours of a method's maps end: at twice its best threshold, where that says anything.

    Else at a value that one in 200 pixels above 0 exceeds; never above the highest value shown.
    """
    values = np.concatenate([_finite(each.map)[each.map > 0] for each in shown]) if shown else np.zeros(0)
    if not values.size:
        return 1.0
    best = shown[0].best
    top = 2 * best if math.isfinite(best) and best > 0 else float(np.quantile(values, 0.995))
    return min(top, float(values.max()))


def called(detection: Detection) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that are abnormal at the fixed threshold and at the best one, bool [H, W] each.

    The map is kept in half precision, so thresholds are rounded alike. The fixed one lies just above a score that is
    not called, from which rounding may not tell it apart; the best one is a score that is called itself.
    """
    with np.errstate(over="ignore"):
        fixed, best = np.float16(detection.threshold), np.float16(detection.best)
    return detection.map > fixed, detection.map >= best


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float32), posinf=float(np.finfo(np.float16).max))


def _box(pixels: np.ndarray) -> Box:
    """The brain with a little margin, or everything where there is none."""
    spans = []
    for axis, length in ((1, pixels.shape[0]), (0, pixels.shape[1])):
        filled = np.flatnonzero(pixels.any(axis=axis))
        start, stop = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, length)
        spans.append(slice(max(0, start - MARGIN), min(length, stop + MARGIN)))
    return spans[0], spans[1]


# ------------------------------------------------------------------------------------------- steps


@styled
def strips(shown: Sequence[Pictures]) -> Figure:
    """A line for each slice, or several where its pictures are many: a method's pictures, each under its caption."""
    title = 0.2
    lines = [(each, part) for each in shown for part in evenly(range(len(each.captions)), STEPS)]
    columns = max(len(part) for _, part in lines)
    heights = [title + _height(each.images.shape[1:]) + GAP for each, _ in lines]
    sheet = _Sheet(LEFT + (CELL + GAP) * columns, sum(heights))
    y = 0.0
    for (each, part), height in zip(lines, heights, strict=True):
        for column, place in enumerate(part):
            x = LEFT + (CELL + GAP) * column
            sheet.text(x, y + title - 0.03, shortened(each.captions[place], 19))
            sheet.picture(x, y + title, each.images[place])
        if part[0] == 0:
            sheet.beside(y + title, f"{each.target}: {each.subject}, {each.number}", height - title - GAP)
        y += height
    return sheet.figure
