"""Where a command is given: other encodings, closed streams, full disks, no home, variables with impossible values."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaopt import files, streams
from metaopt.cli import devices
from metaopt.cli import entry as cli
from metaopt.errors import UserError

ROOT = Path(cli.__file__).parents[2]
PARTS = ("metaopt", "experiments", "benchmarks", "examples", "scripts")


OLD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a locale with ASCII alone


def shell(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script for sh in which $METAOPT is the command."""
    metaopt = f"{sys.executable} -m metaopt"
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "METAOPT": metaopt}
    return subprocess.run(
        ["timeout", "100", "bash", "-c", script], capture_output=True, encoding="utf-8", env=path | variables
    )


# ----- what is printed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_everything_can_be_printed_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in held.items():
        monkeypatch.setattr(sys, name, stream)
    for words in (["--help"], ["list", "lstm"], ["train", "quadratic_bp", "--help"], ["runs", "ω"], ["ψ\udcff"]):
        assert cli.main(words) == (2 if len(words[-1]) < 3 else 0)
    for stream in held.values():
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in held.values())  # type: ignore[attr-defined]
    assert ("α_t ξ_t d_t/‖d_t‖" if encoding == "utf-8" else "alpha_t xi_t d_t/||d_t||").encode() in out
    assert b"?" not in out.partition(b"options, as")[0]
    assert ("ω" if encoding == "utf-8" else "omega").encode() in err


def test_a_byte_of_a_path_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("utf-8", "ascii"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        streams.prepare()
        print(os.fsdecode(b"caf\xe9\xff"), "é", flush=True)
        accent = "é" if encoding == "utf-8" else "e"
        assert stream.buffer.getvalue() == b"caf\xe9\xff " + accent.encode() + b"\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("$METAOPT --help >&-", 0, ""),
        ("$METAOPT nonsense 2>&-", 2, ""),
        ("$METAOPT --help >/dev/full", 1, "metaopt: error: cannot write the output: No space left on device; mend"),
        # Closed by a reader that is gone before a word is written.
        ("{ sleep 1; $METAOPT --help; echo $? >&2; } | true", 0, "141\n"),
    ],
)
def test_streams_that_are_closed_full_or_unread(script: str, status: int, said: str) -> None:
    done = shell(script)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(said) and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_file_opened_under_a_closed_stream_is_not_printed_into(tmp_path: Path) -> None:
    code = (
        "from metaopt import streams; streams.prepare(); file = open('f', 'w'); print('printed', flush=True);"
        "import os; os.write(1, b'by C'); assert file.fileno() > 2"
    )
    done = shell(f'cd {tmp_path}; {sys.executable} -c "{code}" <&- >&- 2>&-')
    assert done.returncode == 0 and (tmp_path / "f").read_text(encoding="utf-8") == ""


# ----- a disk that takes no more --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file can grow beyond 100 bytes: to whoever writes, in whatever language, it is as a disk that is full.

    No fixture: pytest's own lines, which may go to a file, are written before a fixture ends.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _json(path: Path) -> None:
    files.write_json(path, list(range(1000)))


def _page(path: Path) -> None:
    with files.replacing(path) as part:
        part.write_text("x" * 1000, encoding="utf-8")


def _png(path: Path) -> None:
    from matplotlib.figure import Figure

    from metaopt.report.svg import save_png

    with files.replacing(path) as part:
        save_png(Figure(), part)


def _csv(path: Path) -> None:
    import pandas

    with files.replacing(path) as part:
        pandas.DataFrame({"x": range(1000)}).to_csv(part)


def _parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with files.replacing(path) as part:
        parquet.write_table(pyarrow.table({"x": range(1000)}), part)


def _safetensors(path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    with files.replacing(path) as part:
        save_file({"x": np.zeros(1000)}, part)


@pytest.mark.parametrize("write", [_json, _page, _png, _csv, _parquet, _safetensors])
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with pytest.raises(OSError, match="File too large") as caught, small_disk():
        write(tmp_path / "held")
    assert caught.value.filename == str(tmp_path / "held")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "held.json"), "held.json: No space left on device; mend that and give"),
        (OSError(30, "Read-only file system"), "cannot write the output: Read-only file system; mend that and give"),
    ],
)
def test_a_command_on_a_full_disk_ends_in_one_line(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, words: list[str]) -> None:
        raise error

    monkeypatch.setattr("metaopt.cli.commands.run", run)
    assert cli.main(["report", "x"]) == 1
    assert capsys.readouterr().err == f"metaopt: error: {said} the command again.\n"


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old", encoding="utf-8")
    with small_disk():
        assert cli.main(["report", str(finished), "--out", str(page)]) == 2
    error = capsys.readouterr().err
    assert error == f"metaopt: error: cannot write {page}: File too large; give another --out.\n"
    assert page.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [page]


def test_a_command_in_a_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["runs"]) == 2
    assert capsys.readouterr().err == "metaopt: error: the current folder is gone; change to one that is there.\n"


def test_an_error_about_something_else_stays_what_it_is(tmp_path: Path) -> None:
    for error in (UserError("Permission denied"), ValueError("no"), FileNotFoundError(2, "No such file", "x")):
        with pytest.raises(type(error)) as caught, files.replacing(tmp_path / "held"):
            raise error
        assert caught.value is error


# ----- no home --------------------------------------------------------------------------------------------------------


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of a number without a name, as in many containers."""

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)


def test_without_a_home_there_is_no_cache_and_a_tilde_is_a_mistake(
    homeless: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.home() is None and files.cache_home() is None
    devices.configure_jax(1)
    assert cli.main(["evaluate", "x", "--out=~/there"]) == 2
    assert capsys.readouterr().err == (
        "metaopt: error: ~/there: there is no such home folder here; write the whole path, or set HOME.\n"
    )


def test_wandb_gets_a_home_without_which_it_does_not_begin(
    homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaopt.sinks import wandb_logger

    given = {}

    def start(command: list[str], *, env: dict[str, str], **_: object) -> None:
        given.update(env)
        raise PermissionError(13, "Permission denied")

    said: list[str] = []
    monkeypatch.setattr(wandb_logger.subprocess, "Popen", start)
    with wandb_logger.logging_beside(tmp_path, "offline", said.append):
        assert said == ["wandb: off from here on (PermissionError: Permission denied); metrics.jsonl goes on"]
    assert given["HOME"] == str(tmp_path / "wandb")


NOBODY = "setpriv --reuid 54321 --regid 54321 --clear-groups"  # a user without a name


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root may be another user")
def test_a_user_without_a_name_trains() -> None:
    if shell(f"{NOBODY} {sys.executable} -c 'import cattrs, tests'").returncode:
        pytest.skip("this environment or checkout is closed to other users")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o777)
        Path(folder, "mine.py").write_text(EXPERIMENT, encoding="utf-8")
        done = shell(f"cd {folder}; {NOBODY} $METAOPT train mine.py --out run", **OLD)
        assert (done.returncode, done.stderr) == (0, "")
        assert Path(folder, "run", "report.html").stat().st_size and "report: run/report.html" in done.stdout


EXPERIMENT = """from tests.toys import TINY
EXPERIMENT = TINY
"""


# ----- paths ----------------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_everywhere(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metaopt import plugins
    from metaopt.runs import folder
    from metaopt.shipped.loading import load

    monkeypatch.setenv("HOME", str(finished.parent))
    load(f"~/{finished.name}")
    load(Path("~", finished.name, "optimizer.safetensors"))
    assert folder.open_run(Path("~/run"))[0] == finished
    with pytest.raises(UserError, match="exists and is not empty"):
        folder.new_folder(Path("~/run"), tmp_path)
    assert files.written_out("--out=~/run") == f"--out={finished}"
    assert [files.written_out(word) for word in ("--seed=3", "a~b", "x=~/y", "")] == ["--seed=3", "a~b", "x=~/y", ""]
    assert cli.main(["runs", "compare", "~/run", "~/run"]) == 0
    assert "are equal" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no plugin ~/mine.py; give a .py file"):
        plugins.full_name("~/mine.py")
    (tmp_path / "mine.py").write_text("", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert plugins.full_name("~/mine.py") == str(tmp_path / "mine.py")


def test_a_folder_whose_path_is_no_text_is_refused_for_training_and_read(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = os.fsdecode(b"caf\xff")
    run = shutil.copytree(finished, tmp_path / odd / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EXPERIMENT, encoding="utf-8")
    for words in (["train", "mine.py", "--out", odd], ["train", "--resume", f"{odd}/run", "--num-meta-steps", "12"]):
        assert cli.main(words) == 2
        error = capfdbinary.readouterr().err
        assert error.startswith(b"metaopt: error: cannot write to the folder caf\\udcff"), error
        assert b"its whole path is not UTF-8; " in error and error.count(b"\n") == 1
    monkeypatch.chdir(tmp_path / odd)
    assert cli.main(["train", "../mine.py"]) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["run"]
    monkeypatch.chdir(tmp_path)
    capfdbinary.readouterr()
    for words in (
        ["runs", odd],
        ["report", f"{odd}/run"],
        ["export", f"{odd}/run", "--to", "csv"],
        ["status", f"{odd}/run"],
    ):
        assert cli.main(words) == 0
    assert b"caf\\udcff/run/report.html\n" in capfdbinary.readouterr().out
    assert (run / "report.html").read_text(encoding="utf-8")


def test_json_holds_a_byte_of_a_path_and_gives_it_back(tmp_path: Path) -> None:
    value = {os.fsdecode(b"caf\xff"): os.fsdecode(b'"\xe9\\')}
    files.write_json(tmp_path / "held.json", value)
    (tmp_path / "held.json").read_text(encoding="utf-8")
    assert files.read_json(tmp_path / "held.json") == value


def test_every_file_of_text_has_its_encoding_named() -> None:
    """Else it is written in the letters of whoever runs it, and read in those of another."""
    unnamed = []
    for path in sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_text(node) and not {"encoding"} & {k.arg for k in node.keywords}:
                unnamed.append(f"{path}:{node.lineno}")
    assert unnamed == []


def _is_text(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keywords = {each.arg: ast.unparse(each.value) for each in call.keywords}
    if name in ("run", "Popen", "check_output"):
        return "True" in (keywords.get("text"), keywords.get("universal_newlines"))
    modes = [ast.unparse(each) for each in call.args[1:2]] + [keywords.get("mode", "'r'")]
    of_os = isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "os"
    return name in ("read_text", "write_text") or (name in ("open", "fdopen") and not of_os and "b" not in modes[0])


# ----- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "XLA_FLAGS",
            "--xla_no_such_flag=2",
            "XLA_FLAGS=--xla_no_such_flag=2: Unknown flag in XLA_FLAGS: --xla_no_such",
        ),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=x", "Couldn't interpret value x for flag xla_force_host"),
        ("XLA_FLAGS", "nowhere", 'Could not open file "nowhere"'),
        ("SLURM_PROCID", "first", "SLURM_PROCID is 'first', which is no number; unset it, or start with `srun`"),
        ("SLURM_PROCID", "", "SLURM_PROCID is '', which is no number"),
        ("SLURM_PROCID", "2", "SLURM_PROCID=2 is not below SLURM_STEP_NUM_TASKS=2; unset both, or mend them."),
        ("OMPI_COMM_WORLD_SIZE", "-2", "OMPI_COMM_WORLD_SIZE is '-2', which is no number"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "x", "OMPI_COMM_WORLD_LOCAL_RANK is 'x', which is no number"),
    ],
)
def test_a_variable_with_an_impossible_value_is_one_line(
    variable: str,
    value: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if variable.startswith("SLURM"):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    if variable.startswith("OMPI"):
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv(variable, value)
    assert cli.main(["train", "quadratic_bp"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("metaopt: error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_PLATFORMS": "quantum"}, "JAX_PLATFORMS=quantum: Unable to initialize backend 'quantum': "),
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: there is no such device here; unset it to use what there is."),
        ({"JAX_ENABLE_X64": "maybe"}, "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'; unset the "),
    ],
)
def test_a_device_that_is_not_there_is_one_line(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    done = shell(f"cd {tmp_path}; $METAOPT train quadratic_bp", **variables)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"metaopt: error: {said}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ----- accepted in silence before -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer", ""], "'' names no entry and no option"),
        (["--optimizer", ":"], "':' names no entry and no option"),
        (["--optimizer", " "], "' ' names no entry and no option"),
        (["--estimator="], "'' names no entry and no option"),
        (["--optimizer", "lstm:hidden_size=3,hidden_size=4"], "gives the option hidden_size twice"),
        (["--optimizer", ":hidden_size=3,hidden_size=3"], "gives the option hidden_size twice"),
        (["--objective", ""], "'' names no entry"),
        (["--seed", "1", "--seed=2"], "--seed is given 2 times"),
        (["--num-devices", "1024"], "`num_devices` (1024) is more than the "),
    ],
)
def test_what_says_nothing_or_the_same_thing_twice_is_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert cli.main(["train", "quadratic_rl", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["evaluate", "networks_rl"], ["doctor", "networks_rl"]])
def test_no_command_makes_more_devices_than_cores(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--num-devices", "1000"]) == 2
    assert "`num_devices` (1000) is more than the" in capsys.readouterr().err


def test_a_run_goes_on_with_as_many_devices_as_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "configure_jax", lambda number: None)
    devices.configure_for_training(None, 1000)
    with pytest.raises(UserError, match="more than the"):
        devices.configure_for_training(1000, None)
