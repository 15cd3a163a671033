"""Divergence capsules: one small file that shows again, to the bit, how tasks blew up.

A capsule holds φ, the keys of the batch that the task ran in (XLA may round otherwise in a batch of another size), the
family and the steps; where a training window began in the middle of a run, also that run's state. Its trace is that of
`run_again`, a forward pass of the same inner steps, which `metaopt replay` repeats and compares.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from metaopt.choices import Choice
from metaopt.errors import UserError
from metaopt.experiment import Experiment, build_families, build_family, optimizer_of
from metaopt.experiment.plain import from_json, to_json
from metaopt.files import replacing
from metaopt.inner.binding import bind_tasks
from metaopt.inner.devices import compiler_options
from metaopt.inner.step import ObjectiveBatch, Seen, reset
from metaopt.inner.unroll import unroll
from metaopt.runs import own_entries
from metaopt.trees import FAILURE_FACTOR
from metaopt.types import Key, MetaParams, Optimizer, PyTree, Task, TaskFamily, Trace, UnrollState

FOLDER = "capsules"
VERSION = 2  # of the files; in version 1 a step's loss and the next step's gradient had two minibatches
LIMIT = 5  # of a kind ("training", "evaluation") in a folder
TASKS_KEPT, STEPS_KEPT = 8, 1000  # of a batch's trace


class Batch(NamedTuple):
    """The runs of one batch over some steps: from their reset, or from where a window began."""

    meta_params: MetaParams
    keys: Key  # [tasks]
    start: tuple[Task, UnrollState] | None  # None: `reset` with the keys


class Setting(NamedTuple):
    """How a batch is run; all of it goes into the file as JSON."""

    kind: str  # training or evaluation
    experiment: Experiment  # by which φ was meta-trained
    task: Choice
    as_trained: bool  # with the experiment's augmentations and oracle
    length: int
    explore: bool
    objective_batch: str
    meta_step: int | None
    about: dict[str, Any]  # for people

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `unroll`."""
        return {name: getattr(self, name) for name in ("length", "explore", "objective_batch")}


class Capsule(NamedTuple):
    """What a file holds."""

    setting: Setting
    batch: Batch
    died: tuple[tuple[int, int], ...]  # (task of the batch, inner step since its reset at which it blew up)
    loss: np.ndarray  # [steps kept, tasks kept] float; the last steps up to the last of the deaths
    update_norm: np.ndarray  # [steps kept, tasks kept]
    initial_loss: np.ndarray  # [tasks kept]


def build_family_of(setting: Setting) -> TaskFamily:
    if not setting.as_trained:
        return build_family(setting.task, oracle=setting.experiment.oracle)
    return build_families(dataclasses.replace(setting.experiment, tasks=(setting.task,)))[0]


def run_again(
    setting: Setting,
    batch: Batch,
    family: TaskFamily | None = None,
    observe: Callable[[Seen], PyTree] | None = None,
) -> tuple[Trace, np.ndarray]:
    """(trace [length, tasks], each task's step before it, [tasks]); `observe` is shown every step."""
    family = build_family_of(setting) if family is None else family
    return jax.device_get(
        _compiled()(
            optimizer_of(setting.experiment),
            *jax.tree.map(jnp.asarray, (batch.meta_params, family, batch.keys, batch.start)),
            **setting.how,
            observe=observe,
        )
    )


@functools.cache
def _compiled() -> Callable[..., Any]:
    # Not as this file is imported: the options are those of the devices, which are yet to be chosen then.
    static = ("optimizer", "length", "explore", "objective_batch", "observe")
    return jax.jit(_run, static_argnames=static, compiler_options=compiler_options())


def _run(
    optimizer: Optimizer,
    meta_params: MetaParams,
    family: TaskFamily,
    keys: Key,
    start: tuple[Task, UnrollState] | None,
    **how: Any,
) -> tuple[Trace, jax.Array]:
    tx = bind_tasks(optimizer, meta_params)
    task, state = reset(tx, family, keys) if start is None else start
    _, trace = unroll(tx, family, task, state, **how)
    return trace, state.step


def make_capsule(setting: Setting, batch: Batch, family: TaskFamily | None = None) -> Capsule | None:
    """Runs a batch and keeps it if a task of it blows up; None where none does."""
    trace, before = run_again(setting, batch, family)
    alive_at_first = np.abs(trace.initial_loss) < np.inf
    if batch.start is not None:
        alive_at_first = np.asarray(batch.start[1].alive)
    bad = ~trace.alive
    if setting.kind == "evaluation":
        # Without a bound nothing is known of a single run but whether it is finite.
        gap = trace.initial_loss - trace.lower_bound
        bad = bad | ((trace.loss - trace.lower_bound > FAILURE_FACTOR * gap) & (gap > 0))
    tasks = np.flatnonzero(bad.any(axis=0) & alive_at_first)[:TASKS_KEPT]
    if not len(tasks):
        return None
    died = tuple((int(task), int(before[task]) + int(bad[:, task].argmax()) + 1) for task in tasks)
    return Capsule(setting, batch, died, *_kept(trace, tasks, _last(died, before)))


def _last(died: tuple[tuple[int, int], ...], before: np.ndarray) -> int:
    """Steps of the trace up to the last death."""
    return max(step - int(before[task]) for task, step in died)


def _kept(trace: Trace, tasks: Any, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = slice(max(0, last - STEPS_KEPT), last)
    loss, norm = (np.ascontiguousarray(np.asarray(part)[rows, tasks]) for part in (trace.loss, trace.update_norm))
    return loss, norm, np.ascontiguousarray(np.asarray(trace.initial_loss)[tasks])


class Replayed(NamedTuple):
    """A capsule's trace and the one of now."""

    loss: np.ndarray
    update_norm: np.ndarray
    same: bool  # bit by bit


def replay(capsule: Capsule) -> Replayed:
    """Runs a capsule's batch again and compares the bits of losses and step lengths."""
    trace, before = run_again(capsule.setting, capsule.batch)
    tasks = [task for task, _ in capsule.died]
    now = _kept(trace, tasks, _last(capsule.died, before))
    held = (capsule.loss, capsule.update_norm, capsule.initial_loss)
    same = all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(now, held, strict=True))
    return Replayed(now[0], now[1], same)


# ----- files ----------------------------------------------------------------------------------------------------------


def write_capsule(folder: Path, capsule: Capsule) -> Path | None:
    """Writes a capsule into a run's folder; None where there are `LIMIT` of its kind already."""
    setting, batch = capsule.setting, capsule.batch
    held = capsules_in(folder, setting.kind)
    if len(held) >= LIMIT:
        return None
    (folder / FOLDER).mkdir(exist_ok=True)
    where = re.sub(r"[^A-Za-z0-9._]+", "-", str(setting.task))[:80]
    stem = f"{setting.kind}-{0 if setting.meta_step is None else setting.meta_step:06}-{where}"
    names = (f"{stem}{f'-{number}' if number else ''}.safetensors" for number in range(LIMIT + 1))
    path = next(folder / FOLDER / name for name in names if not (folder / FOLDER / name).exists())
    about = {
        "version": VERSION,
        **setting._asdict(),
        "experiment": to_json(setting.experiment),
        "task": dataclasses.asdict(setting.task),
        "died": capsule.died,
        "begun": batch.start is not None,
        "keys_are": "of no use here: each run goes on from its state, whose key it keeps"
        if batch.start is not None
        else "those given to metaopt.inner.step.reset, one a task; step keys are fold_in(run key, step)",
    }
    tensors = {f"phi/{i}": _data(leaf) for i, leaf in enumerate(jax.tree.leaves(batch.meta_params))}
    tensors |= {f"start/{i}": _data(leaf) for i, leaf in enumerate(jax.tree.leaves(batch.start))}
    tensors["keys"] = _data(batch.keys)
    tensors |= {"loss": capsule.loss, "update_norm": capsule.update_norm, "initial_loss": capsule.initial_loss}
    with replacing(path) as part:
        save_file(tensors, part, {"metaopt": json.dumps(about, sort_keys=True)})
    return path


def capsules_in(folder: Path, kind: str) -> list[Path]:
    """The capsules of a kind in a run's folder."""
    return sorted((folder / FOLDER).glob(f"{kind}-*.safetensors"))


def read_capsule(path: Path) -> Capsule:
    """What `write_capsule` wrote.

    Raises:
      UserError: not such a file, or one that this version cannot rebuild.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["metaopt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        experiment = from_json(about["experiment"], str(path), unversioned=1)
        values = {name: about[name] for name in Setting._fields}
        values |= {"experiment": experiment, "task": Choice(**about["task"])}
        setting = Setting(**values)
        held = tuple(tensors[name] for name in ("loss", "update_norm", "initial_loss"))
        died, begun, keys = tuple(tuple(pair) for pair in about["died"]), about["begun"], tensors["keys"]
        _check(setting, died, keys, held, about["version"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no divergence capsule of metaopt: {_why(path, error)}.") from None
    optimizer, family = optimizer_of(experiment), build_family_of(setting)
    own_entries.tell_changed(own_entries.recorded(path), path)
    wrapped = jax.random.wrap_key_data(jnp.asarray(keys))
    shapes = jax.eval_shape(optimizer.init, jax.random.key(0))
    meta_params = _filled(shapes, tensors, "phi", path)
    start = None
    if begun:

        def first(meta_params: MetaParams, keys: Key) -> tuple[Task, UnrollState]:
            return reset(bind_tasks(optimizer, meta_params), family, keys)

        start = _filled(jax.eval_shape(first, shapes, wrapped), tensors, "start", path)
    return Capsule(setting, Batch(meta_params, wrapped, start), died, *held)  # type: ignore[arg-type]


def _why(path: Path, error: Exception) -> str:
    if path.is_dir():
        held = capsules_in(path, "training") + capsules_in(path, "evaluation")
        return f"it is a folder; try `metaopt replay {held[0]}`" if held else "it is a folder, and it holds none"
    try:
        with safe_open(path, framework="numpy") as file:
            if "card" in json.loads((file.metadata() or {})["metaopt"]):
                return f"it is an optimizer; `metaopt doctor {path}` examines it"
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check(setting: Setting, died: Any, keys: np.ndarray, held: Any, version: Any) -> None:
    """Raises ValueError for what would only show as a fault inside of jax: the file may be a stranger's."""
    if version != VERSION:
        raise ValueError(f"its version is {version!r}, and this metaopt, whose inner loop is another, reads {VERSION}")
    numbers = [setting.length, *(number for pair in died for number in pair)]
    flags = (setting.as_trained, setting.explore)
    sound = (
        setting.kind in ("training", "evaluation")
        and setting.objective_batch in get_args(ObjectiveBatch)
        and all(isinstance(flag, bool) for flag in flags)
        and all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        and isinstance(setting.about, dict)
        and setting.length > 0
        and keys.dtype == np.uint32
        and keys.shape[1:] == jax.random.key_data(jax.random.key(0)).shape
        and len(keys) > 0
        and len(died) > 0
        and all(len(pair) == 2 and 0 <= pair[0] < len(keys) and pair[1] > 0 for pair in died)
        and held[0].shape == held[1].shape == (len(held[0]), len(died))
        and held[2].shape == (len(died),)
        and len(held[0]) > 0
    )
    if not sound:
        raise ValueError("its parts do not fit together")


def _data(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def _filled(shapes: PyTree, tensors: dict[str, np.ndarray], name: str, path: Path) -> PyTree:
    leaves, treedef = jax.tree.flatten(shapes)
    filled = []
    for index, leaf in enumerate(leaves):
        value = tensors.get(f"{name}/{index}")
        if value is not None and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(jnp.asarray(value))
        if value is None or value.shape != leaf.shape or value.dtype != leaf.dtype:
            raise UserError(f"{path} is of another version of metaopt: its {name} has other arrays.")
        filled.append(value)
    return jax.tree.unflatten(treedef, filled)
