"""Figures as files, and as SVG that takes its colours from the page around it."""

from __future__ import annotations

import re
from html import escape
from io import StringIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from metaopt.errors import printable
from metaopt.report.panels import COLOURS


def save_png(figure: Figure, path: Path) -> Path:
    """Writes a figure on white, 160 dots an inch."""
    figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return path


def to_svg(figure: Figure, *, prefix: str, description: str) -> str:
    """A figure as an `<svg>` element for a page: transparent, as wide as its place, colours as CSS variables.

    `prefix` keeps its ids apart from other figures'; `description` is what a screen reader says. Escaped here.
    """
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return for_page(buffer.getvalue(), prefix=prefix, description=description)


def for_page(text: str, *, prefix: str, description: str) -> str:
    """The same of a figure that matplotlib has written as SVG."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # A tenth of a point is finer than a screen shows; that, and no blanks, halves the page.
    body = re.sub(r">\s+<", "><", body)
    body = re.sub(r"<[^>]*>", lambda tag: _for_page(tag[0], prefix), body)  # what stands between is a name, as it is
    label = escape(printable(description), quote=True)
    return f'<svg {box[0]} role="img" aria-label="{label}">{body}'


def _for_page(tag: str, prefix: str) -> str:
    tag = re.sub(
        r' (d|x|y|transform)="[^"]*"',
        lambda found: re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.1f}".removesuffix(".0"), found[0]),
        tag,
    )
    tag = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\s*([MLQCzZ])\s*", r"\1", path[0]), tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r"(?<=[:;]) (?=[^\"<>]*\")", "", tag)
    tag = re.sub(r'id="([^"]*)"', rf'id="{prefix}-\1"', tag)
    tag = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", tag)
    tag = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{prefix}-\1"', tag)
    # The page's own font; matplotlib laid the text out with one that is a little wider.
    tag = re.sub(r"font-family:[^;\"]*;?", "", tag)
    tag = re.sub(r"font: ?([^;\"]*?)'[^;\"]*", r"font:\1system-ui, sans-serif", tag)
    for role, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{role}, {colour})")
    return tag
