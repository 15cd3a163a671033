"""What a user did wrong, in one line with the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake: the command line prints its one line and exits with status 2."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`"'lstn' is unknown; did you mean 'lstm'? Known: ..."`, for error messages."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"{name!r} is unknown{hint} Known: {', '.join(known)}."
