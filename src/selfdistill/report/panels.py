"""The panels of images, cut from the sheets in a run's ``pictures/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from selfdistill.report.read import Pictures
from selfdistill.report.scatter import scatter
from selfdistill.report.sheet import GAP

_NAMES = {
    "views": "views and masks",
    "neighbours": "nearest neighbours",
    "embedding": "embedding map",
    "attention": "attention",
}


def views(pictures: Pictures) -> str:
    """Each image as it is stored, then what training makes of it."""
    panel = pictures.panels.get("views")
    if not panel:
        return ""
    titles = [title.replace("x", "×").replace("\n", ", ") for title in panel["titles"]]
    rows = [
        _row([_tile(panel, "views", row, column, title, _said(title)) for column, title in enumerate(titles)])
        for row in range(panel["rows"])
    ]
    return (
        _sheet(pictures, panel, "views")
        + "<p class=look>The first images of training and the views that the networks were given, with masks as "
        "training draws them. What they show should still be told by eye: what augmentation destroys cannot be "
        "learned. Blue covers masked patches, other colours the blocks to predict. s: the student sees it, t: the "
        "teacher.</p>"
        f"<div class=rows>{''.join(rows)}</div>"
    )


def neighbours(pictures: Pictures) -> str:
    """Test images with the training images that lie nearest."""
    panel = pictures.panels.get("neighbours")
    if not panel:
        return ""
    rows = []
    for row, (labels, similarity) in enumerate(zip(panel["labels"], panel["similarity"], strict=True)):
        tiles = [_tile(panel, "neighbours", row, 0, f"test image of class {labels[0]}", f"class {labels[0]}", "asked")]
        for column, (label, cosine) in enumerate(zip(labels[1:], similarity, strict=True), 1):
            right = "" if label == labels[0] else "wrong"
            spoken = f"neighbour {column}, class {label}, cosine {cosine:.3f}"
            tiles.append(_tile(panel, "neighbours", row, column, spoken, f"{label} · {cosine:.2f}", right))
        rows.append(_row(tiles))
    typical = panel["typical"]
    sure = (
        f"<h3>The surest mistakes, of the {panel['mistaken']:.1%} whose nearest is of another class</h3>"
        f"<div class=pairs>{''.join(rows[typical:])}</div>"
    )
    return (
        _sheet(pictures, panel, "neighbours")
        + f"<p class=look>Left a test image, then the nearest of {panel['bank']:,} training images by cosine, with "
        "their classes. Orange frames: another class. Neighbours should share what the picture shows, not its "
        "brightness or its place.</p>"
        f"<h3>One test image of a class</h3><div class=pairs>{''.join(rows[:typical])}</div>"
        + (sure if rows[typical:] else "")
    )


def map_of_images(pictures: Pictures) -> str:
    """Test images as points, coloured by class."""
    panel = pictures.panels.get("embedding")
    if not panel:
        return ""
    explained = [f" ({share:.0%})" for share in panel["explained"]] or ["", ""]
    axes = (f"first component{explained[0]}", f"second component{explained[-1]}")
    drawn = scatter("Principal components", axes, panel["pca"], panel["classes"])
    if panel["tsne"]:
        drawn += scatter("t-SNE", ("", ""), panel["tsne"], panel["classes"])
    return (
        f"<p class=look>Features of {len(panel['pca']):,} test images at length 1, each class in its colour and named "
        "at its middle. Classes apart: a linear classifier will do. A line or a point: dimensional or complete "
        "collapse. In t-SNE only who is near whom means something; sizes and distances of islands do not.</p>"
        f"<div class=charts>{drawn}</div>"
    )


def attention(pictures: Pictures) -> str:
    """Test images with what the last block attends to."""
    panel = pictures.panels.get("attention")
    if not panel:
        return ""
    rows = [
        _row([_tile(panel, "attention", row, column, title, title) for column, title in enumerate(panel["titles"])])
        for row in range(panel["rows"])
    ]
    return (
        _sheet(pictures, panel, "attention")
        + f"<p class=look>Attention of the last block ({escape(panel['who'])}) over the patches of test images; yellow "
        "is most, each map by its own range. Heads should differ and follow the object; all heads alike, or the same "
        "pattern for every image, is a sign of collapse.</p>"
        f"<div class=rows>{''.join(rows)}</div>"
    )


def left_out(pictures: Pictures) -> str:
    """A sentence on the panels that are not there, and why."""
    why: dict[str, list[str]] = {}
    for panel, name in _NAMES.items():
        if not pictures.panels.get(panel):
            reason = pictures.panels.get("left_out", {}).get(
                panel, "the run stored no pictures for it, or has not ended"
            )
            why.setdefault(reason, []).append(name)
    said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items())
    return f"<p class=facts>Left out: {escape(said)}.</p>" if said else ""


def _sheet(pictures: Pictures, panel: Mapping[str, Any], name: str) -> str:
    """The picture that the tiles of a panel are cut from, once."""
    width, height = (panel[key] * (panel["tile"] + GAP) for key in ("columns", "rows"))
    return (
        f'<svg class=sheet width=0 height=0 aria-hidden=true><image id="sheet-{name}" width="{width}" '
        f'height="{height}" href="{pictures.sheets[name]}"/></svg>'
    )


def _tile(panel: Mapping[str, Any], name: str, row: int, column: int, spoken: str, said: str, kind: str = "") -> str:
    side = panel["tile"]
    left, top = column * (side + GAP), row * (side + GAP)
    return (
        f'<figure class="tile {kind}"><svg viewBox="{left} {top} {side} {side}" role=img aria-label="{escape(spoken)}">'
        f'<use href="#sheet-{name}"/></svg><figcaption>{escape(said)}</figcaption></figure>'
    )


def _row(tiles: Sequence[str]) -> str:
    # six still fit beside each other on a phone
    return f'<div class="tiles{" six" if len(tiles) <= 6 else ""}">{"".join(tiles)}</div>'


def _said(title: str) -> str:
    """ "global 8×8, student + teacher" in the room of a tile."""
    what, _, who = title.partition(", ")
    letters = "".join(letter[0] for letter in who.split(" + ")) if who else ""
    return f"{what.partition('×')[0]} {'·'.join(letters)}".strip()
