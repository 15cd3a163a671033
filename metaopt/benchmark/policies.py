"""Policies by the score function (Williams 1992): gradients of drawn actions, judged by exact expectations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.benchmark.parts import on_draws
from metaopt.types import Key, Params, Scalar, Task, TaskFamily


def _with_score(value: Scalar, surrogate: Scalar) -> Scalar:
    """The value, with the gradient of the surrogate."""
    return value + surrogate - jax.lax.stop_gradient(surrogate)


class _Bandit(NamedTuple):
    contexts: jax.Array  # [contexts, features]
    odds: jax.Array  # [contexts, actions] of a reward


def bandit() -> TaskFamily:
    """Regret of a linear policy that picks one of six actions in 64 contexts, and sees a reward of 0 or 1."""
    contexts, features, actions = 64, 10, 6

    def sample(key: Key) -> _Bandit:
        context_key, truth_key = jax.random.split(key)
        x = jax.random.normal(context_key, (contexts, features))
        return _Bandit(x, jax.nn.sigmoid(x @ jax.random.normal(truth_key, (features, actions))))

    def draw(key: Key, task: Task, num: int) -> dict[str, jax.Array]:
        which_key, action_key, reward_key = jax.random.split(key, 3)
        return {
            "which": jax.random.randint(which_key, (num,), 0, contexts),
            "action": jax.random.gumbel(action_key, (num, actions)),
            "reward": jax.random.uniform(reward_key, (num,)),
        }

    def loss(params: Params, task: _Bandit, batch: Any) -> Scalar:
        best = jnp.max(task.odds, axis=1)
        log_policy = jax.nn.log_softmax(task.contexts @ params)
        if not batch:
            return jnp.mean(best - jnp.sum(jnp.exp(log_policy) * task.odds, axis=1))
        which, log_policy = batch["which"], log_policy[batch["which"]]
        action = jax.nn.one_hot(jnp.argmax(log_policy + batch["action"], axis=1), actions)
        rewarded = (batch["reward"] < jnp.sum(action * task.odds[which], axis=1)).astype(jnp.float32)
        score = jnp.sum(action * log_policy, axis=1)
        baseline = jnp.mean(rewarded)
        return _with_score(jnp.mean(best[which] - rewarded), -jnp.mean((rewarded - baseline) * score))

    return on_draws(loss, lambda key, task: 0.1 * jax.random.normal(key, (features, actions)), draw, 64, None, sample)


def maze() -> TaskFamily:
    """Moments of 16 before a goal on 5 by 5 fields is reached from the middle, of a table of 100 preferences."""
    side, length = 5, 16
    fields = side * side

    def moved() -> jax.Array:
        """[fields, 4] where the moves lead to, walls holding."""
        place = jnp.stack(jnp.divmod(jnp.arange(fields), side), axis=-1)
        steps = jnp.array([[0, 1], [0, -1], [1, 0], [-1, 0]])
        to = jnp.clip(place[:, None] + steps, 0, side - 1)
        return to[..., 0] * side + to[..., 1]

    def sample(key: Key) -> jax.Array:
        return jnp.array([0, side - 1, fields - side, fields - 1])[jax.random.randint(key, (), 0, 4)]

    def draw(key: Key, task: Task, num: int) -> jax.Array:
        return jax.random.gumbel(key, (num, length, 4))

    def exact_cost(log_policy: jax.Array, goal: jax.Array) -> Scalar:
        to, away = jax.nn.one_hot(moved(), fields), 1.0 - jax.nn.one_hot(goal, fields)
        chain = jnp.einsum("fa,fag->fg", jnp.exp(log_policy), to)

        def step(law: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            law = (law * away) @ chain  # whoever has arrived leaves the sum
            return law, jnp.sum(law * away)

        return jnp.mean(jax.lax.scan(step, jax.nn.one_hot(fields // 2, fields), None, length=length)[1])

    def loss(params: Params, task: jax.Array, batch: Any) -> Scalar:
        log_policy = jax.nn.log_softmax(params)
        if isinstance(batch, tuple):
            return exact_cost(log_policy, task)
        to = moved()

        def step(state: tuple[jax.Array, jax.Array], noise: jax.Array):
            place, going = state
            odds = jax.nn.one_hot(place, fields) @ log_policy
            action = jnp.argmax(odds + noise, axis=1)
            score = going * jnp.sum(jax.nn.one_hot(action, 4) * odds, axis=1)
            place = jnp.where(going > 0, to[place, action], place)
            going = going * (place != task)
            return (place, going), (score, going)

        num = batch.shape[0]
        start = (jnp.full(num, fields // 2), jnp.ones(num))
        _, (scores, going) = jax.lax.scan(step, start, batch.swapaxes(0, 1))
        to_come = jnp.cumsum(going[::-1], axis=0)[::-1] / length  # [length, num]
        centred = jax.lax.stop_gradient(to_come - jnp.mean(to_come, axis=1, keepdims=True))
        return _with_score(jnp.mean(going), jnp.mean(jnp.sum(centred * scores, axis=0)))

    # Four moves lead from the middle to a corner, after three of which one is still on the way.
    lowest = (side // 2 * 2 - 1) / length
    return on_draws(
        loss, lambda key, task: 0.1 * jax.random.normal(key, (fields, 4)), draw, 32, None, sample, lowest - 1e-6
    )
