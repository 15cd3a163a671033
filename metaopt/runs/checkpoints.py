"""The training state on disk, by orbax: the latest three and their best; a broken one is passed over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from metaopt.errors import UserError
from metaopt.runs.optimizer_file import OLD_NAMES, present_name
from metaopt.runs.rechunking import OutOfStep, in_other_chunks, rechunk, shape_of

State = TypeVar("State")
Record = dict[str, Any]  # what goes with a state, as plain JSON
KEEP = 3
FORMAT = 2  # of the record; 1 had none, and inner runs that carry no estimate of the gradient at their parameters


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the last `KEEP` checkpoints and, of each of them, the one that was the best by then.

    So whichever of them a run goes on from finds its best.
    """

    def __init__(self) -> None:
        self.best_steps: dict[int, int | None] = {}  # by the step of the checkpoint

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        latest = [checkpoint.step for checkpoint in checkpoints[-KEEP:]]
        kept = {*latest, *(self.best_steps.get(step) for step in latest)}
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpoints(Generic[State]):
    """Saves and restores a state of one structure: a pytree of arrays and typed keys.

    Where several processes train together, the first one alone makes and uses this.
    """

    def __init__(self, folder: Path) -> None:
        self.refuse_first: str | None = None  # why one of the first format cannot be gone on with; None: it can
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._policy = _LatestAndBest()
        # Of several processes one writes: they need not share a file system.
        several = jax.process_count() > 1
        processes = ocp.options.MultiprocessingOptions(
            active_processes={0} if several else None, barrier_sync_key_prefix="metaopt" if several else None
        )
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    multiprocessing_options=processes,
                    preservation_policy=self._policy,
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,  # what a killed save left behind
                    save_root_metadata=False,
                ),
                item_names=("state", "record"),
            )
        for step in self.steps:
            # One that cannot be read has no best, and is passed over later.
            with contextlib.suppress(Exception):
                self._policy.best_steps[step] = self._record(step).get("best_step")

    @property
    def steps(self) -> list[int]:
        """Meta-steps of the checkpoints that are there, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, record: Record) -> None:
        """Saves whole or not at all; keeps the checkpoint of the record's "best_step" beside the latest ones.

        The record comes back with "num_devices", those that the state lay on.
        """
        self._policy.best_steps[step] = record.get("best_step")
        held = to_host(state)
        record = {**record, "format": FORMAT, "num_devices": _num_devices(state), "arrays": _describe(state)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(held), record=ocp.args.JsonSave({**record, "sha256": _hash(held, record)})
        )
        with _quiet(), _threads_silent():
            self._manager.save(step, args=args, force=True)

    def restore_latest(self, target: State) -> tuple[State, Record, list[str]] | None:
        """(state, record, what was broken) of the latest checkpoint that can be read; None where there is none at all.

        Later, broken ones are removed, so that training can save at their steps again.

        Args:
          target: a state of the same structure, arrays or shapes with shardings; it is not changed.

        Raises:
          UserError: a checkpoint of another architecture, or none that can be read.
        """
        steps, broken = self.steps, []
        for step in reversed(steps):
            try:
                state, record = self.restore(step, target)
            except UserError:
                raise
            except Exception as error:  # orbax raises many kinds, by what is missing or cut off
                broken.append(f"the checkpoint of meta-step {step} cannot be read ({_one_line(error)})")
                continue
            for later in steps:
                if later > step:
                    with _quiet():
                        self._manager.delete(later)
            return state, record, broken
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read: {broken[0]}; start a new run.")
        return None

    def restore(self, step: int, target: State) -> tuple[State, Record]:
        """(state, record) of one checkpoint, on the target's devices, however many it was saved on.

        Raises:
          UserError: it holds other arrays than the target, or is of a format that cannot be gone on with.
        """
        with _quiet(), _threads_silent():
            record = self._record(step)
            sha256, written = record.pop("sha256", None), dict(record)  # older ones have none
            if record.pop("format", 1) == 1 and self.refuse_first is not None:
                raise UserError(f"the checkpoint of meta-step {step} in {self._folder} {self.refuse_first}")
            saved = record.pop("arrays")
            held = {present_name(name): described for name, described in saved.items()}
            self._check(step, held, target)
            names = list(_describe(target))
            shapes = [shape_of(held[name]) for name in names]
            leaves, structure = jax.tree.flatten(target)
            wanted = structure.unflatten([_host_like(leaf, shape) for leaf, shape in zip(leaves, shapes, strict=True)])
            if held.keys() != saved.keys():
                wanted = _named_as_before(wanted)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            state = self._manager.restore(step, args=args)["state"]
        # Large arrays lie in files that carry no checksum of their own.
        if sha256 is not None and sha256 != _hash(state, written):
            raise ValueError("its contents are not what was saved")
        try:
            values = [rechunk(*each) for each in zip(names, jax.tree.leaves(state), leaves, strict=True)]
        except OutOfStep:
            devices = record.get("num_devices")
            raise UserError(
                f"the checkpoint of meta-step {step} in {self._folder} was saved by a run on {devices} devices, whose "
                f"chunks of tasks are out of step with one another; resume with --num-devices {devices}."
            ) from None
        return to_devices(structure.unflatten(values), target), record

    def _record(self, step: int) -> Record:
        with _quiet():
            return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def _check(self, step: int, held: dict[str, str], target: State) -> None:
        wanted = _describe(target)
        differ = {name for name in {*held, *wanted} if held.get(name) != wanted.get(name)}
        wider = [any("float64" in kind for kind in kinds.values()) for kinds in (held, wanted)]
        if wider[0] != wider[1]:
            raise UserError(
                f"the checkpoint of meta-step {step} in {self._folder} was written {'with' if wider[0] else 'without'} "
                f"double precision; resume with JAX_ENABLE_X64={int(wider[0])}."
            )
        for name in sorted(differ - in_other_chunks(held, wanted, differ)):
            raise UserError(
                f"the checkpoint of meta-step {step} in {self._folder} is of another architecture: {name} is "
                f"{held.get(name, 'missing')} there and {wanted.get(name, 'missing')} by config.json; "
                "resume with the configuration and version it was trained with."
            )

    def close(self) -> None:
        with _quiet():
            self._manager.close()


def _describe(state: Any) -> dict[str, str]:
    """Path -> type and shape of every array of a pytree."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _named_as_before(tree: Any) -> Any:
    """A state with the names that φ had in older checkpoints; they come in the same order."""
    if isinstance(tree, dict):
        before = {now: old for old, now in OLD_NAMES.items()}
        return {before.get(name, name): _named_as_before(part) for name, part in tree.items()}
    if isinstance(tree, tuple):
        parts = map(_named_as_before, tree)
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree


def _hash(held: Any, record: Record) -> str:
    """Of a state as `to_host` gives it, and of the record beside it."""
    sha256 = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for leaf in jax.tree.leaves(held):
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()


# ----- between devices and the disk -----------------------------------------------------------------------------------


def to_host(state: State) -> State:
    """Arrays as numpy's, typed keys as their data: the form on disk, free of devices and processes."""
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf), state)


def to_devices(values: State, target: State) -> State:
    """The inverse of `to_host`, placed as the arrays of the target are."""

    def place(value: np.ndarray, like: jax.Array) -> jax.Array:
        if not _is_key(like):
            return _put(value, like.sharding)
        return jax.random.wrap_key_data(_put(value, like.sharding), impl=jax.random.key_impl(like))

    return jax.tree.map(place, values, target)


def _put(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # Not device_put, which sends the value round to compare where there are several processes.
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_like(leaf: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """An array as `to_host` makes it of one like `leaf`, but of this shape."""
    if not _is_key(leaf):
        return np.empty(shape, leaf.dtype)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return np.empty((*shape, *data.shape[leaf.ndim :]), data.dtype)


def _num_devices(state: Any) -> int:
    return max(leaf.sharding.num_devices for leaf in jax.tree.leaves(state))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


@contextlib.contextmanager
def _threads_silent() -> Iterator[None]:
    """What orbax raises its threads print as well, some of them later: after an error they stay silent."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    ours = threading.current_thread()

    def silent(*error: Any) -> None:
        if threading.current_thread() is ours:
            hooks[0](*error)

    sys.excepthook, threading.excepthook, sys.unraisablehook = silent, lambda _: None, lambda _: None
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # orbax tells the absl logger every step of a save, and of what it cannot read before it raises.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
