"""Several real processes: the same φ as one, one writer, and an end instead of a hang when one of them is lost."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import metaopt
from metaopt.errors import UserError
from metaopt.experiment import Evaluation, Experiment, Log, Validation
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.launch.machine import accelerator, shares
from metaopt.launch.process_group import NOISE, _Group, _idle_cores, _take_processes, launch
from metaopt.registry import choice
from metaopt.runs import train as train_module
from metaopt.runs.folder import last_checkpoint
from metaopt.runs.processes import Job, devices_each, find_job
from metaopt.runs.train import resume, train

EXPERIMENT = Experiment(
    tasks=(choice("quadratic", dim=3),),
    optimizer=choice("lstm", hidden_size=4, num_layers=1, noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=6,
    num_tasks=4,
    horizon=6,
    unroll_length=3,  # so that the inner runs, shared out among the devices, are part of the state
    checkpoint_every=2,
    validation=Validation(every=4, num_tasks=2, multiples=(1,)),
    evaluation=Evaluation(num_tasks=2, horizons=(6,), baselines=()),
    log=Log(every=2),
)
ENDLESS = dataclasses.replace(  # it is only begun and ended
    EXPERIMENT,
    optimizer=choice("adam"),
    estimator=choice("truncated_backprop"),
    num_meta_steps=10**6,
    validation=Validation(every=0),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiments and a cache of compiled code."""
    place = tmp_path_factory.mktemp("launch")
    write_json(place / "tiny.json", to_json(EXPERIMENT))
    write_json(place / "endless.json", to_json(ENDLESS))
    return place


@pytest.fixture
def unevaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(place / "cache"),
        "PYTHONPATH": str(Path(metaopt.__file__).parent.parent),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(jax.config.values["jax_disable_most_optimizations"])),
    }
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))  # more would be told of as idle
    command = ["timeout", "-k", "20", "150", "taskset", "-c", cores, sys.executable, "-m", "metaopt", "launch"]
    command += arguments
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def launched(place: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    with start(place, *arguments) as process:
        out, error = process.communicate()
    return process.returncode, out, error


def phi(path: Path) -> np.ndarray:
    arrays = load_file(path / "optimizer_latest.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def train_rows(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


# ----- two processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(place: Path) -> tuple[Path, str, str]:
    """(run folder, standard output, standard error) of a run in two processes."""
    status, out, error = launched(place, "tiny.json", "--processes", "2", "--out", "two")
    assert status == 0, error
    return place / "two", out, error


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    """The same run on one device, two meta-steps longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "_evaluate", lambda *args: None)
        return train(dataclasses.replace(EXPERIMENT, num_meta_steps=8, num_devices=1), place / "one")


def test_two_processes_train_as_one_does_and_one_of_them_writes(two: tuple[Path, str, str], one: Path) -> None:
    path, out, error = two
    rows, alone = train_rows(path), train_rows(one)[:6]
    assert [row["meta_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("meta_loss", "grad_norm", "step_length"):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in alone], rtol=2e-5)
    assert out.count("meta-step 6/6") == 1 and out.count("run folder: two") == 2
    assert "Gloo" not in out and error == ""
    environment = json.loads((path / "environment.json").read_text())
    assert environment["device"]["count"] == 2 and environment["device"]["processes"] == 2
    assert (path / "evaluation.json").is_file() and (path / "report.html").is_file()
    assert last_checkpoint(path) == 6


@pytest.mark.parametrize("num_devices", [1, 2])
def test_its_checkpoint_goes_on_in_one_process_on_any_number_of_devices(
    num_devices: int, two: tuple[Path, str, str], one: Path, tmp_path: Path, unevaluated: None
) -> None:
    path = Path(shutil.copytree(two[0], tmp_path / "run"))
    resume(path, num_meta_steps=8, num_devices=num_devices)
    assert [row["meta_step"] for row in train_rows(path)] == list(range(1, 9))
    np.testing.assert_allclose(phi(path), phi(one), rtol=1e-5, atol=1e-7)


def test_a_checkpoint_of_one_process_goes_on_in_two(one: Path, place: Path, unevaluated: None) -> None:
    whole = Path(shutil.copytree(one, place / "whole"))
    resume(whole, num_meta_steps=10)
    path = Path(shutil.copytree(one, place / "half"))
    status, out, error = launched(place, "--resume", "half", "--processes", "2", "--num-meta-steps", "10")
    assert status == 0, error
    assert "going on from meta-step 8 of 10" in out and "saved on 1 devices, going on with 2" in out
    np.testing.assert_allclose(phi(path), phi(whole), rtol=1e-5, atol=1e-7)


# ----- ends -----------------------------------------------------------------------------------------------------------


def proc(path: str) -> bytes:
    """A file under /proc; b"" where its process or thread has ended."""
    try:
        return Path("/proc", path).read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def children(pid: int) -> Iterator[int]:
    for task in list(Path(f"/proc/{pid}/task").glob("*")):
        for child in proc(f"{pid}/task/{task.name}/children").split():
            yield int(child)
            yield from children(int(child))


def process_of_job(launcher: subprocess.Popen[str], index: int) -> int:
    """The id of one process of the job that a launcher has started."""
    for child in children(launcher.pid):
        if f"METAOPT_PROCESS={index}".encode() in proc(f"{child}/environ").split(b"\0"):
            return child
    raise AssertionError(f"process {index} is not there")


def wait_for_checkpoint(path: Path, launcher: subprocess.Popen[str], least: int = 6) -> None:
    while launcher.poll() is None and (last_checkpoint(path) or 0) < least:
        time.sleep(0.05)
    assert launcher.poll() is None, launcher.stderr.read() if launcher.stderr else ""


@pytest.mark.parametrize("index", [0, 1])
def test_losing_a_process_ends_the_job_with_one_line_and_a_checkpoint(
    index: int, place: Path, unevaluated: None
) -> None:
    path = place / f"lost{index}"
    with start(place, "endless.json", "--processes", "2", "--out", path.name) as launcher:
        wait_for_checkpoint(path, launcher)
        members = [process_of_job(launcher, i) for i in range(2)]
        os.kill(members[index], signal.SIGKILL)
        began = time.monotonic()
        _, error = launcher.communicate()
    assert time.monotonic() - began < 25
    assert launcher.returncode == 1
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    step = last_checkpoint(path)
    assert error.splitlines() == [
        f"metaopt: error: process {index} of 2 ended by SIGKILL, and the others were stopped; "
        f"the last checkpoint is of meta-step {step}; go on with "
        f"`metaopt launch --resume {path.name} --processes 2`, or in one process with "
        f"`metaopt train --resume {path.name}`."
    ]
    config = json.loads((path / "config.json").read_text())
    config["num_meta_steps"] = end = (step or 0) + 2
    (path / "config.json").write_text(json.dumps(config))
    resume(path)
    assert [row["meta_step"] for row in train_rows(path)] == list(range(1, end + 1))


def test_a_process_that_hangs_ends_the_job_as_one_that_is_lost(place: Path) -> None:
    path = place / "hangs"
    with start(place, "endless.json", "--processes", "2", "--out", path.name) as launcher:
        wait_for_checkpoint(path, launcher)
        members = [process_of_job(launcher, i) for i in range(2)]
        os.kill(members[0], signal.SIGSTOP)
        _, error = launcher.communicate()  # until the heartbeats have been missed
    assert launcher.returncode == 1
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    assert [line for line in error.splitlines() if line.startswith("metaopt: ")] == [
        "metaopt: error: process 0 of 2 did not answer any more, and the others were stopped; "
        f"the last checkpoint is of meta-step {last_checkpoint(path)}; go on with "
        f"`metaopt launch --resume {path.name} --processes 2`, or in one process with "
        f"`metaopt train --resume {path.name}`."
    ]


def launcher_itself(launcher: subprocess.Popen[str]) -> int:
    (pid,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()  # `timeout`'s child
    return int(pid)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_saves_and_stops(signum: signal.Signals, place: Path) -> None:
    path = place / f"stopped{signum}"
    with start(place, "endless.json", "--processes", "2", "--out", path.name) as launcher:
        wait_for_checkpoint(path, launcher, least=2)
        members = [process_of_job(launcher, i) for i in range(2)]
        os.kill(launcher_itself(launcher), signum)
        _, error = launcher.communicate()
    assert launcher.returncode == 143, error
    assert [line for line in error.splitlines() if line] == [
        "SIGTERM: saving at the end of this chunk of meta-steps; Ctrl-C again stops at once",
        f"metaopt: saved; go on with `metaopt train --resume {path.name}`",
    ]
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    assert train_rows(path)[-1]["meta_step"] == last_checkpoint(path)


def test_the_processes_stop_saved_when_the_launcher_is_killed(place: Path) -> None:
    path = place / "orphaned"
    with start(place, "endless.json", "--processes", "2", "--out", path.name) as launcher:
        wait_for_checkpoint(path, launcher, least=2)
        members = [process_of_job(launcher, i) for i in range(2)]
        os.kill(launcher_itself(launcher), signal.SIGKILL)
        launcher.communicate()  # until the first process closes its output too
    until = time.monotonic() + 30
    while any(Path(f"/proc/{member}").exists() for member in members) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{member}").exists() for member in members)
    assert train_rows(path)[-1]["meta_step"] == last_checkpoint(path)


def test_a_process_is_read_on_when_nobody_reads_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    group = _Group(1, [])
    code = "import os; os.write(2, b'\\xff\\n' * 10**5)"  # more than a pipe holds, and not UTF-8
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, errors="replace") as process:
        group._running.append(process)
        monkeypatch.setattr(sys, "stderr", Gone())
        group._forward_errors()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny.json", "--num-tsks", "4"), "unrecognized options: --num-tsks, 4; did you mean --num-tasks"),
        (("tiny.json", "--out", "taken"), "taken exists and is not empty"),
    ],
)
def test_a_mistake_is_told_once(arguments: tuple[str, ...], message: str, place: Path) -> None:
    (place / "taken").mkdir(exist_ok=True)
    (place / "taken" / "file").touch()
    status, out, error = launched(place, *arguments, "--processes", "2")
    assert status == 2 and out == ""
    (line,) = error.splitlines()
    assert line.startswith("metaopt: error: ") and message in line


# ----- arguments and variables ----------------------------------------------------------------------------------------


def test_the_launcher_takes_its_own_option_and_passes_on_the_rest() -> None:
    assert _take_processes(["x", "--processes", "3", "--seed", "1"]) == (3, ["x", "--seed", "1"])
    assert _take_processes(["--resume", "runs/x", "--processes=2"]) == (2, ["--resume", "runs/x"])
    assert _take_processes(["x"]) == (len(os.sched_getaffinity(0)), ["x"])
    for arguments, message in [
        (["--processes", "2"], "the experiment's name is missing"),
        (["x", "--processes", "two"], re.escape("('two') must be a number")),
        (["x", "--processes"], "must be a number"),
        (["x", "--processes", "0"], "must be a number"),
    ]:
        with pytest.raises(UserError, match=message):
            _take_processes(arguments)


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 6})
    assert shares(2) == [[0, 1], [2, 5]]
    assert shares(6) == [[0, 1, 2, 5, 6]] * 6


def test_idle_cores_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    told = _idle_cores(2, ["x"])
    assert told is not None and told.startswith("8 cores, 2 processes with one device each; without --processes")
    for count, rest in [(8, ["x"]), (9, ["x"]), (1, ["x"]), (2, ["x", "--num_devices=4"]), (2, ["--resume", "x"])]:
        assert _idle_cores(count, rest) is None


def test_accelerators_are_left_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert accelerator({}, {"cuda"}, tmp_path) == "cuda"
    assert accelerator({}, {"rocm", "libtpu"}, tmp_path) is None
    assert accelerator({}, set(), tmp_path) is None
    assert accelerator({"CUDA_VISIBLE_DEVICES": ""}, {"cuda"}, tmp_path) is None
    assert accelerator({"JAX_PLATFORMS": "cpu"}, {"cuda"}, tmp_path) is None
    assert accelerator({"JAX_PLATFORMS": "cuda,cpu"}, set(), tmp_path) == "cuda"
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        UserError, match=re.escape("take its accelerators (cuda) in every process; use `metaopt train`")
    ):
        launch(["x", "--processes", "2"])


def test_a_process_that_finds_an_accelerator_ends_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.runs import processes

    monkeypatch.setenv(processes.COORDINATOR, "127.0.0.1:1234")
    monkeypatch.setattr(processes, "_divert_gloo", lambda: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    before = jax.config.values["jax_cpu_enable_async_dispatch"]
    try:
        with pytest.raises(UserError, match=re.escape("accelerators (gpu) in every process")):
            processes.join(Job(2, 1, "127.0.0.1:1234"))
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", before)


def test_what_is_written_to_a_closed_terminal_is_dropped() -> None:
    from metaopt.runs.processes import _Terminal

    ours, theirs = os.openpty()
    out = io.TextIOWrapper(io.BufferedWriter(_Terminal(theirs, "wb")), line_buffering=True)
    assert out.isatty()
    print("read", file=out)
    assert os.read(ours, 100) == b"read\r\n"
    os.close(ours)
    print("dropped", file=out)
    out.close()


@pytest.mark.parametrize(
    "line", ["[Gloo] Rank 0 is connected", "E1122 04:30:01.123456 1 coordination.cc:1] x", "    @     0x7f12 (unknown)"]
)
def test_lines_for_jaxs_developers_are_not_shown(line: str) -> None:
    assert NOISE.match(line) and not NOISE.match("metaopt: error: x") and not NOISE.match("Traceback (most recent")


SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_slurm_tasks_find_one_another_and_a_single_one_stays_alone() -> None:
    assert find_job(SRUN) == Job(2, 1, None)
    assert find_job({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    # A shell in an allocation of two tasks: one step of one task.
    assert find_job({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    # A batch script knows the allocation but is no step.
    assert find_job({key: value for key, value in SRUN.items() if "STEP" not in key}) is None
    assert find_job({}) is None


def test_the_launchers_variables_come_before_slurms() -> None:
    ours = {"METAOPT_COORDINATOR": "127.0.0.1:1234", "METAOPT_NUM_PROCESSES": "3", "METAOPT_PROCESS": "2"}
    assert find_job({**SRUN, **ours}) == Job(3, 2, "127.0.0.1:1234")
    assert find_job({**ours, "METAOPT_NUM_PROCESSES": "1", "METAOPT_PROCESS": "0"}) is None


def test_devices_are_shared_out_equally() -> None:
    job = Job(2, 0, None)
    assert [devices_each(job, number) for number in (None, 2, 6)] == [1, 1, 3]
    with pytest.raises(UserError, match=re.escape("`num_devices` (3), in all, must be a multiple of the 2 processes")):
        devices_each(job, 3)


def test_jax_joins_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaopt.runs import processes

    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: seen.update(options))
    before = jax.config.values["jax_cpu_enable_async_dispatch"]
    try:
        processes.join(Job(2, 1, None))
    finally:
        jax.config.update("jax_cpu_enable_async_dispatch", before)
    # Slurm's own variables tell jax where the coordinator is.
    assert seen == {"num_processes": 2, "process_id": 1, "heartbeat_timeout_seconds": processes.HEARTBEAT_SECONDS}
