"""The command line of sweeps; what is left over are fields of the experiment, as `metaopt train` takes them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from metaopt.errors import UserError, suggest

PLACES = ("local", "slurm")
MOST_POINTS = 10_000  # of a sweep: a folder each
ONLY_SLURM = {
    "partition": ("P", "of each job, as are:"),
    "time": ("T", "minutes, or [DAYS-]HOURS:MINUTES:SECONDS"),
    "cpus": ("N", "cores"),
    "gpus": ("N", "on one node"),
    "mem": ("GB", "memory"),
}
ABOUT = """\
Many runs, one for each point of a grid, into one folder: `--out`, or the next runs/EXPERIMENT/sweep-NNN. `metaopt
status`, `metaopt cancel` and `metaopt resume` take it, or that of a run. One run in several processes is started by
`srun metaopt train EXPERIMENT` or `mpirun -n 2 metaopt train EXPERIMENT`."""


@dataclass(frozen=True)
class SweepOptions:
    """What the command line asks of a sweep."""

    experiment: str  # name or path
    fields: tuple[str, ...] = ()  # for `metaopt train`: the same for all points
    sweeps: tuple[str, ...] = ()  # FIELD=A,B,C or a file
    seeds: int | None = None
    where: str = "local"
    workers: int | None = None
    dry_run: bool = False
    detach: bool = False
    num_meta_steps: int | None = None  # on resuming: in all
    slurm: dict[str, str] = field(default_factory=dict)  # option -> value as written


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.rstrip('.')}; see `{self.prog} --help`.")


def _count(text: str) -> int:
    # Python itself refuses to read thousands of digits.
    if not (text.isascii() and text.isdecimal()) or len(text) > 20 or not 1 <= int(text) <= MOST_POINTS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be a number from 1 to {MOST_POINTS}")
    return int(text)


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_count, metavar="N", help="so many at once; here: each with its own cores")
    parser.add_argument("--detach", action="store_true", help="here: in the background")


def _parser() -> argparse.ArgumentParser:
    usage = "metaopt launch EXPERIMENT --sweep FIELD=A,B,C ... [--seeds N] [--where PLACE] [--field value ...]"
    parser = _Parser("metaopt launch", usage, ABOUT, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--sweep", nargs="+", action="extend", default=[], metavar="FIELD=A,B,C",
        help="a field and its values as `metaopt train` takes them; `;` separates values that hold commas, and ends a "
        "lone one: 'optimizer=lstm:hidden_size=8,num_layers=1;rnnprop'; a field of several words has "
        "them separated by spaces: 'validation.multiples=1 10;1 5'; or a .yaml or .json file of FIELD: [A, B, C], with "
        "`seeds: N`",
    )  # fmt: skip
    add(
        "--seeds",
        type=_count,
        metavar="N",
        help="each point with N seeds, from the experiment's `seed` on",
    )
    add("--dry-run", "--dry_run", action="store_true", help="check and show the points, and start nothing")
    add("--where", metavar="PLACE", help="local (the default), or slurm, as a job array: needs 'metaopt-jax[slurm]'")
    _add_local(parser)
    slurm = parser.add_argument_group("with --where slurm")
    for name, (metavar, what) in ONLY_SLURM.items():
        slurm.add_argument(f"--{name}", metavar=metavar, help=what)
    slurm.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="anything else that submitit or sbatch knows"
    )
    return parser


def read_options(arguments: Sequence[str]) -> SweepOptions:
    """The sweep that is asked for.

    Raises:
      UserError: no sweep is asked for, a value is missing or wrong, or options do not go together.
      SystemExit: help was asked for.
    """
    from metaopt.experiment.flags import refuse_repeated

    refuse_repeated(arguments, but=("--sweep", "--slurm"))
    given, rest = _parser().parse_known_args(arguments)
    flags = {word.partition("=")[0] for word in rest}
    if "--processes" in flags or not (given.sweep or given.seeds or given.where):
        raise UserError(_not_a_sweep(rest))
    if "--resume" in flags:
        raise UserError("a sweep begins new runs; go on with one by `metaopt resume SWEEP`.")
    if arguments[0].startswith("-"):
        raise UserError("the experiment comes first: `metaopt launch EXPERIMENT --sweep FIELD=A,B ...`.")
    where = given.where or "local"
    if where not in PLACES:
        raise UserError(f"--where {suggest(where, PLACES)}")
    slurm = {name: value for name in ONLY_SLURM if (value := getattr(given, name)) is not None}
    if where == "slurm" and given.detach:
        raise UserError("--detach is for --where local: Slurm's jobs are detached.")
    if where != "slurm" and (slurm or given.slurm):
        raise UserError(f"--{next(iter(slurm), 'slurm')} is for --where slurm; add it, or leave this out.")
    for pair in given.slurm:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {pair!r} is not KEY=VALUE.")
        slurm[key.replace("-", "_")] = value
    kept = {name: getattr(given, name) for name in ("seeds", "workers", "dry_run", "detach")}
    return SweepOptions(rest[0], tuple(rest[1:]), tuple(given.sweep), where=where, slurm=slurm, **kept)


def _not_a_sweep(words: Sequence[str]) -> str:
    """What to say to who wants one run in several processes."""
    number, kept, words = "2", [], list(words)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if flag != "--processes":
            kept.append(flag + equals + value)
        elif equals or words:
            number = value if equals else words.pop(0)
    command = f"metaopt train {shlex.join(kept) or 'EXPERIMENT'}"
    number = number if number.isdecimal() else "2"
    return (
        f"one run in several processes is started by `mpirun -n {number} {command}` or, in a Slurm job, "
        f"`srun {command}`; a sweep needs --sweep FIELD=A,B, --seeds N or --where local."
    )


def read_resume_options(arguments: Sequence[str]) -> SweepOptions:
    """Of `metaopt resume SWEEP [--workers N] [--detach] [--num-meta-steps N]`; `experiment` is the sweep's folder.

    Raises:
      UserError: another option, or a value that is wrong.
    """
    from metaopt.experiment.flags import refuse_repeated

    refuse_repeated(arguments)
    parser = _Parser("metaopt resume", allow_abbrev=False)
    parser.add_argument("sweep")
    _add_local(parser)
    parser.add_argument("--num-meta-steps", "--num_meta_steps", type=int, metavar="N", help="of each run, in all")
    given = parser.parse_args(arguments)
    kept = {name: getattr(given, name) for name in ("workers", "detach", "num_meta_steps")}
    return SweepOptions(given.sweep, **kept)
