"""A headless browser that opens a page of ours and is asked how it laid it out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

# What the page is asked once it is laid out; its answer goes to the document around it.
QUESTIONS = """<script>addEventListener("load", () => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height].map(Math.round); };
  const text = document.querySelectorAll("svg text, figcaption, .look, h2, th");
  const answer = {
    inner: innerWidth, wide: document.documentElement.scrollWidth, high: document.documentElement.scrollHeight,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    sections: [...document.querySelectorAll("section")].map(s => [s.querySelector("h2").textContent, box(s)]),
    figures: [...document.querySelectorAll("figure")].map(f => [f.className, box(f.querySelector("svg"))]),
    outside: [...document.querySelectorAll("svg[role=img]:not(.tile svg) text")].filter(t => {
      const r = t.getBoundingClientRect(), s = t.closest("svg").getBoundingClientRect();
      return r.left < s.left - 1 || r.right > s.right + 1; }).map(t => t.textContent),
    small: [...text].filter(t => parseFloat(getComputedStyle(t).fontSize) < 10.5).map(t => t.textContent),
  };
  parent.postMessage(JSON.stringify(answer), "*");
});</script>"""
# A window is at least 500 pixels wide, a frame in it as wide as a phone.
AROUND = """<!DOCTYPE html><script>addEventListener("message", message => {
  const pre = document.createElement("pre"); pre.id = "answer"; pre.textContent = message.data;
  document.body.append(pre);
});</script>
<body style="margin: 0"><iframe src="asking.html" style="border: 0; width: %dpx; height: 9000px"></iframe>"""


@dataclass(frozen=True)
class Layout:
    """What ``QUESTIONS`` asks of a page, and its screenshot as brightness."""

    answer: dict[str, Any]
    shown: npt.NDArray[np.int64]

    def seen(self, boxes: Iterable[tuple[int, int, int, int]]) -> bool:
        """Whether there is something to see in every box (left, top, width, height)."""
        parts = [self.shown[top : top + down, left : left + across] for left, top, across, down in boxes]
        return all(part.max() - part.min() > 60 for part in parts)

    def has_panels(self, names: list[str]) -> bool:
        """Whether these are the page's panels, in their order, each with room."""
        panels = self.answer["sections"]
        return [name for name, _ in panels] == names and all(w > 300 and h > 40 for _, (_, _, w, h) in panels)


@dataclass(frozen=True)
class Browser:
    """The program, and what it is asked of pages; screenshots stay in ``folder``."""

    program: str
    folder: Path

    def opened(self, page: Path, dark: bool, *more: str) -> str:
        """Standard output of a browser that has the page open; what its console says is an error."""
        line = [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        line += ["--hide-scrollbars", "--enable-logging=stderr", "--window-size=1300,9000"]
        line += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", *more, page.as_uri()]
        # a profile of its own: two browsers with one wait for each other
        with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            line[1:1] = [f"--user-data-dir={profile}"]
            done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    def laid_out(self, page: Path, width: int, dark: bool) -> Layout:
        """The page in a window of that width.

        Fails where the page is wider than its window, where text is too small or leaves its chart, and where the
        colours are not those of the scheme.
        """
        text = page.read_text(encoding="utf-8")
        (self.folder / "asking.html").write_text(text.replace("</body>", f"{QUESTIONS}</body>"), encoding="utf-8")
        around = self.folder / "around.html"
        around.write_text(AROUND % width, encoding="utf-8")
        document = self.opened(around, dark, "--dump-dom", "--virtual-time-budget=5000")
        answer: dict[str, Any] = json.loads(unescape(re.findall(r'<pre id="answer">(.*?)</pre>', document)[0]))
        assert answer["inner"] == width
        assert answer["wide"] <= width
        assert answer["outside"] == []
        assert answer["small"] == []
        light, other = (sum(map(int, re.findall(r"\d+", answer[part])[:3])) for part in ("paper", "ink"))
        assert (light < other) is dark
        picture = self.folder / f"{width}-{'dark' if dark else 'light'}.png"
        self.opened(around, dark, f"--screenshot={picture}")
        return Layout(answer, np.asarray(Image.open(picture).convert("L")).astype(np.int64))


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail(
            "chromium is not on PATH; install the package chromium (apt-get install -y chromium)", pytrace=False
        )
    return Browser(found, tmp_path)
