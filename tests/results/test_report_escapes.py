"""Every text of a results folder is somebody's: none of it becomes a tag of the report."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from harness.results import html, leaderboard
from harness.results.runinfo import DatasetInfo, MethodInfo

HARM = "\"'><img src=x onerror=alert(1)><script>alert(1)</script>{{ 7*7 }}</title>"


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.images: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images |= {(value or "")[:11] for name, value in attrs if name == "src"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_text_becomes_a_tag(build: Callable[..., Path], toy: Any) -> None:
    method = MethodInfo(
        name="good", id=HARM, family=HARM, reference=HARM, traits={HARM: True}, fields={HARM: {HARM: [HARM]}}, doc=HARM
    )
    others = [MethodInfo(name=name, id=name, family="harmonizer") for name in toy.bases if name != "good"]
    data = DatasetInfo(
        id=HARM, name=HARM, simulated=True, label_names=("background", HARM, "WM"), **{"licence": HARM, HARM: HARM}
    )
    changes = dict.fromkeys(("run_id", "track", "description", "started", "version", "commit", "published"), HARM)
    folder = build(
        with_exhibits=False,
        **changes,
        dataset=data,
        methods=(method, *others),
        task=method,
        environment={HARM: HARM},
        unlabelled_sites=(HARM,),
    )
    board = leaderboard.build(folder)
    shown = [html.Shown(HARM, section, HARM, Figure()) for section in ("matrices", "ranks", "curves")]
    page = Tags(html.render(board, shown, 1))
    assert "script" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on")}
    assert page.images == {"data:image/"}
    assert page.text.count("<script>alert(1)</script>{{ 7*7 }}</title>") > 15
