"""A report as a test reads it."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page's tables by the section they stand in, its text, tags and figures; unbalanced tags are an error."""

    EMPTY = ("meta", "img", "link", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.classes: dict[str, list[list[list[str]]]] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self.summaries: dict[str, list[str]] = {}
        self._words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in known if name.startswith("on")]
        if tag == "section":
            self._section = known.get("id") or ""
        if tag == "a":
            self.links.append(known.get("href") or "")
        for kept in (self.tables, self.classes):
            of = kept.setdefault(self._section, [])
            if tag == "table":
                of.append([])
            elif tag == "tr":
                of[-1].append([])
            elif tag in ("td", "th"):
                of[-1][-1].append("" if kept is self.tables else known.get("class") or "")
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._words.setdefault(self._section, []).append(data)
        if "summary" in self._open and "strong" in self._open:
            self.summaries.setdefault(self._section, []).append(data)
        if {"td", "th"} & set(self._open):
            row = self.tables[self._section][-1][-1]
            row[-1] = f"{row[-1]} {data}".strip()

    @property
    def sections(self) -> set[str]:
        """Ids of the sections that say anything."""
        return set(self._words) - {""}

    def text(self, section: str | None = None) -> str:
        words = [w for s, of in self._words.items() if section in (None, s) for w in of]
        return re.sub(r"\s+", " ", " ".join(words))

    def table(self, section: str, number: int = 0) -> list[list[str]]:
        """Rows of cells; line breaks are blanks."""
        return [[re.sub(r"\s+", " ", cell) for cell in row] for row in self.tables[section][number]]
