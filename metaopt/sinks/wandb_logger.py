"""Weights & Biases, the only file that imports it: in a process of its own, which reads the run folder as it grows.

Training starts that process, tells it by closing a pipe that the run has ended, and waits for nothing else; whatever
happens in it, to wandb's own processes or to the network, is one line on the console. It logs offline into the run's
folder. With `online` a third process uploads what it logs, once the server is seen to answer.

`python -m metaopt.sinks.wandb_logger RUN OPTIONS` is that process; OPTIONS are JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaopt.experiment import Log
from metaopt.files import home, read_object, replacing
from metaopt.runs.folder import BEGUN_WITH, CONFIG, DOCTOR, ENVIRONMENT, EVALUATION, METRICS, SWEEP
from metaopt.runs.metrics import HEALTH, Follower, Thinner, numbers
from metaopt.sinks.contents import artifact_files, card_of, curve_rows, doctor_rows, pictures, result_rows
from metaopt.sinks.uploads import Uploader

POLL = 1.0  # seconds between two looks at metrics.jsonl
PATIENCE = 30.0  # seconds that the end of a run waits until the offline files are whole
LAST = 120.0  # seconds after which a process that hangs at the end of a run ends itself
UPLOAD_PATIENCE = 600.0  # seconds after the end of a run in which an upload may still finish
MOST_ROWS = 2000  # of training; of a longer run, means over neighbouring meta-steps
COUNTED = {*HEALTH} - {"alive", "failed"}
LONGEST_KEY = 150  # characters of a picture's name, which becomes that of a file
NICENESS = 5  # training goes first where cores are short

# ----- in the process that trains -------------------------------------------------------------------------------------


@contextlib.contextmanager
def logging_beside(
    path: Path,
    mode: str,
    say: Callable[[str], None],
    *,
    stats: bool = True,
    patience: float = PATIENCE,
    upload_patience: float = UPLOAD_PATIENCE,
) -> Iterator[int | None]:
    """Within the block a process logs the run folder to wandb; yields its id, None where it could not be started.

    At the block's end it logs what the folder then holds: the evaluation, the doctor's examination, the optimizer.

    Args:
      mode: "offline" or "online".
      say: takes the lines that tell what became of it, also from another thread.
      stats: log what this process takes of the machine.
      patience: seconds to wait at the end; what has not answered by then goes on by itself.
    """
    options = {"mode": mode, "pid": os.getpid() if stats else None, "upload_patience": upload_patience}
    command = [sys.executable, "-P", "-m", "metaopt.sinks.wandb_logger", str(path.resolve()), json.dumps(options)]
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    if home() is None:  # wandb does not begin without one
        environment["HOME"] = str(path.resolve() / "wandb")
    try:
        (path / "wandb").mkdir(exist_ok=True)
        with open(path / "wandb" / "process.log", "ab") as log:
            # In a session of its own: Ctrl-C is for training.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        say(_off(f"{type(error).__name__}: {error.strerror}"))
        yield None
        return
    done = threading.Event()
    reader = threading.Thread(target=_pass_on, args=(process, say, done), daemon=True)
    reader.start()
    try:
        yield process.pid
    finally:
        _end(process, done, patience, say)


def _pass_on(process: subprocess.Popen[bytes], say: Callable[[str], None], done: threading.Event) -> None:
    """Says the process's lines as they come; an end without the word `done` is a death."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"done"):
            done.set()
        elif line.startswith(b"say "):
            say(line[4:].decode(errors="replace").rstrip("\n"))
    if not done.is_set():
        say(_off(f"its process ended with status {process.wait()}"))
        done.set()


def _end(process: subprocess.Popen[bytes], done: threading.Event, patience: float, say: Callable[[str], None]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        answered = done.wait(patience)
    except KeyboardInterrupt:  # it goes on to its end by itself
        return
    if not answered:
        say(f"wandb: not done within {patience:g} s; it goes on by itself, or ends itself")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)  # where an upload goes on, it outlives training


def _off(reason: str) -> str:
    return f"wandb: off from here on ({reason}); metrics.jsonl goes on"


# ----- in the process that logs ---------------------------------------------------------------------------------------


def main(path: Path, options: Mapping[str, Any]) -> int:
    """Logs the run folder until standard input closes, then what there is at the end. Returns the exit status."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    patience, log = float(options["upload_patience"]), path / "wandb" / "upload.log"
    uploader = Uploader(log, patience=patience, say=lambda text: _say(f"wandb: {text}"))
    try:
        _log_run(path, options, uploader)
    except Exception as error:  # a dead wandb-core raises ConnectionResetError into its caller, among others
        first = str(error).strip().partition("\n")[0]
        _say(_off(f"{type(error).__name__}: {first}"))
        _tell("done")
        uploader.kill()
        return 1
    uploader.end()
    _tell("done")
    uploader.wait()
    return 0


def _tell(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        print(line, flush=True)


def _say(text: str) -> None:
    _tell("say " + " ".join(text.split()))


def _watch_input(ended: threading.Event, whole: threading.Event) -> None:
    """Standard input closes when training closes it, or dies. A wandb that hangs then would live for ever."""
    while os.read(0, 4096):
        pass
    ended.set()
    if not whole.wait(LAST):
        os._exit(1)


def _log_run(path: Path, options: Mapping[str, Any], uploader: Uploader) -> None:
    ended, whole = threading.Event(), threading.Event()
    threading.Thread(target=_watch_input, args=(ended, whole), daemon=True).start()
    server = server_with_key() if options["mode"] == "online" else None  # the offline run, once begun, denies any key
    run = _start(path, options["pid"])
    folder = Path(run.dir).parent
    _say(f"wandb: offline in {folder}")
    if server is not None:
        command = [sys.executable, "-P", "-m", "wandb", "beta", "sync", "--live", "--yes", str(folder)]
        uploader.begin(command, server, f"wandb sync {folder}")
    elif options["mode"] == "online":
        _say(f"wandb: no key; after `wandb login` upload with `wandb sync {folder}`")
    # From its first row on also where the run was resumed: offline runs cannot be resumed, so that each part of a run
    # is whole, has the run's id, and takes the place of the part before when it is uploaded.
    meta_steps = read_object(path / CONFIG).get("num_meta_steps") or 1
    follower, thinner = Follower(path / METRICS), Thinner(-(-meta_steps // MOST_ROWS))
    totals: dict[str, float] = {}
    last = False
    while not last:
        last = ended.wait(POLL)
        for row in follower.new_rows():
            for name, value in numbers(row).items():
                if name in COUNTED:
                    totals[name] = totals.get(name, 0.0) + value
            for step, values in thinner.add(row):
                run.log({**values, "meta_step": step})
        if (path / EVALUATION).exists():
            import metaopt.report.pictures  # noqa: F401  # takes a while, and the end should not
        uploader.look()
    for step, values in thinner.rest():
        run.log({**values, "meta_step": step})
    run.summary.update({f"health/{name}_total": total for name, total in totals.items()})
    try:
        _log_end(run, path)
    finally:  # whatever of it cannot be logged, the run before it is whole
        run.finish()
    whole.set()


def _start(path: Path, pid: int | None) -> Any:
    # Staged artifacts stay in the run's folder too.
    os.environ.setdefault("WANDB_DATA_DIR", str(path / "wandb"))
    import wandb

    config, environment = read_object(path / CONFIG), read_object(path / ENVIRONMENT)
    environment.pop(BEGUN_WITH, None)
    experiment = environment.get("experiment") or path.parent.name
    run = wandb.init(
        mode="offline",
        id=run_id(path),
        **labels(path, experiment, config.get("log") or {}),
        dir=str(path),
        config={**config, "experiment": experiment, "environment": environment},
        settings=wandb.Settings(
            console="off",
            silent=True,
            finish_timeout=PATIENCE,
            x_transaction_log_flush_interval=1.0,
            x_disable_stats=pid is None,
            x_stats_pid=pid or os.getpid(),  # the machine as training uses it, not as this process does
            # environment.json says it, and no code leaves the machine.
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_save_requirements=False,
        ),
    )
    # Its own step counter counts rows; the meta-step is the axis.
    run.define_metric("meta_step", hidden=True)
    run.define_metric("*", step_metric="meta_step")
    run.define_metric("validation/*", step_metric="meta_step", summary="min,last")
    return run


def server_with_key() -> str | None:
    """The server, None where there is no key for it: in the environment, in wandb's settings, or in ~/.netrc."""
    import wandb
    from wandb.sdk.lib import wbauth  # `wandb.login` would write the user's settings

    server = wandb.setup().settings.base_url
    return server if wbauth.authenticate_session(host=server, source="metaopt", prompt=False) else None


def labels(path: Path, experiment: str, log: Mapping[str, Any]) -> dict[str, Any]:
    """What wandb calls a run, as `wandb.init` takes it; None: wandb's own variable says it, or there is nothing to say.

    A sweep's runs are together under its name, others under that of their experiment.

    Args:
      log: the fields of `Log`, where there are any.
    """
    sweep = (path.parent / SWEEP).is_file()
    found: dict[str, Any] = {}
    for name, (variable, most, default) in {
        "project": ("WANDB_PROJECT", 128, Log.project),
        "entity": ("WANDB_ENTITY", None, None),
        "name": ("WANDB_NAME", 128, f"{path.parent.name}/{path.name}"),
        "notes": ("WANDB_NOTES", None, None),
        "job_type": ("WANDB_JOB_TYPE", 64, "sweep" if sweep else "train"),
        "group": ("WANDB_RUN_GROUP", 128, path.parent.name if sweep else experiment),
    }.items():
        given = log.get(name) or default
        # What was asked for comes first, then the variable, then what is so by itself.
        said = given == default and os.environ.get(variable)
        found[name] = None if said or given is None else given if most is None else shortened(given, most)
    return {**found, "tags": tuple(shortened(tag, 64) for tag in log.get("tags") or ()) or None}


def shortened(name: str, most: int) -> str:
    """A name of at most so many characters; what is too long ends in a hash of the whole, and stays one of its kind."""
    return name if len(name) <= most else f"{name[: most - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def run_id(path: Path) -> str:
    """One id for all processes of a run, and for no other run: drawn once and kept in its folder."""
    file = path / "wandb" / "run_id"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[a-z0-9]{8,64}", held := file.read_text(encoding="utf-8").strip()):
            return held
    parts = sorted(file.parent.glob("offline-run-*-*"))  # of a version that kept it nowhere else
    made = parts[-1].name.rpartition("-")[2] if parts else secrets.token_hex(6)
    file.parent.mkdir(exist_ok=True)
    with replacing(file) as part:
        part.write_text(f"{made}\n", encoding="utf-8")
    return made


def _log_end(run: Any, path: Path) -> None:
    """Evaluation and examination as tables and pictures, the optimizer with its card as an artifact."""
    import wandb

    evaluation, doctor = read_object(path / EVALUATION), read_object(path / DOCTOR)
    results: Sequence[Mapping[str, Any]] = evaluation.get("results") or []
    tables = {
        "evaluation/results": result_rows(results),
        "evaluation/curves": curve_rows(results),
        "doctor/meta_gradients": doctor_rows(doctor),
    }
    logged: dict[str, Any] = {}
    for name, rows in tables.items():
        columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            logged[name] = wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows])
    for name, file, caption in pictures(results, doctor, path / "wandb" / "pictures"):
        logged[shortened(name, LONGEST_KEY)] = wandb.Image(str(file), caption=caption)
    if logged:
        run.log(logged)
    for row in result_rows(results):
        where = f"evaluation/{row['task']}/{row['horizon']}/{row['optimizer']}"
        shown = ("mean", "median", "failed", *(key for key in row if key.startswith("P(")))
        run.summary.update({f"{where}/{key}": row[key] for key in shown if row[key] is not None})
    for index, entry in enumerate(doctor.get("advice") or [], start=1):
        run.summary[f"doctor/advice/{index}"] = entry.get("text")
    files = artifact_files(path)
    if files:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{run.group}-{path.name}")
        artifact = wandb.Artifact(shortened(name, 128), type="optimizer", metadata=card_of(path))
        for file in files:
            artifact.add_file(str(file))
        run.log_artifact(artifact)


if __name__ == "__main__":
    # No clean-up at exit: wandb's would wait for a process that may be gone.
    os._exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
