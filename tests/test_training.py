"""Meta-training: it lowers the loss, resumes to the bit, compiles once, and says when it diverges."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.experiment import (
    Experiment,
    Log,
    MetaOptimizer,
    UserError,
    build_family,
    build_optimizer,
    choice,
    parse_choice,
)
from metaopt.optimizers import sgd
from metaopt.training import Diverged, Trainer, _check_alive, make_meta_optimizer, meta_train
from metaopt.unroll import bind_tasks, reset, unroll

BASE = Experiment(
    tasks=(choice("quadratic", dim=3),),
    optimizer=choice("lstm", hidden_size=4, noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=12,
    num_tasks=4,
    horizon=6,
    log=Log(every=4),
)


def bits(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


@pytest.mark.parametrize("unroll_length", [6, 3])
def test_resumed_equals_uninterrupted_to_the_bit(unroll_length):
    trainer = Trainer(dataclasses.replace(BASE, unroll_length=unroll_length))
    rows = []
    whole = meta_train(trainer, callbacks=[lambda _, state, metrics: rows.append(metrics)])
    half = meta_train(trainer, callbacks=[lambda _, state, metrics: int(state.meta_step) == 8])
    assert int(half.meta_step) == 8
    saved = jax.tree.map(jnp.copy, half)
    again = meta_train(Trainer(dataclasses.replace(BASE, unroll_length=unroll_length)), state=saved)
    for a, b in zip(bits(whole), bits(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.concatenate([row["meta_step"] for row in rows]), np.arange(1, 13))


def test_one_compilation_serves_every_chunk_a_short_last_one_and_a_new_run():
    trainer = Trainer(dataclasses.replace(BASE, num_meta_steps=10))
    lengths, compiled = [], []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def look(_, state, metrics):
        lengths.append(len(metrics["meta_loss"]))
        if len(lengths) == 1:
            jax.monitoring.register_event_duration_secs_listener(listen)

    try:
        meta_train(trainer, callbacks=[look])
        meta_train(trainer, state=None, callbacks=[look])
    finally:
        jax.monitoring.clear_event_listeners()
    assert lengths == [4, 4, 2, 4, 4, 2]
    # A new run draws its start anew: one small program, compiled once more; the chunk is not.
    assert len(compiled) <= 1


def test_metrics_are_complete_and_finite():
    seen = {}
    meta_train(BASE, callbacks=[lambda _, state, metrics: seen.update(metrics)])
    expected = {"meta_loss", "last_loss", "step_length", "alive", "diverged", "grad_norm", "update_norm", "skipped"}
    assert expected | {"meta_step", "learning_rate", "nonfinite_gradient"} == set(seen)
    assert all(np.isfinite(values).all() for values in seen.values())
    assert (seen["alive"] == 1).all()
    assert (seen["skipped"] == 0).all()


def test_several_families_with_their_own_shapes():
    names = []
    experiment = dataclasses.replace(
        BASE, tasks=(choice("quadratic", dim=3), choice("rosenbrock", pairs=2)), rescale=0.5
    )
    meta_train(experiment, callbacks=[lambda _, state, metrics: names.extend(metrics)])
    assert {"meta_loss/quadratic:dim=3", "meta_loss/rosenbrock:pairs=2"} <= set(names)


def test_no_task_alive_leaves_everything_untouched_and_stops_the_run():
    experiment = dataclasses.replace(
        BASE,
        tasks=(choice("rosenbrock"),),
        optimizer=choice("sgd", learning_rate=100.0),
        estimator=choice("truncated_backprop"),
        horizon=30,
    )
    trainer = Trainer(experiment)
    before = bits(trainer.init())
    rows, after = [], []

    def look(_, state, metrics):
        rows.append(metrics)
        after.extend(bits(state))

    with pytest.raises(Diverged, match="no task was alive in 100% of the last 12 meta-steps, up to meta-step 12"):
        meta_train(trainer, callbacks=[look])
    assert (rows[0]["skipped"] == 1).all()
    assert (rows[0]["diverged"] == 4).all()
    assert np.isnan(rows[0]["meta_loss"]).all()  # no loss, not the best of all losses
    for a, b in list(zip(before, after[: len(before)], strict=True))[:-1]:  # all but the meta-step itself
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop", "lion"])
def test_meta_optimizer_is_optax_with_clipping_first(name):
    config = MetaOptimizer(name=name, learning_rate=0.1, clip_norm=1.0, clip_value=0.5)
    tx, _ = make_meta_optimizer(config, 10)
    params = {"w": jnp.ones(3)}
    gradient = {"w": jnp.array([3.0, -0.1, 0.0])}
    updates, _ = tx.update(gradient, tx.init(params), params)
    updates = jax.tree.map(lambda leaf: 0.1 * leaf, updates)  # the schedule's part
    clipped = {"w": jnp.array([0.5, -0.1, 0.0])}
    reference = getattr(optax, name)(0.1)
    expected, _ = reference.update(clipped, reference.init(params), params)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_schedules():
    _, cosine = make_meta_optimizer(MetaOptimizer(learning_rate=1.0, schedule="cosine", final_fraction=0.1), 100)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1.0, 0.55, 0.1], rtol=1e-6)
    _, decay = make_meta_optimizer(MetaOptimizer(learning_rate=1.0, schedule="exponential", final_fraction=0.01), 100)
    np.testing.assert_allclose([decay(0), decay(50), decay(100)], [1.0, 0.1, 0.01], rtol=1e-5)
    _, warm = make_meta_optimizer(MetaOptimizer(learning_rate=1.0, warmup_steps=10), 100)
    np.testing.assert_allclose([warm(0), warm(5), warm(20)], [0.0, 0.5, 1.0])
    both = MetaOptimizer(learning_rate=1.0, schedule="cosine", warmup_steps=20, final_fraction=0.1)
    np.testing.assert_allclose(make_meta_optimizer(both, 100)[1](100), 0.1, rtol=1e-6)  # the end is the run's end
    with pytest.raises(UserError, match="must be below `num_meta_steps`"):
        make_meta_optimizer(both, 20)


def test_the_learning_rate_is_that_of_the_meta_step():
    rows = []
    config = MetaOptimizer(learning_rate=0.5, schedule="exponential", final_fraction=0.01, name="sgd", clip_norm=None)
    experiment = dataclasses.replace(BASE, meta_optimizer=config)
    meta_train(experiment, callbacks=[lambda _, state, metrics: rows.append(metrics)])
    rate, update, gradient = (
        np.concatenate([row[k] for row in rows]) for k in ("learning_rate", "update_norm", "grad_norm")
    )
    np.testing.assert_allclose(rate, 0.5 * 0.01 ** (np.arange(12) / 12), rtol=1e-5)
    np.testing.assert_allclose(update, rate * gradient, rtol=1e-4)


def test_the_exact_oracle_gives_full_batch_gradients():
    family = build_family(choice("linear_regression", dim=3), oracle=choice("exact"))
    tx = bind_tasks(sgd(learning_rate=0.1), {"log_learning_rate": jnp.log(0.1)})
    task, state = reset(tx, family, jax.random.split(jax.random.key(0), 2))
    end, _ = unroll(tx, family, task, state, length=1)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], task)
        gradient = jax.grad(family.loss)(state.params[i], one, family.eval_batch(one, family.data, "train"))
        np.testing.assert_allclose(end.params[i], state.params[i] - 0.1 * gradient, rtol=1e-5)


def test_one_bad_step_at_the_end_does_not_end_a_run():
    recent = [(False, False)] * 19 + [(True, True)]
    _check_alive(recent, 20)
    with pytest.raises(Diverged, match="meta-gradient was not finite in 60% of the last 20"):
        _check_alive([(False, True)] * 12 + [(False, False)] * 8, 20)


def test_the_same_settings_build_the_same_optimizer():
    assert build_optimizer(choice("lstm", hidden_size=3)) is build_optimizer(choice("lstm", hidden_size=3))
    assert build_optimizer(choice("lstm", hidden_size=3)) is not build_optimizer(choice("lstm", hidden_size=4))


def test_none_is_a_word_where_the_option_has_it_and_nothing_where_it_has_not():
    picked = parse_choice(":noise=none,alpha_bias=none", base=choice("lstm", noise="per_step"))
    assert picked.options == {"noise": "none", "alpha_bias": "none"}
    assert not build_optimizer(picked).explores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(optimizer=choice("lstn")), "did you mean 'lstm'"),
        (dict(tasks=(choice("quadratics"),)), "did you mean 'quadratic'"),
        (dict(optimizer=choice("lstm", hiden_size=3)), "did you mean 'hidden_size'"),
        (dict(optimizer=choice("lstm", hidden_size="big")), "not of type int"),
        (dict(optimizer=choice("lstm", hidden_size=2.5)), "not of type int"),
        (dict(optimizer=choice("lstm", beta1=float("nan"))), "finite"),
        (dict(optimizer=choice("lstm")), "noise=per_step"),
        (dict(optimizer=choice("lstm", features="some")), "gradient"),
        (dict(unroll_length=4), r"`horizon` \(6\) must be a multiple of `unroll_length` \(4\); try 4 or 8"),
        (dict(objective="means"), "did you mean 'mean'"),
        (dict(optimizer=choice("rnnprop", beta=1.5)), "must be in"),
        (dict(optimizer=choice("lstm_log_sign", p=-1.0)), "must be above 0"),
        (dict(optimizer=choice("adam", beta1=2.0)), "must be in"),
        (dict(tasks=(choice("quadratic", rescale=-1.0),)), "positive number"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(change, message):
    with pytest.raises(UserError, match=message) as caught:
        Trainer(dataclasses.replace(BASE, **change))
    assert "\n" not in str(caught.value)
