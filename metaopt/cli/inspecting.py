"""`metaopt inspect`: what an optimizer does, of a run, a name, or any optax transformation."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jax
import optax

from metaopt import files, plugins
from metaopt.choices import Choice, parse_choice
from metaopt.cli.arguments import InspectArguments
from metaopt.cli.examine import telling
from metaopt.errors import UserError
from metaopt.experiment import build_optimizer
from metaopt.microscope.inspection import inspect_optimizer
from metaopt.optimizers.guard import guard, guarded
from metaopt.registry import OPTIMIZERS
from metaopt.report import words
from metaopt.report.inspect_pictures import inspect_figures, tables
from metaopt.report.run_page import write_report
from metaopt.report.svg import save_png
from metaopt.runs import folder
from metaopt.runs.console import make_console, say
from metaopt.runs.evaluations import place_for_results
from metaopt.runs.interrupts import Interrupted, handling
from metaopt.runs.tables import print_table
from metaopt.shipped.loading import find_optimizer, pretrained, without_guard

KINDS = (
    "a run folder, a .safetensors file, a pretrained optimizer ({pretrained}), a registered optimizer with its options "
    "(adam:learning_rate=0.01), or a function that makes an optax transformation (optax:adam:learning_rate=0.01, "
    "FILE.py:FUNCTION), each also with :guard=true at its end"
)


def inspect(arguments: InspectArguments, console: Any = None) -> Path:
    """Measures, prints tables, writes inspect.json and pictures: of a run into its folder and report.

    Raises:
      UserError: no such optimizer, one that cannot run in an inner loop, a folder that cannot be written.
    """
    console = console or make_console()
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed ({arguments.seed}) must be at least 0 and below 2**32.")
    name, entry, _ = find(arguments.optimizer)
    run = Path(arguments.optimizer)
    where = place_for_results(run, arguments.out, Path("inspect") / folder.safe_name(name), folder.INSPECTION)
    with where as (path, own):
        say(console, f"inspecting {name}")
        with handling(_stop, [signal.SIGINT, signal.SIGTERM]):
            try:
                result = inspect_optimizer(name, entry, seed=arguments.seed, progress=telling(console))
            except ValueError as error:
                raise UserError(str(error)) from error
        files.write_json(path / folder.INSPECTION, result)
    shown = tables(result)
    for part in ("implied", "scale", "noise", "trajectories"):
        title, columns, rows = shown[part]
        if part == "implied":  # the last window of each
            rows = [row for row, after in zip(rows, [*rows[1:], [None]], strict=True) if row[:2] != after[:2]]
        text = [[words.number(value) for value in row] for row in rows]
        say(console, "")
        print_table(console, title.removesuffix(" as numbers"), [columns, *text])
    if own:
        say(console, f"\nreport: {write_report(path)}")
    else:
        for stem, figure in inspect_figures(result).items():
            with files.replacing(path / f"{stem}.png") as part:
                save_png(figure, part)
        say(console, f"\nresults: {path / folder.INSPECTION}")
    return path


def _stop(signum: int) -> None:
    raise Interrupted(signum, "the inspection was stopped; nothing was written.")


def find(text: str) -> tuple[str, Any, str]:
    """(what it is called, (optimizer, φ) or an optax transformation, its settings) of a run, a name or a function.

    The last, with φ, tells it from others of its name: of a function it is the text of its module.

    Raises:
      UserError: it is none of these, or a function that makes no optax transformation.
    """
    bare, watched = without_guard(text)
    if watched:
        _, entry, settings = find(bare)
        plain = isinstance(entry, optax.GradientTransformation)
        return text, guard(entry) if plain else (guarded(entry[0]), entry[1]), settings
    path, place = files.place(text), text.partition(":")[0]
    if path.exists() or path.suffix == ".safetensors" or text in pretrained():
        if path.is_file() and path.suffix != ".safetensors":
            raise _nothing(text)
        trained = find_optimizer(text)
        name = (folder.experiment_name(path) if path.is_dir() else None) or path.resolve().stem
        return name, (trained.optimizer, trained.meta_params), str(trained.experiment.optimizer)
    if place in OPTIMIZERS:
        optimizer = build_optimizer(parse_choice(text))
        return text, (optimizer, optimizer.init(jax.random.key(0))), text
    made, _, options = text[len(place) + 1 :].partition(":")
    if not made.isidentifier():
        raise _nothing(text)
    what = f"module {place} of {text}"
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"there is no file {place}; give FILE.py:FUNCTION.")
    module = plugins.run_file(Path(place), what) if place.endswith(".py") else plugins.run_module(place, what)
    transformation = _transformation(text, getattr(module, made, None), parse_choice(f"{made}:{options}"))
    source = Path(module.__file__).read_text(encoding="utf-8", errors="replace") if module.__file__ else ""
    return text, transformation, source


def _nothing(text: str) -> UserError:
    return UserError(f"{text!r} is nothing to inspect; give {KINDS.format(pretrained=', '.join(pretrained()))}.")


def _transformation(text: str, made: Any, picked: Choice) -> optax.GradientTransformation:
    """What a person's function makes, or a transformation that stands in the module as it is."""
    if callable(made) and not isinstance(made, optax.GradientTransformation):
        try:
            made = made(**picked.options)
        except Exception as error:
            said = " ".join(str(error).split())
            hint = "" if picked.options else f"; options are given as {text.rstrip(':')}:key=value"
            raise UserError(f"{text} raises {type(error).__name__}: {said}{hint}.") from error
    elif picked.options:
        raise UserError(f"{text}: {picked.name} is no function, so it takes no options.")
    if not isinstance(made, optax.GradientTransformation):
        found = f"there is no {picked.name} in it" if made is None else f"it makes {type(made).__name__}"
        raise UserError(f"{text} is no optax transformation, for {found}; return an optax.GradientTransformation.")
    return made
