"""The training state on disk, by orbax: the latest three and the best; a broken one is passed over."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from metaopt.experiment import UserError

State = TypeVar("State")
Record = dict[str, Any]  # what goes with a state, as plain JSON
KEEP = 3


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the last `KEEP` checkpoints and the one named best."""

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        latest = {checkpoint.step for checkpoint in checkpoints[-KEEP:]}
        return [checkpoint.step in latest or checkpoint.step == self.best_step for checkpoint in checkpoints]


class Checkpoints(Generic[State]):
    """Saves and restores a state of one structure: a pytree of arrays and typed keys."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._policy = _LatestAndBest()
        with _quiet():
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,  # what a killed save left behind
                    save_root_metadata=False,
                ),
                item_names=("state", "record"),
            )

    @property
    def steps(self) -> list[int]:
        """Meta-steps of the checkpoints that are there, rising."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, record: Record, *, best_step: int | None = None) -> None:
        """Saves whole or not at all; keeps the checkpoint of `best_step` beside the latest ones.

        The record comes back with "num_devices", those that the state lay on.
        """
        self._policy.best_step = best_step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave({**record, "num_devices": _num_devices(state), "arrays": _describe(state)}),
        )
        with _quiet():
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
        """(state, record) of one checkpoint.

        Raises:
          UserError: it holds other arrays than the target.
        """
        with _quiet():
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            self._check(step, record.pop("arrays"), record.get("num_devices"), target)
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        return state["state"], record

    def _check(self, step: int, held: dict[str, str], held_devices: int | None, target: State) -> None:
        wanted, devices = _describe(target), _num_devices(target)
        for name in sorted({*held, *wanted}):
            if held.get(name) != wanted.get(name):
                # The tasks of a truncated run lie in the state as they were shared out among the devices.
                if held_devices not in (None, devices) and name.startswith("estimator_state/"):
                    raise UserError(
                        f"the checkpoint of meta-step {step} in {self._folder} was saved by a run on {held_devices} "
                        f"devices, and this one is on {devices}; resume with --num-devices {held_devices}."
                    )
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


def _num_devices(state: Any) -> int:
    return max(leaf.sharding.num_devices for leaf in jax.tree.leaves(state))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # orbax tells the absl logger every step of a save.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
