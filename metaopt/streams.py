"""What is printed: made legible where the terminal has other letters, and dropped where nobody reads. Needs no jax."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import unicodedata
from typing import Any

ERRORS = "metaopt"  # what `_legible` is called, for streams
# Letters with marks, superscripts and the Greek are spelt by their names; these stand for themselves alone.
_SIGNS = dict(zip("×·⊙−–—←→∞√∇∈≤≥≠±‖∥", "x * * - - - <- -> inf sqrt grad in <= >= != +- || ||".split(), strict=True))


def prepare() -> None:
    """Lets the standard streams take any text, and makes those that were closed before the program began."""
    codecs.register_error(ERRORS, _legible)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # The lowest free number, and so this stream's own: else the next file would have it, and be printed into.
            handle = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(handle, True)
            setattr(sys, name, open(handle, mode, encoding="utf-8", errors=ERRORS))
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def _legible(error: UnicodeError) -> tuple[bytes, int]:
    """What an encoding lacks in letters that it has; a byte of a path that is no text as that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for sign in error.object[error.start : error.end]:
        if "\udc80" <= sign <= "\udcff":
            parts.append(bytes([ord(sign) - 0xDC00]))
        else:
            parts.append(_plain(sign).encode(error.encoding, "replace"))
    return b"".join(parts), error.end


def _plain(sign: str) -> str:
    name = unicodedata.name(sign, "")
    if name.startswith("GREEK "):
        return name.split()[-1].lower()
    if unicodedata.combining(sign):  # a mark on the letter before
        return ""
    letters = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return _SIGNS.get(sign) or letters or "?"


def to_nowhere(file: Any) -> None:
    """What is printed from here on is dropped: its reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # what is no file has no number
        os.dup2(nowhere, file.fileno())
    os.close(nowhere)
