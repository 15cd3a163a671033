"""The run folder: made, opened, locked; files in it appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metaopt.experiment import Experiment, UserError
from metaopt.runs.json_config import from_json, to_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
DOCTOR = "doctor.json"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
OPTIMIZER = "optimizer.safetensors"  # the best φ by validation
LATEST_OPTIMIZER = "optimizer_latest.safetensors"


# ----- whole files ----------------------------------------------------------------------------------------------------


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Writes valid, indented JSON in one go."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The JSON in a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None


# ----- a new folder ---------------------------------------------------------------------------------------------------


class NewFolder:
    """A folder in the making: `discard` takes away what it made and nothing else."""

    def __init__(self, path: Path, made: list[Path]) -> None:
        self.path = path
        self._made = made  # folders that were not there before, outermost first

    def discard(self) -> None:
        """Removes the files written into the folder and the folders made for it."""
        import shutil

        if self.path in self._made:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            for entry in self.path.iterdir():  # it was empty before
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def new_folder(out: Path | None, default_parent: Path) -> NewFolder:
    """Makes the folder `out`, by default the next number in `default_parent`, for example runs/digits_rl/001.

    Raises:
      UserError: it exists with something in it, or cannot be written.
    """
    if out is None:
        return _numbered(default_parent)
    if out.is_dir() and any(out.iterdir()):
        remedy = f"go on with `metaopt train --resume {out}` or give" if (out / CONFIG).is_file() else "give"
        raise UserError(f"{out} exists and is not empty; {remedy} another --out.")
    return _make(out, exist_ok=True)


def _numbered(parent: Path) -> NewFolder:
    numbers = [int(path.name) for path in parent.glob("*") if path.name.isdecimal()] if parent.is_dir() else []
    number = max(numbers, default=0) + 1
    while True:
        try:
            return _make(parent / f"{number:03}", exist_ok=False)
        except FileExistsError:  # another run took the number at the same moment
            number += 1


def _make(path: Path, *, exist_ok: bool) -> NewFolder:
    missing = [folder for folder in reversed([path, *path.parents]) if not folder.exists()]
    folder = NewFolder(path, missing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=exist_ok)
        with replacing(path / CONFIG):  # whether files can be made in it
            raise _Tried
    except _Tried:
        return folder
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok and path.is_dir():
            raise
        for made in reversed(missing):
            with contextlib.suppress(OSError):
                made.rmdir()
        raise UserError(f"cannot write to the folder {path}: {error.strerror}; give another --out.") from None


class _Tried(Exception):
    pass


def create_run(out: Path | None, name: str, experiment: Experiment) -> NewFolder:
    """A new run folder with its config.json."""
    folder = new_folder(out, Path("runs") / name)
    try:
        write_json(folder.path / CONFIG, to_json(experiment))
    except BaseException:
        folder.discard()
        raise
    return folder


# ----- a folder that is there -----------------------------------------------------------------------------------------


def open_run(path: Path) -> tuple[Path, Experiment]:
    """A run's folder and experiment.

    Raises:
      UserError: the path is not a run folder, or its config.json is broken.
    """
    if not path.exists():
        raise UserError(f"there is no run folder {path}.")
    config = path / CONFIG
    if not config.is_file():
        runs = sorted(path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f"did you mean {runs[-1].parent}?" if runs else "give the folder that `metaopt train` printed."
        raise UserError(f"{path} is not a run folder, for it has no {CONFIG}; {hint}")
    return path, from_json(read_json(config), str(config))


def _environment(path: Path) -> dict[str, Any]:
    file = path / ENVIRONMENT
    environment = read_json(file) if file.is_file() else {}
    return environment if isinstance(environment, dict) else {}


def experiment_name(path: Path) -> str | None:
    """What the experiment of a run folder is called; None where its environment.json does not tell."""
    name = _environment(path).get("experiment")
    return name if isinstance(name, str) and name else None


def devices_begun_with(path: Path) -> int | None:
    """The number of devices that jax saw when a run began; None where its environment.json does not tell."""
    device = _environment(path).get("device")
    count = device.get("count") if isinstance(device, dict) else None
    return count if isinstance(count, int) and count > 0 else None


def last_checkpoint(path: Path) -> int | None:
    """The meta-step of a run's latest whole checkpoint; None where there is none."""
    steps = [int(entry.name) for entry in (path / CHECKPOINTS).glob("*") if entry.name.isdecimal()]
    return max(steps, default=None)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder; the lock goes with the process, however it ends.

    Raises:
      UserError: another process holds it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {path}; wait for it or end it.") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
