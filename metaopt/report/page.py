"""Pages from templates: whole in one file, in both themes, with nothing from elsewhere. What a run holds is escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, UndefinedError
from jinja2.utils import missing
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from metaopt.errors import UserError, printable
from metaopt.files import replacing
from metaopt.report import words
from metaopt.report.panels import COLOURS, LEARNED
from metaopt.report.svg import to_svg
from metaopt.runs import tables

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

Drawings = tuple[Markup, Markup]  # a figure as SVG, for a wide page and for a narrow one


class Absent(ChainableUndefined):
    """A field that a JSON record lacks, as those of older runs do. Whatever else a template misses is its mistake."""

    def __init__(self, hint: Any = None, obj: Any = missing, name: Any = None, exc: Any = UndefinedError) -> None:
        super().__init__(hint, obj, name, exc)
        if name is not None and obj is not None and not isinstance(obj, Mapping):
            self._fail_with_undefined_error()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _optional(show: Callable[..., str]) -> Callable[..., str]:
    """Takes what a record lacks for null."""
    return lambda value, *more: show(None if isinstance(value, Absent) else value, *more)


def _shown(value: Any) -> Any:
    """What a template shows of a value: of words no letter that cannot be seen."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(value: Any) -> Markup:
    """Words that may go on in the next line after an underscore, a dot and the like; no word breaks."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/])(?=[^\s_/])|(?<=[.,:=])(?=[^\W\d_])", printable(str(value))))


def _prose(value: Any) -> Markup:
    """Sentences in which flags such as --num-tasks stay in one piece."""
    parts = re.split(r"(?<!\S)(--[\w.-]*\w)", printable(str(value)))
    return Markup("").join(
        Markup("<span class=whole>{}</span>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


TEMPLATES = Environment(
    loader=PackageLoader("metaopt.report"),
    autoescape=True,
    undefined=Absent,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals |= {"LIGHT": LIGHT, "DARK": DARK}
TEMPLATES.filters |= {name: _optional(getattr(words, name)) for name in ("number", "interval", "share", "wordy")}
TEMPLATES.filters |= {"sha256": _digest, "breakable": _breakable, "prose": _prose, "setting": tables.setting}
TEMPLATES.filters["ratio"] = tables.ratio


def write_page(template: str, out: Path, **context: Any) -> Path:
    """Writes a page in one go. Returns its path.

    Args:
      context: what the template shows; strings are escaped, `Markup` is not. Control characters are shown as \\x1b.

    Raises:
      UserError: it cannot be written.
    """
    text = TEMPLATES.get_template(template).render(**context)
    try:
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name may hold bytes that are no text
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out.") from None
    return out


def drawings(draw: Callable[[bool], Figure | None], prefix: str, description: str) -> Drawings | None:
    """`draw(narrow)` as SVG in both forms; None where there is nothing to draw.

    Args:
      prefix: keeps the ids of a page's drawings apart.
      description: what a screen reader says.
    """
    forms = []
    for narrow in (False, True):
        figure = draw(narrow)
        if figure is None or not figure.axes:
            return None
        forms.append(Markup(to_svg(figure, prefix=f"{prefix}{'n' if narrow else 'w'}", description=description)))
    return forms[0], forms[1]
