"""The options of a sweep on the command line; what is left over are fields of the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from metaopt.errors import UserError, suggest

PLACES = ("local", "slurm")
MAKE_SWEEP = ("--sweep", "--seeds", "--where")  # without any of them `metaopt launch` trains one run
SWITCHES = ("--dry-run", "--detach")
ONLY_SLURM = ("--partition", "--time", "--cpus", "--gpus", "--mem", "--slurm")
TAKE_VALUE = (*MAKE_SWEEP, "--workers", *ONLY_SLURM)


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
    slurm: dict[str, str] = field(default_factory=dict)  # option -> value as written


def take_options(arguments: list[str]) -> SweepOptions | None:
    """The sweep that is asked for; None where it is one run in several processes.

    Raises:
      UserError: a value is missing or wrong, or options do not go together.
    """
    taken, rest = _split(arguments)
    if not any(flag in taken for flag in MAKE_SWEEP):
        if taken and "--help" not in rest:
            raise UserError(f"{next(iter(taken))} is for sweeps; add --sweep FIELD=A,B, --seeds N or --where local.")
        return None
    if any(word.partition("=")[0] == "--processes" for word in rest):
        raise UserError(
            "--processes shares one run among processes, and a sweep gives each of its runs one process; "
            "leave one of the two out."
        )
    if any(word.partition("=")[0] == "--resume" for word in rest):
        raise UserError("a sweep begins new runs; go on with one by `metaopt resume SWEEP`.")
    if not rest or rest[0].startswith("-"):
        raise UserError("the experiment comes first: `metaopt launch EXPERIMENT --sweep FIELD=A,B ...`.")
    where = taken.get("--where", ["local"])[-1]
    if where not in PLACES:
        raise UserError(f"--where {suggest(where, PLACES)}")
    if where != "slurm":
        _refuse([flag for flag in ONLY_SLURM if flag in taken], "is for --where slurm; add it, or leave this out.")
    else:
        _refuse([flag for flag in ("--detach",) if flag in taken], "is for --where local: Slurm's jobs are detached.")
    slurm = {flag.removeprefix("--"): taken[flag][-1] for flag in ONLY_SLURM[:-1] if flag in taken}
    for pair in taken.get("--slurm", []):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--slurm {pair!r} is not KEY=VALUE.")
        slurm[key.replace("-", "_")] = value
    return SweepOptions(
        experiment=rest[0],
        fields=tuple(rest[1:]),
        sweeps=tuple(taken.get("--sweep", [])),
        seeds=_number("--seeds", taken),
        where=where,
        workers=_number("--workers", taken),
        dry_run="--dry-run" in taken,
        detach="--detach" in taken,
        slurm=slurm,
    )


def _split(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(a sweep's options with their values, the other words)."""
    taken: dict[str, list[str]] = {}
    rest: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in SWITCHES and not equals:
            taken[flag] = []
        elif flag in TAKE_VALUE:
            values = [value] if equals else [words.pop(0)] if words and not words[0].startswith("--") else []
            while flag == "--sweep" and values and words and not words[0].startswith("-"):
                values.append(words.pop(0))  # `--sweep a=1,2 b=3,4` as well
            if not values:
                raise UserError(f"{flag} has no value; see `metaopt launch --help`.")
            taken.setdefault(flag, []).extend(values)
        else:
            rest.append(word)
    return taken, rest


def _number(flag: str, taken: dict[str, list[str]]) -> int | None:
    if flag not in taken:
        return None
    text = taken[flag][-1]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{flag} ({text!r}) must be a number from 1 on.")
    return int(text)


def _refuse(flags: list[str], why: str) -> None:
    if flags:
        raise UserError(f"{flags[0]} {why}")


def for_resuming(arguments: list[str]) -> tuple[str, SweepOptions]:
    """(folder, options) of `metaopt resume SWEEP [--workers N] [--detach]`.

    Raises:
      UserError: another option, or a value that is wrong.
    """
    taken, rest = _split(arguments)
    known = ("--workers", "--detach")
    _refuse([flag for flag in taken if flag not in known], "cannot change on resuming a sweep; leave it out.")
    _refuse(rest[1:], "is no option of `metaopt resume SWEEP`, which takes --workers and --detach.")
    options = SweepOptions(experiment="", workers=_number("--workers", taken), detach="--detach" in taken)
    return rest[0], options
