"""The run folder: made, opened, locked; files in it appear whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import metaopt
from metaopt import files
from metaopt.errors import UserError
from metaopt.experiment import Experiment, placed
from metaopt.experiment.plain import from_json, to_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
BEGUN_WITH = "config"  # in environment.json: config.json as it was when the run began
METRICS = "metrics.jsonl"
STATE = "state.json"
EVALUATION = "evaluation.json"
DOCTOR = "doctor.json"
INSPECTION = "inspect.json"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
OPTIMIZER = "optimizer.safetensors"  # the best φ by validation, at the last multiple of the horizon
BEST_AT = "optimizer_best_{}x.safetensors"  # at another of them
LATEST_OPTIMIZER = "optimizer_latest.safetensors"
LAST = "last"  # how φ was picked; or best_at(multiple)

# Of sweeps, which are launch's.
SWEEP = "sweep.json"  # in a sweep's folder
CANCELLED = "cancelled.json"  # in a run folder: it is not to be trained

LOCK_TRIES = 10


def best_at(multiple: int) -> str:
    """How φ was picked: by validation at a multiple of the training horizon."""
    return f"best at {multiple}x"


def picks(path: Path, experiment: Experiment) -> dict[str, Path]:
    """The run's φ by how it was picked, its own first: the best at the last multiple of the horizon."""
    own, *others = reversed(experiment.validation.multiples or (1,))
    found = {best_at(own): OPTIMIZER, **{best_at(other): BEST_AT.format(other) for other in others}}
    found[LAST] = LATEST_OPTIMIZER
    return {how: path / name for how, name in found.items() if (path / name).is_file()}


def named(name: str, picked: Mapping[str, Any]) -> dict[str, Any]:
    """Each pick under what an evaluation calls it: the first, the run's own, by the optimizer's name alone."""
    return {name if index == 0 else f"{name}, {how}": pick for index, (how, pick) in enumerate(picked.items())}


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
    refuse_bytes(default_parent if out is None else out, "give another --out")
    if out is None:
        return _numbered(default_parent)
    out = files.place(out)
    check_free(out)
    return _make(out, exist_ok=True)


def refuse_bytes(path: Path, remedy: str) -> None:
    """Raises UserError where a path is no text, which those who write checkpoints and tensors want."""
    text = str(path.absolute())
    try:
        same = os.fsencode(text) == text.encode()  # which differ under an older locale
    except UnicodeEncodeError:
        same = False
    if not same:
        raise UserError(f"cannot write to the folder {path}: its whole path is not UTF-8; {remedy}.")


def check_free(out: Path) -> None:
    """Raises UserError where a folder exists with something in it, or a file of that name does."""
    if os.path.isdir(out) and any(entry.name not in UNBORN for entry in out.iterdir() if not _is_part(entry)):
        raise _taken(out)
    if os.path.exists(out) and not os.path.isdir(out):
        raise UserError(f"cannot write to the folder {out}: it is a file; give another --out.")


UNBORN = (ENVIRONMENT,)  # what a run killed before it began leaves behind: its config.json comes last


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".part")


def _taken(out: Path) -> UserError:
    remedy = f"go on with `{resume_command(out)}` or give" if (out / CONFIG).is_file() else "give"
    return UserError(f"{out} exists and is not empty; {remedy} another --out.")


def _numbered(parent: Path) -> NewFolder:
    numbers = [int(path.name) for path in parent.glob("*") if path.name.isdecimal()] if parent.is_dir() else []
    number = max(numbers, default=0) + 1
    while True:
        try:
            return _make(parent / f"{number:03}", exist_ok=False)
        except FileExistsError:  # another run took the number at the same moment
            number += 1


def _make(path: Path, *, exist_ok: bool) -> NewFolder:
    missing = [folder for folder in reversed([path, *path.parents]) if not os.path.exists(folder)]
    folder = NewFolder(path, missing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=exist_ok)
        files.try_writing(path)
        return folder
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok and path.is_dir():
            raise
        for made in reversed(missing):
            with contextlib.suppress(OSError):
                made.rmdir()
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the folder {path}: {error.strerror}; give another --out.")


@contextlib.contextmanager
def create_run(
    out: Path | None, name: str, experiment: Experiment, environment: dict[str, Any] | None = None
) -> Iterator[NewFolder]:
    """A new run folder, locked within the block, with its environment.json and config.json.

    Raises:
      UserError: it exists with something in it, cannot be written, or another process takes it at this moment.
    """
    folder = new_folder(out, Path("runs") / safe_name(name))
    with locked(folder.path):
        if (folder.path / CONFIG).exists():  # another process was faster
            raise _taken(folder.path)
        try:
            if environment is not None:
                files.write_json(folder.path / ENVIRONMENT, environment)
            write_config(folder.path, experiment)
        except OSError as error:
            folder.discard()
            raise _unwritable(folder.path, error) from None
        except BaseException:
            folder.discard()
            raise
        yield folder


def write_config(path: Path, experiment: Experiment) -> None:
    """config.json, with the version of its format."""
    files.write_json(path / CONFIG, to_json(placed(experiment)))


def safe_name(text: str) -> str:
    """A name as part of a path, a page and a command: letters, digits and few signs, not too long, none hidden."""
    plain = "".join(sign if sign.isalnum() or sign in "._-=+,@%" else "_" for sign in text)
    return plain.encode()[:200].decode(errors="ignore").lstrip(".-") or "experiment"


def resume_command(path: Path) -> str:
    """The command that goes on with a run, for a shell to read."""
    from metaopt.runs import own_entries

    text = str(path)
    return shlex.join(
        ["metaopt", "train", "--resume", f"./{text}" if text.startswith("-") else text, *own_entries.flags(path)]
    )


# ----- a folder that is there -----------------------------------------------------------------------------------------


def open_run(path: Path) -> tuple[Path, Experiment]:
    """A run's folder and experiment.

    Raises:
      UserError: the path is not a run folder, or its config.json is broken or of a format that is not read here.
    """
    path = files.place(path)
    if not os.path.exists(path):
        raise UserError(f"there is no run folder {path}.")
    config = path / CONFIG
    if not config.is_file():
        if (path / SWEEP).is_file():
            command = f"metaopt resume {shlex.quote(str(path))}"
            raise UserError(f"{path} is a sweep: `{command}` goes on with all its runs; or name one of them.")
        runs = sorted(path.glob(f"*/{CONFIG}")) if path.is_dir() else []
        hint = f"did you mean {runs[-1].parent}?" if runs else "give the folder that `metaopt train` printed."
        raise UserError(f"{path} is not a run folder, for it has no {CONFIG}; {hint}")
    try:
        return path, from_json(files.read_json(config), str(config), unversioned=1)
    except UserError as error:
        versions: Any = None
        with contextlib.suppress(UserError):
            versions = environment_of(path).get("versions")
        wrote = versions.get("metaopt") if isinstance(versions, dict) else None
        if wrote in (None, metaopt.__version__):
            raise
        raise UserError(f"{error} (It was written by metaopt {wrote}; this is {metaopt.__version__}.)") from None


def lengthened(path: Path, experiment: Experiment, num_meta_steps: int) -> Experiment:
    """A run's experiment with more meta-steps in all.

    Raises:
      UserError: fewer than it has, or more where the learning rate's schedule has an end.
    """
    before, schedule = experiment.num_meta_steps, experiment.meta_optimizer.schedule
    if num_meta_steps < before:
        raise UserError(
            f"`num_meta_steps` ({num_meta_steps}) is less than the {before} of {path}; a run can only be lengthened."
        )
    if num_meta_steps > before and schedule != "constant":
        raise UserError(
            f"{path} cannot be lengthened: `meta_optimizer.schedule` ({schedule}) ends at meta-step {before}, and only "
            f"a constant one goes on; begin a new run with --num-meta-steps {num_meta_steps}."
        )
    return dataclasses.replace(experiment, num_meta_steps=num_meta_steps)


def environment_of(path: Path) -> dict[str, Any]:
    """A run's environment.json; empty where there is none."""
    file = path / ENVIRONMENT
    environment = files.read_json(file) if file.is_file() else {}
    return environment if isinstance(environment, dict) else {}


def experiment_name(path: Path) -> str | None:
    """What the experiment of a run folder is called; None where its environment.json does not tell."""
    name = environment_of(path).get("experiment")
    return safe_name(name) if isinstance(name, str) and name else None  # a stranger may have written it


def devices_begun_with(path: Path) -> int | None:
    """The number of devices that jax saw when a run began; None where its environment.json does not tell."""
    device = environment_of(path).get("device")
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
        for last in [False] * LOCK_TRIES + [True]:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    raise UserError(f"another process is training in {path}; wait for it or end it.") from None
                time.sleep(0.02)  # `is_locked` holds it for a moment
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool | None:
    """Whether a process is training in the folder; None where the file system has no locks or it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False
