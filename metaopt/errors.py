"""What a user did wrong, in one line with the remedy."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: the command line prints its one line and exits with status 2."""


class MetaoptWarning(UserWarning):
    """What is allowed and likely not meant; the command line prints its one line, and Python says it as it does."""


def warn(text: str) -> None:
    """Says in one line what is likely not meant, and what to do."""
    warnings.warn(text, MetaoptWarning, stacklevel=3)


def printable(text: str, keep: str = "") -> str:
    """A text for a terminal: what would move its cursor, colour it or hide in it stands as an escape such as `\\x1b`.

    Args:
      keep: letters that stay as they are, such as the ends of several lines.
    """
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def suggest(name: str, known: Iterable[str]) -> str:
    """`"'lstn' is unknown; did you mean 'lstm'? Known: ..."`, for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r} is unknown{hint} Known: {', '.join(known)}."
