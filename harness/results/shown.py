"""A figure as the report shows it and keeps it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import cached_property

from matplotlib.figure import Figure

from harness.results import figures


@dataclass(frozen=True)
class Shown:
    """A figure of the report: its name as a file, its caption, and the figure."""

    name: str
    section: str
    caption: str
    figure: Figure
    raster: bool = False

    @property
    def file(self) -> str:
        """File name: what is no letter, digit or "-" becomes "_"."""
        return re.sub(r"[^\w\-]", "_", self.name, flags=re.ASCII) + (".png" if self.raster else ".svg")

    @cached_property
    def data(self) -> bytes:
        """The figure as PNG or SVG."""
        return figures.png(self.figure, 110) if self.raster else figures.svg(self.figure)

    @property
    def uri(self) -> str:
        """The figure as a data: URI."""
        kind = "png" if self.raster else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"
