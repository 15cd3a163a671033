"""Paths as people write them, files that appear whole or not at all, and JSON in them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaopt.errors import UserError

# Full, over its quota, too large a file, gone, read-only, no longer ours.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE)


# ----- paths ----------------------------------------------------------------------------------------------------------


def place(written: str | Path) -> Path:
    """A path as a person writes it, in an argument, an option or a variable: with a home folder in place of `~`.

    Raises:
      UserError: there is no such home.
    """
    try:
        return Path(written).expanduser()
    except RuntimeError:
        raise UserError(f"{written}: there is no such home folder here; write the whole path, or set HOME.") from None


def written_out(word: str) -> str:
    """A word of a command line without `~`, which shells leave alone after `=`, as in --out=~/runs.

    Raises:
      UserError: there is no such home.
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{place(value)}" if value.startswith("~") else word


def home() -> Path | None:
    """The user's home folder; None where there is none, as of a number without a name in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def cache_home() -> Path | None:
    """Where programs keep what they can make again; None where that is nowhere."""
    named, own = os.environ.get("XDG_CACHE_HOME"), home()
    return place(named) if named else own and own / ".cache"


def what_is_wrong(path: Path) -> str:
    """Why a path holds nothing that can be read, ` (Permission denied)`; empty where it is simply not there."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return " (a link to nothing)" if os.path.islink(path) else ""
    except (NotADirectoryError, ValueError):
        return ""
    except OSError as error:
        return f" ({error.strerror})"
    if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
        return f" ({os.strerror(errno.EACCES)})"
    return ""


# ----- writing and reading --------------------------------------------------------------------------------------------


def disk_trouble(error: BaseException) -> str | None:
    """What an error says of a disk that takes no more, in words; None where it is about something else."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _DISK else None
    # What is not written in Python puts the system's words into a text of its own.
    return next((os.strerror(code) for code in _DISK if os.strerror(code) in str(error)), None)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
      OSError: the disk takes no more, whatever the library that wrote in the block raised; it names `path`.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except Exception as error:
        trouble = None if isinstance(error, UserError) else disk_trouble(error)
        if trouble is None or getattr(error, "filename", None):
            raise
        code = next(code for code in _DISK if os.strerror(code) == trouble)
        raise OSError(code, trouble, str(path)) from error
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
        # A byte of a path that is no UTF-8 goes as JSON's own escape, which reads back as the same path.
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
