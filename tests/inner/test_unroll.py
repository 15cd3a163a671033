"""The inner loop: against a hand loop, window by window, and when tasks die."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.inner.binding import bind_tasks, judged_params
from metaopt.inner.devices import pick_segment_lengths
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import lstm, sgd
from metaopt.oracles import minibatch
from metaopt.registry import OPTIMIZERS, TASKS
from metaopt.tasks.hyper import with_task
from metaopt.types import Estimate, Hyper, Optimizer, Oracle
from tests.toys import bowl, cliff, noisy_bowl

SMALL = {"classifier": {"width": 3}, "autoencoder": {"width": 3}, "linear_regression": {"dim": 4}}


def start(optimizer, family, tasks=3, seed=0):
    tx = bind_tasks(optimizer, jax.jit(optimizer.init)(jax.random.key(7)))
    return tx, *jax.jit(lambda keys: reset(tx, family, keys))(jax.random.split(jax.random.key(seed), tasks))


def test_sgd_equals_a_hand_loop_and_the_trace_starts_after_the_first_update():
    family = bowl()
    tx, task, state = start(sgd(learning_rate=0.5), family)
    _, trace = unroll(tx, family, task, state, length=5)
    for i in range(3):
        params, one = state.params[i], jax.tree.map(lambda x, i=i: x[i], task)
        np.testing.assert_allclose(trace.initial_loss[i], family.loss(params, one, ()), rtol=1e-6)
        for t in range(5):
            step = -0.5 * jax.grad(family.loss)(params, one, ())
            params = params + step
            np.testing.assert_allclose(trace.loss[t, i], family.loss(params, one, ()), rtol=1e-5)
            np.testing.assert_allclose(trace.update_norm[t, i], jnp.linalg.norm(step), rtol=1e-5)


@pytest.mark.parametrize("objective_batch", ["fresh", "full"])
def test_which_batch_the_objective_sees(objective_batch):
    """`fresh`: the batch of f(θ_{t+1}), drawn after the step, is the one that the next step is taken on."""
    family = noisy_bowl()
    tx, task, state = start(sgd(learning_rate=0.1), family, tasks=1)
    _, trace = unroll(tx, family, task, state, length=2, objective_batch=objective_batch)
    params, one = state.params[0], task[0]
    for t in range(2):
        own, after = (
            family.batch(jax.random.fold_in(jax.random.fold_in(state.key[0], s), 0), one, ()) for s in (t, t + 1)
        )
        params = params - 0.1 * jax.grad(family.loss)(params, one, own)
        batch = after if objective_batch == "fresh" else jnp.full(3, 0.5)
        np.testing.assert_allclose(trace.loss[t, 0], family.loss(params, one, batch), rtol=1e-5)


def test_the_objective_on_validation_data_is_on_these():
    offsets = {"train": 0.0, "validation": 10.0, "test": 100.0}
    family = dataclasses.replace(
        noisy_bowl(),
        loss=lambda params, task, batch: jnp.mean(params**2) + jnp.mean(batch),
        batch=lambda key, task, data: jnp.zeros(3),
        eval_batch=lambda task, data, split: jnp.full(3, offsets[split]),
        splits=tuple(offsets),
    )
    tx, task, state = start(sgd(learning_rate=0.1), family)
    for name, split in (("full", "train"), ("validation", "validation")):
        end, trace = unroll(tx, family, task, state, length=2, objective_batch=name)
        expected = jnp.mean(end.params**2, axis=1) + offsets[split]
        np.testing.assert_allclose(trace.loss[-1], expected, rtol=1e-5)


def test_full_data_are_judged_where_the_optimizer_is(x64):
    """The average of schedule-free methods, with the slope of the way to it."""
    optimizer, family = OPTIMIZERS["schedule_free_adamw"](learning_rate=0.3), bowl()
    _, task, state = start(optimizer, family)

    def losses(phi, **options):
        tx = bind_tasks(optimizer, {"learning_rate": phi})
        return unroll(tx, family, task, state, length=4, objective_batch="full", **options)[1].loss

    phi = jnp.log(0.3)
    tx, one_by_one, loss = bind_tasks(optimizer, {"learning_rate": phi}), state, jax.vmap(family.loss, (0, 0, None))
    for t, found in enumerate(losses(phi)):
        one_by_one, trace = unroll(tx, family, task, one_by_one, length=1)
        np.testing.assert_allclose(found, loss(judged_params(optimizer, one_by_one), task, ()), rtol=1e-5)
        assert t == 0 or not np.allclose(found, trace.loss[0], rtol=1e-4)
    slope = jax.jacfwd(lambda phi: losses(phi, second_order=True))(phi)
    np.testing.assert_allclose(slope, (losses(phi + 1e-3) - losses(phi - 1e-3)) / 2e-3, rtol=1e-3, atol=1e-6)


def test_objective_batches_that_are_gone_say_what_to_take():
    tx, task, state = start(sgd(), noisy_bowl(), tasks=1)
    for name in ("same", "none"):
        with pytest.raises(ValueError, match=f"objective_batch={name}` is gone"):
            unroll(tx, noisy_bowl(), task, state, length=1, objective_batch=name)
    with pytest.raises(ValueError, match="needs a validation split"):
        unroll(tx, noisy_bowl(), task, state, length=1, objective_batch="validation")


def test_batches_and_particles_are_drawn_once_a_step():
    """T steps make T + 1 estimates, the first at the reset, whatever the objective and the estimator ask for."""
    drawn = []
    family = noisy_bowl()

    def batch(key, task, data):
        jax.debug.callback(lambda: drawn.append(1))
        return family.batch(key, task, data)

    def advance(family, task, params, state, key):
        found, _ = minibatch().estimate(family, task, params, (), key)
        return found._replace(info={"advanced": state + 1.0}), state + 1.0

    counted = dataclasses.replace(family, batch=batch)
    particles = dataclasses.replace(family, oracle=Oracle(lambda family, task, params, key: jnp.zeros(()), advance))
    for second_order in (False, True):
        tx = bind_tasks(sgd(), {"learning_rate": jnp.log(0.1)})
        keys = jax.random.split(jax.random.key(0), 1)
        task, state = reset(tx, counted, keys)
        jax.effects_barrier()
        assert len(drawn) == 2, "f(θ_0) on a batch of its own, and the first estimate"
        drawn.clear()
        unroll(tx, counted, task, state, length=5, second_order=second_order)
        jax.effects_barrier()
        assert len(drawn) == 5
        drawn.clear()
        task, state = reset(tx, particles, keys)
        end, trace = unroll(tx, particles, task, state, length=5, second_order=second_order)
        np.testing.assert_array_equal(trace.info["advanced"][:, 0], [2, 3, 4, 5, 6])
        np.testing.assert_array_equal(end.oracle_state, [6.0])


def test_an_oracle_without_values_still_descends():
    """Its losses read 0, whose gradient is the oracle's; what is not finite has no value to die of."""
    family = bowl()

    def estimate(family, task, params, state, key):
        return Estimate(jax.grad(family.loss)(params, task, ()), None), state

    silent = dataclasses.replace(family, oracle=Oracle(lambda *_: (), estimate))
    keys = jax.random.split(jax.random.key(0), 3)

    def last(log_rate, family):
        tx = bind_tasks(sgd(), {"learning_rate": log_rate})
        task, state = reset(tx, family, keys)
        end, trace = unroll(tx, family, task, state, length=4)
        return trace.loss[-1].sum(), (end.params, trace.loss)

    told, (params, _) = jax.grad(last, has_aux=True)(jnp.log(0.3), family)
    untold, (same, loss) = jax.grad(last, has_aux=True)(jnp.log(0.3), silent)
    np.testing.assert_array_equal(same, params)
    np.testing.assert_allclose(untold, told, rtol=1e-6)
    np.testing.assert_array_equal(loss, 0.0)


# Either of the two ways to batch an optimizer meets several leaves; every family is batched.
LSTM = lstm(noise="per_step", hidden_size=4, num_layers=1)
PAIRS = [(name, "adam") for name in TASKS] + [("linear_regression", "lstm"), ("classifier", "lstm")]


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_batched_equals_one_task_at_a_time(name, optimizer):
    family = TASKS[name](**SMALL.get(name, {}))
    made = LSTM if optimizer == "lstm" else OPTIMIZERS[optimizer]()
    tx = bind_tasks(made, jax.jit(made.init)(jax.random.key(7)))
    run = jax.jit(lambda keys: unroll(tx, family, *reset(tx, family, keys), length=4, explore=True)[1])
    keys = jax.random.split(jax.random.key(0), 2)
    together = run(keys)
    for i in range(2):
        alone = run(keys[i : i + 1])
        np.testing.assert_allclose(together.loss[:, i], alone.loss[:, 0], rtol=2e-3)
    assert together.alive.all()


@pytest.mark.parametrize("rule", ["recursive", "direct"])
def test_two_windows_equal_one_of_twice_the_length(rule):
    family = noisy_bowl()
    tx, task, state = start(lstm(step_rule=rule, noise="per_step", hidden_size=4, num_layers=1), family)
    run = jax.jit(lambda state, length: unroll(tx, family, task, state, length=length, explore=True), static_argnums=1)
    end, trace = run(state, 8)
    middle, first = run(state, 4)
    last, second = run(middle, 4)
    np.testing.assert_array_equal(trace.loss, jnp.concatenate([first.loss, second.loss]))
    np.testing.assert_array_equal(end.params, last.params)
    np.testing.assert_array_equal(last.step, [8, 8, 8])


def test_noise_is_on_only_when_exploring():
    family = bowl()
    tx, task, state = start(LSTM, family)
    quiet, loud = jax.jit(
        lambda state: [
            unroll(tx, family, task, state, length=3, explore=explore)[1].update_norm for explore in (False, True)
        ]
    )(state)
    np.testing.assert_allclose(quiet, np.exp(-3.0), rtol=1e-4)  # the log-α head starts at -3 for every input
    assert np.std(loud / quiet) > 0.1


def test_a_dead_task_freezes_reads_infinity_and_leaves_the_gradient_alone():
    family = cliff()
    tx, task, state = start(sgd(learning_rate=0.1), family, tasks=8)
    doomed = np.asarray(task > 0.5)
    assert 0 < doomed.sum() < 8
    end, trace = jax.jit(lambda state: unroll(tx, family, task, state, length=3))(state)
    np.testing.assert_array_equal(np.asarray(end.alive), ~doomed)
    assert np.isinf(trace.loss[:, doomed]).all()
    np.testing.assert_array_equal(end.params[doomed], np.ones((doomed.sum(), 2)))
    np.testing.assert_allclose(end.params[~doomed], 0.8**3, rtol=1e-6)

    def total(log_rate):
        tx = bind_tasks(sgd(), {"learning_rate": log_rate})
        end, trace = unroll(tx, family, task, state, length=3)
        return jnp.sum(jnp.where(end.alive, jnp.mean(trace.loss, axis=0), 0.0))

    def survivors_only(log_rate):
        x, losses = 1.0, []
        for _ in range(3):
            x = x - jnp.exp(log_rate) * jax.lax.stop_gradient(2 * x)
            losses.append(2 * x**2)
        return (~doomed).sum() * sum(losses) / 3

    np.testing.assert_allclose(
        jax.jit(jax.grad(total))(jnp.log(0.1)), jax.grad(survivors_only)(jnp.log(0.1)), rtol=1e-5
    )


def test_an_exploding_run_is_counted_dead_and_its_meta_gradient_stays_finite():
    family = TASKS["rosenbrock"]()

    def total(meta_params):
        tx = bind_tasks(sgd(), meta_params)
        task, state = reset(tx, family, jax.random.split(jax.random.key(0), 4))
        end, trace = unroll(tx, family, task, state, length=30)
        return jnp.sum(jnp.where(end.alive, jnp.mean(trace.loss, axis=0), 0.0)), (end.alive, trace.loss)

    gradient, (alive, loss) = jax.jit(jax.grad(total, has_aux=True))({"learning_rate": jnp.log(10.0)})
    assert not alive.any()
    assert np.isinf(loss[-1]).all()
    assert np.isfinite(gradient["learning_rate"])


@pytest.mark.parametrize("objective_batch", ["fresh", "validation"])
@pytest.mark.parametrize(("name", "second_order"), [("sgd", False), ("sgd", True), ("controller", True)])
def test_the_derivatives_of_the_dead_are_nowhere_in_the_gradient(name, second_order, objective_batch):
    """Neither in φ of the optimizer nor in hyperparameters that tasks share, where no derivative is a number."""

    def loss(params, task, batch, *, hyper=None):
        return (hyper or {"scale": 1.0})["scale"] * jnp.sum(jnp.sqrt(params + jnp.where(task > 0.5, -0.95, 5.0)))

    family = dataclasses.replace(
        cliff(),
        loss=loss,
        validation_loss=lambda params, task, batch: jnp.sum(params**2),
        hyper={"scale": Hyper(1.0)},
        splits=("train", "validation"),
    )
    optimizer = with_task(OPTIMIZERS[name](), family)
    phi = optimizer.init(jax.random.key(7))
    if name == "sgd":
        phi["optimizer"] = {"learning_rate": jnp.log(0.1)}
    task, state = reset(bind_tasks(optimizer, phi), family, jax.random.split(jax.random.key(0), 8))

    def total(phi, task, state):
        tx, how = bind_tasks(optimizer, phi), {"second_order": second_order, "objective_batch": objective_batch}
        end, trace = unroll(tx, family, task, state, length=6, **how)
        return jnp.sum(jnp.where(end.alive, jnp.mean(trace.loss, axis=0), 0.0)), end.alive

    slope = jax.jit(jax.grad(total, has_aux=True))
    gradient, alive = slope(phi, task, state)
    assert state.alive.all() and 0 < alive.sum() < 8
    survivors, _ = slope(phi, *jax.tree.map(lambda leaf: leaf[alive], (task, state)))
    assert survivors["task"]["scale"] != 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, survivors)


def test_optax_transformations_run_as_they_are():
    family = bowl()
    tx = optax.with_extra_args_support(optax.chain(optax.clip(1.0), optax.sgd(0.3, momentum=0.9)))
    from metaopt.types import Optimizer

    batched = bind_tasks(Optimizer(lambda key: (), lambda meta_params: tx), ())
    task, state = reset(batched, family, jax.random.split(jax.random.key(0), 2))
    end, trace = unroll(batched, family, task, state, length=10)
    assert (trace.loss[-1] < trace.initial_loss).all()
    assert end.alive.all()


def test_segments_change_the_memory_and_not_the_gradient():
    family = TASKS["quadratic"](dim=3)
    phi = jax.jit(LSTM.init)(jax.random.key(7))
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(phi, segment_lengths):
        tx = bind_tasks(LSTM, phi)
        task, state = reset(tx, family, keys)
        state, trace = unroll(tx, family, task, state, length=7, explore=True, segment_lengths=segment_lengths)
        return jnp.mean(trace.loss), (state.params, trace.loss)

    def slope(segment_lengths):
        return jax.jit(jax.value_and_grad(lambda phi: loss(phi, segment_lengths), has_aux=True))

    (_, whole), expected = slope(())(phi)
    for segment_lengths in [(1,), (4, 2)]:
        (_, parts), gradient = slope(segment_lengths)(phi)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), (parts, gradient), (whole, expected)
        )
    # A segment as long as the run cuts nothing: it is the same program.
    assert slope((7,)).lower(phi).as_text() == slope(()).lower(phi).as_text() != slope((3,)).lower(phi).as_text()


def test_memory_keeps_within_its_budget_whatever_the_horizon():
    family, optimizer = TASKS["quadratic"](dim=10), lstm(hidden_size=40, num_layers=1, features="gradient")
    phi = jax.jit(optimizer.init)(jax.random.key(7))
    keys = jax.random.split(jax.random.key(0), 16)

    def temporary_bytes(length, budget):
        def loss(phi):
            tx = bind_tasks(optimizer, phi)
            task, state = reset(tx, family, keys)
            own = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
            lengths = pick_segment_lengths(length, own, 2 * own, budget)
            return jnp.mean(unroll(tx, family, task, state, length=length, segment_lengths=lengths)[1].loss)

        return jax.jit(jax.grad(loss)).lower(phi).compile().memory_analysis().temp_size_in_bytes

    budget = 2 * 2**20
    extra = 2 * 2**20  # a step's own activations, keys and trace
    assert temporary_bytes(30, budget) < budget + extra  # uncut
    assert temporary_bytes(300, budget) < budget + extra  # in segments
    assert temporary_bytes(3000, budget) < budget + extra  # in segments of segments
    assert temporary_bytes(300, 2**40) > 4 * budget


def test_a_dead_task_does_not_reach_the_gradient_through_the_value_either():
    def init(params):
        return ()

    def bind(phi):
        def update(updates, state, params=None, *, value, **extra_args):
            return jax.tree.map(lambda g: -phi * jnp.reshape(value, ()) * g, updates), state

        return optax.GradientTransformationExtraArgs(init, update)

    optimizer = Optimizer(lambda key: jnp.asarray(0.1), bind)
    family = cliff()

    def loss(phi):
        tx = bind_tasks(optimizer, phi)
        task, state = reset(tx, family, jax.random.split(jax.random.key(0), 8))
        final, trace = unroll(tx, family, task, state, length=4)
        return jnp.sum(jnp.where(final.alive, trace.loss[-1], 0.0)), final.alive

    gradient, alive = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(0.1))
    assert 0 < alive.sum() < 8, alive
    assert jnp.isfinite(gradient)
