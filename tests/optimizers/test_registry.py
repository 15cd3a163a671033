"""Every optimizer of the registry: contracts, and that meta-training lowers its loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.estimators import truncated_backprop
from metaopt.inner.binding import bind_tasks
from metaopt.registry import OPTIMIZERS
from metaopt.tasks import quadratic
from tests.toys import made

VARIANTS = {
    **{name: {} for name in OPTIMIZERS},
    "lstm recursive": dict(step_rule="recursive", initial_alpha="median", normalisation="tensor_rms"),
    "controller with a network": dict(bank="adam_medium,mlp"),
    "lstm per coordinate": dict(alpha="per_coordinate", noise="per_coordinate", noise_in_use="two"),
    "lstm printed": dict(s_form="printed", features="scale_free", num_layers=1),
    "simulated_annealing": dict(temperature=0.01),  # at its own first one, 20 steps show noise alone
    "sgd scheduled": dict(power=0.5),
    "momentum scheduled": dict(power=0.5),
    "adam free": dict(tunes="all", schedule="knots"),
    "sgd on a plateau": dict(schedule="plateau", patience=0),
}


# Hand-designed ones are made in one place: each kind stands for the others. `metaopt.testing` asks the same of all.
KINDS = (
    "controller",
    "controller with a network",
    "sgd",
    "adam free",
    "momentum scheduled",
    "sgd on a plateau",
    "prodigy",
)


def make(name):
    optimizer = OPTIMIZERS[name.split()[0]](**VARIANTS[name])
    return optimizer if optimizer.at_horizon is None else optimizer.at_horizon(20)


def params_tree(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "w": jax.random.normal(keys[0], (3, 2), dtype),
        "b": [jax.random.normal(keys[1], (4,), dtype), jax.random.normal(keys[2], (), dtype)],
    }


SOME = [name for name in VARIANTS if name in KINDS or make(name).observe is not None]


@pytest.mark.parametrize("name", SOME)
def test_one_task_and_batched_forms_agree_in_a_loop_and_under_vmap(name):
    optimizer = make(name)
    tx = optimizer.bind(optimizer.init(jax.random.key(1)))
    batched = bind_tasks(optimizer, optimizer.init(jax.random.key(1)))
    tasks = 3
    gradients = [
        jax.tree.map(lambda x, s=seed: jax.random.normal(jax.random.key(s), (tasks, *x.shape)), params_tree())
        for seed in range(3)
    ]
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape)), params_tree())
    keys = jax.random.split(jax.random.key(2), (3, tasks))
    state, vstate = batched.init(params), jax.vmap(tx.init)(params)
    loops = [tx.init(params_tree()) for _ in range(tasks)]
    for t, gradient in enumerate(gradients):
        values = jnp.ones(tasks)
        updates, state = batched.update(gradient, state, params, key=keys[t], value=values)
        vupdates, vstate = jax.vmap(lambda g, s, p, k: tx.update(g, s, p, key=k, value=jnp.ones(())))(
            gradient, vstate, params, keys[t]
        )
        for i in range(tasks):
            one, loops[i] = tx.update(
                jax.tree.map(lambda x, i=i: x[i], gradient), loops[i], params_tree(), key=keys[t, i], value=jnp.ones(())
            )
            for a, b, c in zip(*map(jax.tree.leaves, (updates, vupdates, one)), strict=True):
                np.testing.assert_allclose(a[i], c, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(b[i], c, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_any_pytree_and_bfloat16_in_an_ordinary_optax_loop(name):
    optimizer = make(name)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optimizer.bind(optimizer.init(jax.random.key(0))))
    drawn = {"key": jax.random.key(1)} if optimizer.noise == "always" else {}
    params = params_tree(jnp.bfloat16)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(lambda p: sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(p)))(params)
        extra = {"value": jnp.float32(1.0)} if optimizer.needs_value else {}
        updates, state = tx.update(gradients, state, params, **drawn, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.bfloat16
        assert np.isfinite(leaf.astype(np.float32)).all()


@pytest.mark.parametrize("name", [name for name in SOME if name not in KINDS[4:]])
def test_meta_training_lowers_the_loss(name):
    optimizer = make(name)
    horizon, families = 20, (quadratic(dim=3),)
    estimator = made(truncated_backprop, optimizer, num_tasks=16, horizon=horizon, num_devices=1)
    meta_params = optimizer.init(jax.random.key(0))
    if "learning_rate" in meta_params:
        meta_params = {**meta_params, "learning_rate": jnp.log(1e-3)}  # badly tuned, to be mended
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1 if "learning_rate" in meta_params else 0.01))

    @jax.jit
    def train(meta_params):
        def body(carry, key):
            meta_params, state = carry
            gradient, _, metrics = estimator.estimate(key, meta_params, (), families)
            updates, state = tx.update(gradient, state, meta_params)
            return (optax.apply_updates(meta_params, updates), state), metrics["meta_loss"]

        start = (meta_params, tx.init(meta_params))
        return jax.lax.scan(body, start, jax.random.split(jax.random.key(1), 60))

    (trained, _), _ = train(meta_params)
    test_key = jax.random.key(2)  # the same tasks before and after
    meta_loss = jax.jit(lambda meta_params: estimator.estimate(test_key, meta_params, (), families)[2]["meta_loss"])
    before, after = meta_loss(meta_params), meta_loss(trained)
    assert after < 0.9 * before, (before, after)


def test_hand_designed_steps_equal_the_formulas():
    gradients = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)

    def steps(name, **options):
        optimizer = OPTIMIZERS[name](**options)
        tx = optimizer.bind(optimizer.init(jax.random.key(0)))
        state, out = tx.init(jnp.zeros(3)), []
        for gradient in gradients:
            update, state = tx.update(jnp.asarray(gradient), state, jnp.zeros(3))
            out.append(update)
        return np.stack(out)

    rates = 0.5 / np.arange(1, 5)[:, None] ** 0.7
    np.testing.assert_allclose(steps("sgd", learning_rate=0.5, power=0.7), -rates * gradients, rtol=1e-5)
    buffer, expected = np.zeros(3), []
    for rate, gradient in zip(rates, gradients, strict=True):
        buffer = 0.8 * buffer - rate * gradient
        expected.append(buffer)
    np.testing.assert_allclose(steps("momentum", learning_rate=0.5, mu=0.8, power=0.7), expected, rtol=1e-5)
    m = v = np.zeros(3)
    adam, rmsprop, second = [], [], np.zeros(3)
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        adam.append(-0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
        second = 0.99 * second + 0.01 * gradient**2
        rmsprop.append(-0.1 * gradient / (np.sqrt(second) + 1e-8))
    np.testing.assert_allclose(steps("adam", learning_rate=0.1), adam, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(steps("rmsprop", learning_rate=0.1), rmsprop, rtol=1e-4)


def test_an_empty_tree_passes_through():
    optimizer = make("lstm")
    tx = optimizer.bind(optimizer.init(jax.random.key(0)))
    assert tx.update({}, tx.init({}))[0] == {}


@pytest.mark.parametrize(("name", "options"), [("adam", {"learning_rate": 0.0}), ("lstm", {"hidden_size": 0})])
def test_senseless_settings_are_refused(name, options):
    with pytest.raises(ValueError, match="must be"):
        OPTIMIZERS[name](**options)
