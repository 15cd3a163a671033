"""The document around a report's sections: style, both themes, the script that sorts tables. Nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from metaopt.files import replacing
from metaopt.report.pictures import COLOURS, LEARNED

# The same roles on a dark ground; each keeps its hue, and stays as far from its neighbours for the colour-blind.
DARK_LEARNED = ("#ff8c42", "#5ab4f0", "#35c79a", "#e59cc8", "#e0b93f")
DARK_BASELINE = ("#b4bcc6", "#9aa3ae", "#828b96", "#6f7883", "#c8ced6")
assert len(DARK_LEARNED) == len(LEARNED)
DARK = {
    "ink": "#e3e6ea",
    "faint": "#3a414a",
    "paper": "#14181d",
    "quiet": "#9aa4af",
    "bad": "#ff9a80",
    **{f"learned-{index}": colour for index, colour in enumerate(DARK_LEARNED)},
    **{f"baseline-{index}": colour for index, colour in enumerate(DARK_BASELINE)},
}
LIGHT = {**COLOURS, "paper": "#ffffff", "quiet": "#5b6570", "bad": "#a8290f"}


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The whole document. `title` and `subtitle` are escaped here."""
    script, style = _file("report.js"), themes() + _file("report.css")
    # The browser runs this very script and fetches nothing, whatever a run's files have brought onto the page.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · metaopt</title><style>{style}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p class=quiet>{escape(subtitle)}</p>"
        "<button id=theme type=button hidden></button></header>"
        + "\n".join(section for section in sections if section)
        + f"</main><script>{script}</script></body></html>\n"
    )


def themes() -> str:
    """The colours of both themes: the system's, unless the page's button has chosen."""

    def variables(colours: Mapping[str, str]) -> str:
        return "".join(f"--{role}:{colour};" for role, colour in colours.items())

    light, dark = f"color-scheme:light;{variables(LIGHT)}", f"color-scheme:dark;{variables(DARK)}"
    return (
        f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        # On paper it is light.
        f"@media print{{:root,:root[data-theme=dark],:root:not([data-theme=light]){{{light}}}}}\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Writes a page in one go."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def _file(name: str) -> str:
    return (files("metaopt.runs") / name).read_text(encoding="utf-8")
