"""Several real processes, as `mpirun` and `srun` start them: φ as of one, one writer, and an end instead of a hang."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from metaopt.choices import choice
from metaopt.errors import UserError
from metaopt.experiment import Evaluation, Experiment, Log, Validation, optimizer_of
from metaopt.experiment.plain import to_json
from metaopt.files import write_json
from metaopt.launch.machine import accelerator, shares
from metaopt.runs import processes
from metaopt.runs import train as train_module
from metaopt.runs.folder import last_checkpoint
from metaopt.runs.optimizer_file import save_optimizer
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


Starter = Callable[[int, int], dict[str, str]]  # (which of two processes, number of the job) -> its variables
Start = Callable[..., list[subprocess.Popen[str]]]


def mpirun(index: int, job: int) -> dict[str, str]:
    """What Open MPI 4 tells the first and the second of two processes; jax derives the port from the job's number."""
    return {
        "OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:40000",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def srun(index: int, job: int) -> dict[str, str]:
    """What Slurm tells the two tasks of a step."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def hydra(index: int, job: int) -> dict[str, str]:
    """What MPICH tells, which jax does not know: both are children of one process on this machine."""
    return {"PMI_SIZE": "2", "PMI_RANK": str(index), "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": str(index)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiments."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def experiment(place: Path) -> Experiment:
    """One that begins with the φ of a file."""
    start = place / "start.safetensors"
    save_optimizer(start, optimizer_of(EXPERIMENT).init(jax.random.key(9)), EXPERIMENT, {})
    return dataclasses.replace(EXPERIMENT, start=str(start))


@pytest.fixture(scope="module", autouse=True)
def written(place: Path, experiment: Experiment) -> None:
    """The experiments as files."""
    write_json(place / "tiny.json", to_json(experiment))
    write_json(place / "endless.json", to_json(ENDLESS))


@pytest.fixture(scope="module")
def start(place: Path, environment: dict[str, str]) -> Start:
    """Starts `metaopt train` in two processes, as one of the functions above would have them."""

    def start(starter: Starter, *arguments: str) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "metaopt", "train", *arguments]
        job = time.monotonic_ns() // 10**6 % 4096
        pipe = subprocess.PIPE
        return [
            subprocess.Popen(
                command, cwd=place, env={**environment, **starter(index, job)}, stdout=pipe, stderr=pipe, text=True
            )
            for index in range(2)
        ]

    return start


@contextlib.contextmanager
def watched(pair: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Whatever happens in the block, none of the processes outlives it."""
    try:
        yield
    finally:
        for process in pair:
            process.kill()


def ends(pair: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit status, standard output, standard error) of each."""
    with watched(pair):
        outputs = [process.communicate(timeout=120) for process in pair]
    return [(process.returncode, *output) for process, output in zip(pair, outputs, strict=True)]


def phi(path: Path) -> np.ndarray:
    arrays = load_file(path / "optimizer_latest.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def train_rows(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def ours(error: str) -> list[str]:
    return [line for line in error.splitlines() if line.startswith("metaopt: ")]


# ----- two processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(place: Path, start: Start) -> tuple[Path, str, str]:
    """(run folder, standard output, standard error of the first) of a run in two processes."""
    (status, out, error), (other, other_out, other_error) = ends(start(mpirun, "tiny.json", "--out", "two"))
    assert status == other == 0, error + other_error
    assert "meta-step" not in other_out and other_error == ""
    return place / "two", out, error


@pytest.fixture(scope="module")
def one(place: Path, experiment: Experiment) -> Path:
    """The same run on one device, two meta-steps longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "_evaluate", lambda *args: None)
        return train(dataclasses.replace(experiment, num_meta_steps=8, num_devices=1), place / "one")


def test_two_processes_train_as_one_does_and_one_of_them_writes(two: tuple[Path, str, str], one: Path) -> None:
    path, out, error = two
    rows, alone = train_rows(path), train_rows(one)[:6]
    assert [row["meta_step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("meta_loss", "grad_norm", "step_length"):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in alone], rtol=2e-5)
    assert out.count("meta-step 6/6") == 1 and out.count("run folder: two") == 2 and error == ""
    environment = json.loads((path / "environment.json").read_text())
    assert environment["device"]["count"] == 2 and environment["device"]["processes"] == 2
    assert (path / "evaluation.json").is_file() and (path / "report.html").is_file()
    assert last_checkpoint(path) == 6


def test_its_checkpoint_goes_on_in_one_process_on_one_device(
    two: tuple[Path, str, str], one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    path = Path(shutil.copytree(two[0], tmp_path / "run"))
    resume(path, num_meta_steps=8, num_devices=1)
    assert [row["meta_step"] for row in train_rows(path)] == list(range(1, 9))
    np.testing.assert_allclose(phi(path), phi(one), rtol=1e-5, atol=1e-7)


def test_a_checkpoint_of_one_process_goes_on_in_the_two_tasks_of_a_step(
    one: Path, place: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_evaluate", lambda *args: None)
    whole = Path(shutil.copytree(one, place / "whole"))
    resume(whole, num_meta_steps=10)
    path = Path(shutil.copytree(one, place / "half"))
    (status, out, error), (other, _, _) = ends(start(srun, "--resume", "half", "--num-meta-steps", "10"))
    assert status == other == 0, error
    assert "going on from meta-step 8 of 10" in out and "saved on 1 devices, going on with 2" in out
    np.testing.assert_allclose(phi(path), phi(whole), rtol=1e-5, atol=1e-7)


# ----- ends -----------------------------------------------------------------------------------------------------------


def wait_for_checkpoint(path: Path, pair: Sequence[subprocess.Popen[str]]) -> None:
    while pair[0].poll() is None and (last_checkpoint(path) or 0) < 6:
        time.sleep(0.05)
    assert pair[0].poll() is None, pair[0].stderr.read() if pair[0].stderr else ""


@pytest.mark.parametrize(
    ("starter", "killed", "out", "name"),
    [(hydra, 1, ["--out", "lost"], "lost"), (srun, 0, [], "runs/endless/001")],  # which the second has to learn
)
def test_a_lost_process_is_told_of_in_one_line_by_the_other(
    starter: Starter, killed: int, out: list[str], name: str, place: Path, start: Start
) -> None:
    pair = start(starter, "endless.json", *out)
    with watched(pair):
        wait_for_checkpoint(place / name, pair)
        pair[killed].send_signal(signal.SIGKILL)
        status, _, error = ends(pair)[1 - killed]
    assert status == 1
    (line,) = ours(error)
    assert line.startswith("metaopt: error: another process of this job was lost (")
    step = last_checkpoint(place / name)
    assert f"; the last checkpoint is of meta-step {step}; go on with `metaopt train --resume {name}`, in as" in line


def test_a_signal_saves_and_stops_both(place: Path, start: Start) -> None:
    pair = start(mpirun, "endless.json", "--out", "stopped")
    with watched(pair):
        wait_for_checkpoint(place / "stopped", pair)
        for process in pair:  # as mpirun and srun pass it on
            process.send_signal(signal.SIGTERM)
        (status, _, error), (other, _, silent) = ends(pair)
    assert (status, other) == (143, 0) and silent == ""
    assert [line for line in error.splitlines() if line] == [
        "SIGTERM: saving at the end of this chunk of meta-steps; Ctrl-C again stops at once",
        "metaopt: saved; go on with `metaopt train --resume stopped`",
    ]
    assert train_rows(place / "stopped")[-1]["meta_step"] == last_checkpoint(place / "stopped")


def test_what_stops_the_first_one_stops_all_before_training_begins(place: Path, start: Start) -> None:
    (place / "taken").mkdir()
    (place / "taken" / "file").touch()
    (status, _, error), (other, _, told) = ends(start(mpirun, "tiny.json", "--out", "taken"))
    assert error == "metaopt: error: taken exists and is not empty; give another --out.\n"
    # Where jax is the first to notice it ends the other process itself, with words of its own.
    assert status == 2 and other in (1, -signal.SIGABRT)
    if other == 1:
        line = r"metaopt: error: another process of this job was lost \(.*\) before training began; see"
        assert re.search(line, told)


# ----- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("starter", "here"), [(mpirun, 2), (srun, None), (hydra, 2)])
def test_each_starter_is_understood_and_a_single_process_stays_alone(starter: Starter, here: int | None) -> None:
    variables = starter(1, 17)
    assert find_job(variables) == Job(2, 1, here, 1)
    assert find_job({name: "1" if "SIZE" in name or "TASKS" in name else "0" for name in variables}) is None
    assert find_job({}) is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PMI_SIZE": "two"}, "PMI_SIZE is 'two', which is no number; unset it"),
        ({"PMI_RANK": "-1"}, "PMI_RANK is '-1', which is no number"),
        ({"MPI_LOCALNRANKS": "9" * 50}, f"MPI_LOCALNRANKS is '{'9' * 40}', which is no number"),
        ({"PMI_SIZE": "1000000000"}, "PMI_SIZE is 1000000000; one run is trained by at most 4096 processes."),
    ],
)
def test_what_no_starter_says_is_one_line(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        find_job({**hydra(1, 17), **variables})


def test_a_shell_or_a_script_in_an_allocation_is_no_job_and_mpirun_within_one_is() -> None:
    variables = srun(0, 17)
    assert find_job({**variables, "SLURM_STEP_NUM_TASKS": "1"}) is None  # a shell: one step of one task
    assert find_job({name: value for name, value in variables.items() if "STEP" not in name}) is None
    assert find_job({**variables, "SLURM_STEP_NUM_TASKS": "1", **mpirun(1, 17)}) == Job(2, 1, 2, 1)


def test_finding_a_job_needs_no_jax() -> None:
    code = "import sys; from metaopt.runs.processes import find_job; find_job({}); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jax_is_told_only_what_it_does_not_find_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    assert processes._meeting_point(Job(2, 1, 2, 1), mpirun(1, 17)) == {}
    assert processes._meeting_point(Job(2, 1, None, 1), srun(1, 17)) == {}
    five = {**hydra(1, 17), "PMIX_NAMESPACE": "prterun-host-12@1"}
    told = processes._meeting_point(Job(2, 1, 2, 1), five)
    assert re.fullmatch(r"127\.0\.0\.1:6[1-5]\d{3}", told["coordinator_address"]) and told["local_device_ids"] == [1]
    assert told["coordinator_address"] == processes._meeting_point(Job(2, 0, 2, 0), five)["coordinator_address"]
    spread = Job(4, 1, 2, 1)  # two on this machine
    with pytest.raises(UserError, match="the 4 processes of this job do not find one another; `pip install mpi4py`"):
        processes._meeting_point(spread, five)
    assert processes._meeting_point(spread, {**five, "JAX_COORDINATOR_ADDRESS": "host:1234"}) == {}
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    assert processes._meeting_point(spread, five) == {"cluster_detection_method": "mpi4py"}


def test_devices_are_shared_out_equally() -> None:
    job = Job(2, 0, None, 0)
    assert [devices_each(job, number) for number in (None, 2, 6)] == [1, 1, 3]
    with pytest.raises(UserError, match=re.escape("`num_devices` (3), in all, must be a multiple of the 2 processes")):
        devices_each(job, 3)


# ----- this machine ---------------------------------------------------------------------------------------------------


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 6})
    assert shares(2) == [[0, 1], [2, 5]]
    assert shares(6) == [[0, 1, 2, 5, 6]] * 6


def test_accelerators_are_seen_without_jax(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert accelerator({}, {"cuda"}, tmp_path) == "cuda"
    assert accelerator({}, {"rocm", "libtpu"}, tmp_path) is None
    assert accelerator({}, set(), tmp_path) is None
    assert accelerator({"CUDA_VISIBLE_DEVICES": ""}, {"cuda"}, tmp_path) is None
    assert accelerator({"JAX_PLATFORMS": "cpu"}, {"cuda"}, tmp_path) is None
    assert accelerator({"JAX_PLATFORMS": "cuda,cpu"}, set(), tmp_path) == "cuda"
