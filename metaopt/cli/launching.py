"""Sweeps: how they begin, stand, and end."""

from __future__ import annotations

from pathlib import Path

CANCEL_HELP = """\
usage: metaopt cancel SWEEP_OR_RUN ...

What is running saves and stops, what is waiting will not begin. `metaopt resume` goes on.
"""
RESUME_HELP = """\
usage: metaopt resume SWEEP [--workers N] [--detach] [--num-meta-steps N]
       metaopt resume RUN [--num-meta-steps N] [--num-devices N]

Begins or goes on with the runs of a sweep that did not finish, where it was launched, here or on Slurm; runs that have
finished or diverged are left alone. With --num-meta-steps all go on to so many meta-steps in all, those that have
finished too. With a run, it is `metaopt train --resume RUN`.
"""


def launch(arguments: list[str]) -> None:
    from metaopt.launch.options import read_options

    options = read_options(arguments)
    from metaopt.launch import sweeps

    sweeps.start(options)


def status(arguments: list[str]) -> None:
    from metaopt.launch import status

    status.status(arguments)


def cancel(arguments: list[str]) -> None:
    from metaopt.errors import UserError
    from metaopt.launch import cancelling

    if any(word in ("-h", "--help") for word in arguments):
        print(CANCEL_HELP, end="")
        return
    for word in arguments:
        if word.startswith("-"):
            raise UserError(f"`metaopt cancel` has no option {word}.")
    if not arguments:
        raise UserError("name a run folder or a sweep's: `metaopt cancel SWEEP_OR_RUN ...`.")
    cancelling.cancel([Path(word) for word in arguments])


def resume(arguments: list[str]) -> None:
    from metaopt.errors import UserError
    from metaopt.launch import sweep_folder

    if any(word in ("-h", "--help") for word in arguments):
        print(RESUME_HELP, end="")
        return
    if not arguments or arguments[0].startswith("-"):
        raise UserError("the folder comes first: `metaopt resume SWEEP_OR_RUN ...`.")
    if sweep_folder.is_sweep(Path(arguments[0])):
        from metaopt.launch import options, sweeps

        sweeps.resume(options.read_resume_options(arguments))
    else:
        from metaopt.cli.train import train

        train(["--resume", *arguments])
