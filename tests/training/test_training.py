"""Meta-training: it lowers the loss, resumes to the bit, compiles once, and says when it diverges."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metaopt.choices import choice, parse_choice
from metaopt.errors import UserError
from metaopt.experiment import Curriculum, Experiment, Log, MetaOptimizer, Validation, build_family, build_optimizer
from metaopt.inner.binding import bind_tasks
from metaopt.inner.step import reset
from metaopt.inner.unroll import unroll
from metaopt.optimizers import sgd
from metaopt.registry import ESTIMATORS
from metaopt.training.loop import Diverged, _check_alive, meta_train
from metaopt.training.meta_optimizer import make_meta_optimizer
from metaopt.training.trainer import Trainer, averaged

BASE = Experiment(
    tasks=(choice("quadratic", dim=3),),
    optimizer=choice("lstm", hidden_size=4, num_layers=1, noise="per_step"),
    estimator=choice("reparameterised"),
    num_meta_steps=12,
    num_tasks=4,
    horizon=6,
    log=Log(every=4),
)
# Where neither the learned optimizer nor the number of devices is what is looked at: a program compiled sooner.
PLAIN = dataclasses.replace(BASE, optimizer=choice("adam"), estimator=choice("truncated_backprop"), num_devices=1)


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


def test_a_chunk_traces_the_meta_step_once():
    # Of many families tracing is half of what a start takes where the compilation is cached.
    trainer, traced = Trainer(PLAIN), []
    estimate = trainer.estimator.estimate

    def counted(*args):
        traced.append(None)
        return estimate(*args)

    trainer.estimator = trainer.estimator._replace(estimate=counted)
    trainer.run_chunk(trainer.init())
    assert len(traced) == 1


def test_metrics_are_complete_and_finite():
    seen = {}
    meta_train(PLAIN, callbacks=[lambda _, state, metrics: seen.update(metrics)])
    expected = {"meta_loss", "last_loss", "step_length", "alive", "diverged", "grad_norm", "update_norm", "skipped"}
    expected |= {"meta_step", "learning_rate", "nonfinite_gradient", "clipped", "failed"}
    assert expected == set(seen)
    assert all(np.isfinite(values).all() for values in seen.values())
    assert (seen["alive"] == 1).all()
    assert (seen["skipped"] == 0).all()
    assert ((seen["failed"] >= 0) & (seen["failed"] <= 1)).all()


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
        num_devices=1,
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


def test_decay_of_the_meta_optimizer_is_decoupled():
    params, nothing = jnp.full(3, 2.0), jnp.zeros(3)
    tx, _ = make_meta_optimizer(MetaOptimizer(name="adamw", weight_decay=0.5), 10)
    np.testing.assert_allclose(tx.update(nothing, tx.init(params), params)[0], -0.5 * params)  # times the rate
    with pytest.raises(UserError, match="adam has none; take name=adamw"):
        make_meta_optimizer(MetaOptimizer(weight_decay=0.5), 10)


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
    experiment = dataclasses.replace(PLAIN, meta_optimizer=config)
    meta_train(experiment, callbacks=[lambda _, state, metrics: rows.append(metrics)])
    rate, update, gradient = (
        np.concatenate([row[k] for row in rows]) for k in ("learning_rate", "update_norm", "grad_norm")
    )
    np.testing.assert_allclose(rate, 0.5 * 0.01 ** (np.arange(12) / 12), rtol=1e-5)
    np.testing.assert_allclose(update, rate * gradient, rtol=1e-4)


def test_the_exact_oracle_gives_full_batch_gradients():
    family = build_family(choice("linear_regression", dim=3), oracle=choice("exact"))
    tx = bind_tasks(sgd(learning_rate=0.1), {"learning_rate": jnp.log(0.1)})
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
        (dict(optimizer=choice("lstm", noise="none")), "noise=per_step"),
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


STABLE = dataclasses.replace(
    BASE,
    unroll_length=2,
    estimator=choice("reparameterised"),
    meta_optimizer=MetaOptimizer(ema=0.8, clip_adaptive=1.5, clip_norm=None),
    curriculum=Curriculum(kind="log_uniform"),
    companion=2,
    bfloat16=0.5,
)


def test_the_average_of_phi_is_that_of_a_loop():
    experiment = dataclasses.replace(
        STABLE, optimizer=PLAIN.optimizer, estimator=PLAIN.estimator, num_devices=1, num_meta_steps=6, log=Log(every=1)
    )
    seen = []

    def look(_, state, metrics):
        seen.append((np.concatenate([x.ravel() for x in bits(state.meta_params)]), bits(averaged(state))))

    meta_train(experiment, callbacks=[look])
    phis = np.stack([phi for phi, _ in seen]).astype(np.float64)
    for count, (_, average) in enumerate(seen, start=1):
        weights = 0.8 ** np.arange(count - 1, -1, -1.0)
        expected = weights @ phis[:count] / weights.sum()
        np.testing.assert_allclose(np.concatenate([x.ravel() for x in average]), expected, rtol=1e-5, atol=1e-7)
    plain = Trainer(dataclasses.replace(PLAIN, num_meta_steps=1)).init()
    assert plain.ema == () and averaged(plain) is plain.meta_params


def test_all_stabilisers_together_resume_to_the_bit():
    trainer = Trainer(STABLE)
    whole = meta_train(trainer)
    half = meta_train(trainer, callbacks=[lambda _, state, metrics: int(state.meta_step) == 8])
    again = meta_train(STABLE, state=jax.tree.map(jnp.copy, half))
    assert int(half.meta_step) == 8
    for a, b in zip(bits(whole), bits(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_horizons_of_a_fixed_curriculum_and_one_compilation_as_levels_rise():
    fixed = Curriculum(kind="fixed", horizons=(2, 4), every=3)
    rows = []
    experiment = dataclasses.replace(PLAIN, unroll_length=2, curriculum=fixed)
    meta_train(experiment, callbacks=[lambda _, state, metrics: rows.append(metrics)])
    horizon = np.concatenate([row["horizon"] for row in rows])
    # A run of 2 windows that began at meta-step 4 ends at 5, the next at 7 (one of the second level still).
    np.testing.assert_array_equal(horizon, [2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6, 6])

    waiting = Curriculum(kind="validation", horizons=(2, 4))
    trainer = Trainer(dataclasses.replace(PLAIN, unroll_length=2, curriculum=waiting, num_meta_steps=24))
    assert trainer.levels == (2, 4, 6)
    horizons, compiled = [], []

    def rise(trainer, state, metrics):
        horizons.extend(metrics["horizon"])
        if not compiled:
            jax.monitoring.register_event_duration_secs_listener(
                lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
            )
            compiled.append("begin")
        trainer.level = len(horizons) // 8

    try:
        meta_train(trainer, callbacks=[rise])
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == ["begin"]
    assert set(horizons[:8]) == {2} and set(horizons[9:16]) == {4} and set(horizons[18:]) == {6}


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        (dict(clip_norm=1e9), 0.0),
        (dict(clip_norm=1e-9), 1.0),
        (dict(clip_norm=None), 0.0),
        (dict(clip_norm=None, clip_value=1e-9), 1.0),
        (dict(clip_norm=None, clip_adaptive=1.0001), None),
    ],
)
def test_clipped_meta_steps_are_counted(settings, share):
    rows = []
    rate = 2.0**-10  # exact
    config = MetaOptimizer(name="sgd", learning_rate=rate, **settings)
    experiment = dataclasses.replace(PLAIN if share is not None else BASE, meta_optimizer=config)
    meta_train(experiment, callbacks=[lambda _, state, metrics: rows.append(metrics)])
    clipped, gradient, update = (
        np.concatenate([row[name] for row in rows]) for name in ("clipped", "grad_norm", "update_norm")
    )
    np.testing.assert_array_equal(clipped, update < 0.9999999 * rate * gradient)
    assert clipped[0] == 0 and 0 < clipped.mean() < 1 if share is None else clipped.mean() == share


def test_nonfinite_gradients_are_dropped_and_counted(register):
    bad = {2, 3, 9}
    honest = ESTIMATORS["truncated_backprop"]

    @functools.wraps(honest)
    def spoilt(*args, **settings):
        estimator = honest(*args, **settings)

        def init(key, meta_params, families):
            return jnp.zeros((), jnp.int32), estimator.init(key, meta_params, families)

        def estimate(key, meta_params, state, families):
            gradient, inner, metrics = estimator.estimate(key, meta_params, state[1], families)
            now = jnp.isin(state[0], jnp.asarray(sorted(bad)))
            gradient = jax.tree.map(lambda leaf: jnp.where(now, jnp.nan, leaf), gradient)
            return gradient, (state[0] + 1, inner), metrics

        return estimator._replace(init=init, estimate=estimate)

    register(ESTIMATORS, "truncated_backprop", spoilt, differentiates=True, noise="never")
    rows, phis = [], []
    experiment = dataclasses.replace(
        PLAIN, log=Log(every=1), meta_optimizer=MetaOptimizer(clip_adaptive=2.0, ema=0.5, schedule="cosine")
    )

    def look(_, state, metrics):
        rows.append(metrics)
        phis.append((bits(state.meta_params), bits(state.opt_state)))

    meta_train(experiment, callbacks=[look])
    counted = np.concatenate([row["nonfinite_gradient"] for row in rows])
    np.testing.assert_array_equal(np.flatnonzero(counted), sorted(bad))
    np.testing.assert_array_equal(counted, np.concatenate([row["skipped"] for row in rows]))
    for step in range(1, 12):
        before, after = ([x for part in phis[index] for x in part] for index in (step - 1, step))
        same = all((a == b).all() for a, b in zip(before, after, strict=True))
        assert same == (step in bad)
    assert all(np.isfinite(x).all() for tree in phis for part in tree for x in part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(meta_optimizer=MetaOptimizer(ema=1.0)), "`meta_optimizer.ema` .1.0. must lie between 0 and 1"),
        (dict(meta_optimizer=MetaOptimizer(clip_adaptive=1.0)), "`meta_optimizer.clip_adaptive`: .* above 1; try 3"),
        (dict(curriculum=Curriculum(kind="fixed", horizons=(3,))), "set `unroll_length`"),
        (
            dict(curriculum=Curriculum(kind="fixed", horizons=(3,)), estimator=choice("truncated_backprop")),
            "one window is the whole `horizon` .6.",
        ),
        (
            dict(
                curriculum=Curriculum(kind="validation", horizons=(2,)), unroll_length=2, validation=Validation(every=0)
            ),
            "`validation.every` is 0",
        ),
        (dict(companion=-1), "`companion` is -1"),
    ],
)
def test_stabilisers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Trainer(dataclasses.replace(BASE, **change))
