"""Hand-designed optimizers as entries: settings as φ, schedules, optax's arithmetic in the parameters' types."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import optax

from metaopt.errors import UserError, suggest
from metaopt.optimizers.placement import explicit_mesh, laid_out_by_xla, shardings
from metaopt.optimizers.schedules import Schedule, Told, lasting, refuse_untold
from metaopt.registry import OPTIMIZERS
from metaopt.trees import usual_rules
from metaopt.types import LOG, SHARE, Bijection, Optimizer, PyTree

Make = Callable[..., optax.GradientTransformation]

# The settings that may be a part of φ, by name, for all hand-designed optimizers.
BIJECTIONS: dict[str, Bijection] = {
    **dict.fromkeys(("learning_rate", "eps", "weight_decay", "alpha"), LOG),
    **dict.fromkeys(("mu", "decay", "beta", "beta1", "beta2", "beta3"), SHARE),
}
KNOTS = "knots"
SCHEDULE = {field.name: field.default for field in dataclasses.fields(Schedule)}
TUNES = "tunes"


def hand_designed(
    make: Make | None = None,
    *,
    free: str = "learning_rate",
    scheduled: Mapping[str, Any] = MappingProxyType({}),
    eval_params: Callable[[PyTree, PyTree], PyTree] | None = None,
    needs_value: bool = False,
    stable_below: float | None = None,
    **traits: Any,
) -> Any:
    """A decorator: a function from settings to an optax transformation becomes an entry of the registry.

    Its factory takes the function's own options, those of `Schedule`, and `tunes`: the names, with commas between
    them, of the settings that φ holds, each through its bijection; `all` for every one. The function is given the
    learning rate as optax takes it: a number, or step -> rate.

    Args:
      free: what `tunes` is unless given. One setting, for what is in φ is written into files and moved by searches;
        who wants more says so.
      scheduled: the schedule's options, unless another schedule is given.
      eval_params, needs_value, stable_below: as in `Optimizer`.
      traits: of the registry.
    """
    if make is None:
        said = {"eval_params": eval_params, "needs_value": needs_value, "stable_below": stable_below}
        return functools.partial(hand_designed, free=free, scheduled=scheduled, **said, **traits)
    own = list(inspect.signature(make).parameters.values())
    defaults = {parameter.name: parameter.default for parameter in own}
    others = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in {**SCHEDULE, **scheduled, TUNES: free}.items()
    ]

    @functools.wraps(make)
    def factory(**options: Any) -> Optimizer:
        signature.bind(**options)  # a TypeError that names what is unknown
        names = str(options.pop(TUNES, free))
        falls = {name: options.pop(name) for name in SCHEDULE if name in options}
        schedule = Schedule(**(falls if "schedule" in falls else {**scheduled, **falls}))
        settings = {**defaults, **options}
        _check(settings)
        return _assemble(
            make,
            settings,
            _free(names, settings),
            schedule,
            eval_params=eval_params,
            needs_value=needs_value,
            stable_below=stable_below,
        )

    signature = inspect.Signature([*own, *others], return_annotation=Optimizer)
    # For who builds an entry from text, and checks the types of its options.
    factory.__signature__ = signature  # type: ignore[attr-defined]
    factory.__annotations__ = {**get_type_hints(make), **get_type_hints(Schedule), TUNES: str, "return": Optimizer}
    return OPTIMIZERS.register(factory, shorter_steps=lambda options: "learning_rate", **traits)


def _check(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        bijection = BIJECTIONS.get(name)
        if bijection is SHARE and not 0 <= value < 1:
            raise ValueError(f"`{name}` ({value}) must be in [0, 1).")
        if bijection is LOG and value < 0:
            raise ValueError(f"`{name}` ({value}) must be at least 0.")
    if settings.get("learning_rate", 1.0) <= 0:
        raise ValueError(f"`learning_rate` ({settings['learning_rate']}) must be above 0.")


def _free(names: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that φ holds."""
    known = [name for name in settings if name in BIJECTIONS]
    found = tuple(dict.fromkeys(known if names == "all" else [name.strip() for name in names.split(",")]))
    for name in found:
        if name not in known:
            raise ValueError(f"`{TUNES}`: {suggest(name, known)}")
        if settings[name] == 0:
            raise ValueError(f"`{name}` is 0, whence nothing moves it; start it above 0, or leave it out of `{TUNES}`.")
    return found


def _assemble(
    make: Make,
    settings: Mapping[str, Any],
    free: tuple[str, ...],
    schedule: Schedule,
    *,
    eval_params: Callable[[PyTree, PyTree], PyTree] | None,
    needs_value: bool,
    stable_below: float | None,
) -> Optimizer:
    tunable = {name: BIJECTIONS[name] for name in free}
    if schedule.schedule == KNOTS:  # the schedule of this name, for its values are a setting
        tunable[KNOTS] = LOG
    needs_value = needs_value or schedule.schedule == "plateau"

    def init(key: Any) -> Any:
        phi = {name: tunable[name].inverse(jnp.asarray(settings[name], jnp.float32)) for name in free}
        return phi if KNOTS not in tunable else {**phi, KNOTS: jnp.zeros(schedule.knots, jnp.float32)}

    def made(schedule: Schedule, told: Told | None = None) -> Optimizer:
        def build(meta_params: Any) -> optax.GradientTransformationExtraArgs:
            now = {**settings, **{name: tunable[name].forward(meta_params[name]) for name in free}}
            if "learning_rate" in now:
                now["learning_rate"] = schedule.rate(now["learning_rate"], meta_params.get(KNOTS))
            return optax.with_extra_args_support(schedule.after(make(**now)))

        def bind(meta_params: Any) -> optax.GradientTransformationExtraArgs:
            return _anywhere(build, meta_params, schedule, needs_value, make.__name__)

        return Optimizer(
            init,
            bind,
            tunable=tunable,
            eval_params=eval_params,
            needs_value=needs_value,
            at_horizon=told,
            stable_below=stable_below,
        )

    if not schedule.knows_horizon:
        return made(schedule)

    def within(steps: int | None, told: Told) -> Optimizer:
        return made(dataclasses.replace(schedule, steps=steps), told)

    return lasting(make.__name__, schedule.schedule, schedule.steps, within)


def _anywhere(
    build: Callable[[Any], optax.GradientTransformationExtraArgs],
    meta_params: Any,
    schedule: Schedule,
    needs_value: bool,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """State and steps in the types of the parameters, whatever those of φ; under any rules, and sharded explicitly."""

    def init(params: PyTree) -> PyTree:
        with usual_rules():
            # Copies: optax keeps some parameters as they are, and what a loop donates has to be its own.
            state = build(meta_params).init(params)
            return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.asarray(leaf).dtype), state)

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, *, value: jax.Array | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        if schedule.knows_horizon and schedule.steps is None:
            refuse_untold(name, schedule.schedule)
        if needs_value and value is None:
            raise UserError(f"{name} needs the loss of each step; call update(..., value=loss).")

        def one(meta_params: Any, updates: PyTree, state: PyTree, params: PyTree, value: Any) -> tuple[PyTree, PyTree]:
            steps, after = build(meta_params).update(updates, state, params, value=value)
            return jax.tree.map(_as, steps, updates), jax.tree.map(_as, after, state)

        args = (meta_params, updates, state, params, value)
        with usual_rules():
            mesh = explicit_mesh(updates)
            if mesh is None:
                return one(*args)
            return laid_out_by_xla(one, shardings(mesh, (updates, state)), *args)

    return optax.GradientTransformationExtraArgs(init, update)


def _as(leaf: jax.Array, like: jax.Array) -> jax.Array:
    return leaf if not jnp.issubdtype(like.dtype, jnp.inexact) else leaf.astype(like.dtype)
