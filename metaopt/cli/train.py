"""`metaopt train`: a new run, or going on with one."""

from __future__ import annotations

from pathlib import Path

from metaopt.cli import devices


def train(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.errors import UserError
    from metaopt.runs.experiments import experiment_files, load_experiment

    flags = [word.split("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    if "--resume" in flags:
        _resume(arguments, flags)
        return
    if "--from" in flags:
        _repeat(arguments)
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        known = experiment_files()
        print("usage: metaopt train EXPERIMENT [--field value ...]\n       metaopt train --resume RUN")
        print("       metaopt train --from RUN [--field value ...]\n")
        print("EXPERIMENT is a name, a .py or .json file, or a run folder, and decides the defaults of its fields:")
        print("`metaopt train EXPERIMENT --help` lists them.\n\nNames: " + ", ".join(known))
        if arguments:
            return
        raise UserError("the experiment's name is missing; write `metaopt train EXPERIMENT`.")
    if arguments[0].startswith("-"):
        raise UserError(f"the experiment comes first: `metaopt train EXPERIMENT {arguments[0]} ...`.")
    name, base = load_experiment(arguments[0])
    prog = f"metaopt train {arguments[0]}"
    experiment, out = reader.parse_experiment(arguments[1:], prog=prog, base=base)
    devices.configure_for_training(experiment.num_devices)
    from metaopt.runs.train import train

    train(experiment, None if out is None else Path(out), name=name)


def _resume(arguments: list[str], flags: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.errors import UserError
    from metaopt.runs.folder import devices_begun_with, open_run

    for flag in flags:
        if flag not in ("--resume", "--num-meta-steps", "--num-devices", "--help"):
            raise UserError(
                f"{flag} cannot change on resuming, only --num-meta-steps and --num-devices; "
                "leave it out or begin a new run."
            )
    if not arguments[0].startswith("-"):
        raise UserError(f"--resume takes the experiment from the run's config.json; leave {arguments[0]!r} out.")
    parsed = reader.parse(reader.ResumeArguments, arguments, prog="metaopt train")
    path, experiment = open_run(Path(parsed.resume))
    # As many as the run was begun on, whatever the cores of this host: so φ stays bitwise the same.
    devices.configure_for_training(parsed.num_devices, experiment.num_devices or devices_begun_with(path))
    from metaopt.runs.train import resume

    resume(path, num_meta_steps=parsed.num_meta_steps, num_devices=parsed.num_devices)


def _repeat(arguments: list[str]) -> None:
    from metaopt.cli import arguments as reader
    from metaopt.errors import UserError
    from metaopt.runs.experiments import load_experiment
    from metaopt.runs.folder import devices_begun_with, open_run

    place = next(i for i, word in enumerate(arguments) if word.split("=")[0] == "--from")
    _, equals, run = arguments[place].partition("=")
    rest = arguments[:place] + arguments[place + (1 if equals else 2) :]
    if not equals:
        run = "".join(arguments[place + 1 : place + 2])
    if not run or (not equals and run.startswith("-")):
        raise UserError("--from takes a run's folder: `metaopt train --from RUN [--field value ...]`.")
    if rest and not rest[0].startswith("-"):
        raise UserError(f"--from takes the experiment from the run's config.json; leave {rest[0]!r} out.")
    path, base = open_run(Path(run))
    name, _ = load_experiment(run)
    experiment, out = reader.parse_experiment(rest, prog=f"metaopt train --from {run}", base=base)
    # As many as the run was begun on, whatever the cores of this host: so φ comes out bitwise the same.
    devices.configure_for_training(experiment.num_devices, devices_begun_with(path))
    from metaopt.runs import processes
    from metaopt.runs.repeating import what_differs
    from metaopt.runs.train import train

    if processes.is_first():
        print(what_differs(path, experiment), flush=True)
    train(experiment, None if out is None else Path(out), name=name)
