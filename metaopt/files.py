"""Files that appear whole or not at all, and JSON in them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaopt.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def try_writing(folder: Path) -> None:
    """Raises OSError where no file can be made in a folder."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    os.close(handle)
    os.unlink(name)


def sweep(path: Path) -> None:
    """Removes the temporary files of `replacing` that a killed process left in a folder."""
    for part in path.glob(".*.part"):
        part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Writes valid, indented JSON in one go."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as part:
        # A file's name may hold bytes that are no text: JSON's own escapes, which read as the same name again.
        part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, for those who only look; an empty one where it is missing or broken."""
    try:
        held = read_json(path)
    except UserError:
        return {}
    return held if isinstance(held, dict) else {}
