"""The controller against a loop in numpy, what leaves its steps as they are, and its gradient."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.choices import parse_choice
from metaopt.experiment import build_optimizer
from metaopt.optimizers import controller, mlp
from metaopt.optimizers.tensors import layout_of, over_tensors, sums, to_rows

OPTIONS = {
    "default": {},
    "other parts": dict(
        bank="momentum_fast,adam_slow", features="loss,cosine,time", hidden_size=3, loss_trend="log", beta2=0.99
    ),
    "step length alone": dict(outputs="alpha", features="size,others", bound=0.1, weight_decay=0.2),
    "mixture alone": dict(outputs="weights", features="all", weight_decay=0.2),
    "with a gain": dict(gain=2.0, max_change=0.5, early_change=3.0),
    "begins at a share of Polyak's step": dict(start="polyak", early_change=1.0),
    "with a brake": dict(gain=2.0, brake=0.1, start="polyak"),
    "with a gain, bound": dict(gain=2.0, features="size,params,start", bound=0.02),
    "with a bound that is met late, directions of even lengths": dict(gain=1.0, bound=0.2, surge=1.02),
}


def away(optimizer, seed=0, scale=0.5):
    """φ with nothing special: every number of it drawn."""
    flat, unravel = ravel_pytree(optimizer.init(jax.random.key(seed)))
    return unravel(flat + scale * jax.random.normal(jax.random.key(seed + 1), flat.shape, flat.dtype))


def trees(steps=6, shapes=((3, 2), (5,)), seed=0):
    """θ_0, and gradients and losses of so many steps."""
    rng = np.random.default_rng(seed)
    one = lambda: [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]  # noqa: E731
    return one(), [one() for _ in range(steps)], [jnp.float32(x) for x in rng.normal(size=steps) ** 2]


def looped(optimizer, phi, params, gradients, losses=None):
    """The steps one after the other, θ moving with them."""
    tx, out = optimizer.bind(phi), []
    state, update = tx.init(params), jax.jit(tx.update)
    for index, gradient in enumerate(gradients):
        steps, state = update(gradient, state, params, **({} if losses is None else {"value": losses[index]}))
        params = optax.apply_updates(params, steps)
        out.append(steps)
    return out


# ----- by hand --------------------------------------------------------------------------------------------------------

BETAS = dict(fast=0.5, medium=0.9, slow=0.99)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(phi, params, gradients, losses, options):
    """SPEC's equations, a tensor and a step at a time, in double precision."""
    phi = jax.tree.map(lambda x: np.asarray(x, np.float64), phi)
    gru, kernel, bias = phi["gru"], phi["output"]["kernel"], phi["output"]["bias"]
    bank = options.get("bank", "adam_medium,adam_fast,adam_slow,momentum_medium,momentum_slow").split(",")
    chosen = options.get("features", "all")
    hidden_size, beta2 = options.get("hidden_size", 16), options.get("beta2", 0.999)
    params = [np.asarray(x, np.float64) for x in params]
    tensors = range(len(params))
    m = [{name: np.zeros_like(x) for name in BETAS} for x in params]
    v = [{name: np.zeros_like(x) for name in ("fast", "slow")} for x in params]
    last = [np.zeros_like(x) for x in params]
    log_alpha, hidden = [float(phi["log_alpha"])] * len(params), [np.zeros(hidden_size) for _ in params]
    mean_length = [None] * len(params)
    averages, variance, out = None, 0.0, []
    slopes, raw, change, foretold = [0.0] * len(params), None, 0.0, 0.0
    began, lowest, noise, brakes, told = log_alpha[0], np.inf, 0.0, False, None

    def share(a, b):
        return a / (abs(a) + abs(b)) if a or b else 0.0

    def cosine(a, b):
        return np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2)) if b.any() else 0.0

    for t, (gradient, loss) in enumerate(zip(gradients, losses, strict=True), start=1):
        changes = [0.0, 0.0]
        if raw is not None:
            change += 0.2 * (float(loss) - raw - change)
            foretold += 0.2 * (sum(slopes) - foretold)
            changes = [share(float(loss) - raw, sum(slopes)), share(change, foretold)]
        raw = float(loss)
        loss = np.log(float(loss)) if options.get("loss_trend") == "log" else float(loss)
        if averages is None:
            averages = [loss, loss]
        else:
            variance += 0.03 * ((loss - averages[1]) ** 2 - variance)
            averages = [averages[0] + 0.2 * (loss - averages[0]), averages[1] + 0.03 * (loss - averages[1])]
        if t > 1 and not brakes:
            noise += max(0.03, 1 / (t - 1)) * (abs(loss - told) - noise)
        lowest += 0.01 * max(averages[1] - lowest, 0.0) if brakes else 0.0
        told, lowest = loss, min(lowest, averages[1])
        brakes = "brake" in options and t >= 10 and averages[0] > lowest + options["brake"] * noise
        trend = averages[0] - averages[1]
        if options.get("loss_trend") != "log":
            trend = trend / np.sqrt(variance) if variance else 0.0
        before, steps = [h.copy() for h in hidden], []
        if t == 1 and options.get("start") == "polyak":
            slope = sum(x.size * np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)) for x in gradient)
            length = np.log(abs(raw) / slope) - log_alpha[0]
            began = log_alpha[0] + float(phi["polyak"]) * np.clip(length, -4, 4)
            log_alpha = [began] * len(params)
        for i in tensors:
            g = np.asarray(gradient[i], np.float64)
            old = {name: x.copy() for name, x in m[i].items()}
            for name, beta in BETAS.items():
                m[i][name] = beta * old[name] + (1 - beta) * g
            for name, beta in (("fast", 0.9), ("slow", beta2)):
                v[i][name] = beta * v[i][name] + (1 - beta) * g**2
            m_hat = {name: m[i][name] / (1 - beta**t) for name, beta in BETAS.items()}
            v_hat = {name: v[i][name] / (1 - beta**t) for name, beta in (("fast", 0.9), ("slow", beta2))}
            mean = np.mean(v_hat["slow"])
            read = {
                "size": [np.log(np.mean(m_hat[name] ** 2) / mean) / 4 for name in BETAS],
                "cosine": [cosine(g, old[name]) for name in BETAS],
                "ratio": [np.mean(np.abs(m_hat[name]) / np.sqrt(v_hat["slow"])) for name in BETAS],
                "last_step": [cosine(g, last[i])],
                "slope": [share(np.sum(g * last[i]), slopes[i])],
                "second": [np.log(np.mean(v_hat["fast"]) / mean) / 4],
                "gradient": [np.log(np.mean(g**2) / mean) / 4],
                "params": [np.tanh((np.log(np.mean(params[i] ** 2)) / 2 - log_alpha[i]) / 8)],
                "alpha": [log_alpha[i] / 8],
                "time": [np.log(t) / 8],
                "start": [1 / np.sqrt(t)],
                "coordinates": [np.log(g.size) / 10],
                "loss": [trend],
                "change": changes,
            }
            names = list(read) if chosen == "all" else [name for name in chosen.split(",") if name != "others"]
            x = np.clip(np.concatenate([read[name] for name in names]), -4, 4)
            into = x @ gru["input"] + gru["bias"]
            if "others" in gru:
                into += sum(before[j] for j in tensors if j != i) / (len(params) - 1) @ gru["others"]
            own, n = before[i] @ gru["state"], hidden_size
            keep, reset = sigmoid(into[:n] + own[:n]), sigmoid(into[n : 2 * n] + own[n : 2 * n])
            hidden[i] = (1 - keep) * np.tanh(into[2 * n :] + reset * own[2 * n :]) + keep * before[i]
            output = hidden[i] @ kernel + bias
            if options.get("outputs") != "weights":
                most = options.get("max_change", 0.3) * (1 + options.get("early_change", 0) / np.sqrt(t))
                ahead = log_alpha[i] + most * np.tanh(output[0])
                log_alpha[i] = min(ahead, max(log_alpha[i] - most, began)) if brakes else ahead
            logits = 2 * (bias if options.get("outputs") == "alpha" else output)[1 : 1 + len(bank)]
            weights, step = np.exp(logits) / np.sum(np.exp(logits)), np.zeros_like(g)
            directions = []
            for direction in bank:
                kind, _, which = direction.partition("_")
                directions.append(m_hat[which] / np.sqrt(v_hat["slow"] if kind == "adam" else mean))
            lengths = [
                np.mean(np.abs(d)) if kind.startswith("adam") else np.sqrt(np.mean(d**2))
                for kind, d in zip(bank, directions, strict=True)
            ]
            most, length = np.inf, weights @ lengths
            mean_length[i] = length if mean_length[i] is None else mean_length[i]
            counted = min(length, options.get("surge", np.inf) * mean_length[i])
            mean_length[i] += 0.2 * (counted - mean_length[i])
            if "bound" in options:
                theta = np.log(np.mean(params[i] ** 2)) / 2
                most = np.log(options["bound"]) + max(theta, float(phi["log_alpha"])) - np.log(counted)
            log_alpha[i] = min(log_alpha[i], most)
            gain = options.get("gain", 0.0) * np.tanh(output[-1])
            gain = min(gain, 0.0) if brakes else gain
            alpha = np.exp(min(log_alpha[i] + gain, most)) * counted / length
            for weight, direction in zip(weights, directions, strict=True):
                step -= alpha * weight * direction
            last[i], slopes[i] = step, np.sum(g * step)
            steps.append(step - alpha * options.get("weight_decay", 0.0) * params[i])
        params = [x + step for x, step in zip(params, steps, strict=True)]
        out.append(steps)
    return out


@pytest.mark.parametrize("case", OPTIONS)
def test_steps_equal_a_loop_in_numpy(case):
    optimizer = controller(**OPTIONS[case])
    phi, (params, gradients, losses) = away(optimizer), trees(12)
    found = looped(optimizer, phi, params, gradients, losses)
    for steps, wanted in zip(found, by_hand(phi, params, gradients, losses, OPTIONS[case]), strict=True):
        for a, b in zip(steps, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=4e-6 * np.abs(b).max())


def test_it_begins_as_adam_and_a_little_of_the_rest():
    optimizer = controller()
    params, gradients, losses = trees(4)
    found = looped(optimizer, optimizer.init(jax.random.key(0)), params, gradients, losses)
    share = math.exp(2) / (math.exp(2) + 4)
    assert share == pytest.approx(0.65, abs=2e-3)
    # Of the other four two are Adam with other momenta; the rest are at most as long, by the tensor's mean.
    adam = optax.adam(math.exp(-4.6), eps=0.0)
    state = adam.init(params)
    for gradient, steps in zip(gradients, found, strict=True):
        whole, state = adam.update(gradient, state)
        for a, b in zip(whole, steps, strict=True):
            rest = np.asarray(b - share * a) * math.exp(4.6) / ((1 - share) / 4)
            assert np.sqrt(np.mean(rest**2)) < 4.4
    first = [-math.exp(-4.6) * (share + (1 - share) / 2) * np.sign(g) for g in gradients[0]]
    own = [-math.exp(-4.6) * (1 - share) / 2 * g / np.sqrt(np.mean(g**2)) for g in gradients[0]]
    for a, b, c in zip(found[0], first, own, strict=True):
        np.testing.assert_allclose(a, b + c, rtol=1e-4)


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**30])
@pytest.mark.parametrize(("start", "shift"), [("fixed", 8.0), ("polyak", 0.0)])
def test_no_step_hangs_on_the_scale_of_the_loss_or_on_a_shift(factor, start, shift):
    optimizer = controller(start=start)
    phi, (params, gradients, losses) = away(optimizer), trees()
    scaled = jax.tree.map(lambda x: factor * x, (gradients, [x + shift for x in losses]))
    plain = looped(optimizer, phi, params, gradients, losses)
    for a, b in zip(plain, looped(optimizer, phi, params, *scaled), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-9), a, b)


def test_tensors_may_change_places_and_their_coordinates_too():
    """In other shapes, beside empty leaves, in a tree of another kind: the same steps."""
    optimizer = controller()
    phi, (params, gradients, losses) = away(optimizer), trees(shapes=((6,), (40,), (2, 2)))
    order = np.random.default_rng(3).permutation(40)

    def other(tree):
        a, b, c = tree
        return {"c": (c[::-1].reshape(4), jnp.zeros((0, 2))), "b": b[order].reshape(4, 10), "z": a.reshape(2, 1, 3)}

    found = looped(optimizer, phi, other(params), [other(gradient) for gradient in gradients], losses)
    for a, b in zip(found, looped(optimizer, phi, params, gradients, losses), strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-8), a, other(b))


def test_types_may_be_mixed_and_no_loss_given():
    optimizer = controller(start="polyak")
    tx, (params, gradients, _) = optimizer.bind(away(optimizer)), trees()
    mixed = [params[0].astype(jnp.bfloat16), params[1]]
    with jax.numpy_dtype_promotion("strict"):
        gradient = [gradients[0][0].astype(jnp.bfloat16), gradients[0][1]]
        steps, state = jax.jit(tx.update)(gradient, tx.init(mixed), mixed)
    assert [step.dtype for step in steps] == [jnp.bfloat16, jnp.float32]
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("int32"), jnp.dtype("float32")}
    # A loss that is no number, or whose square is infinite, leaves the averages as they were.
    update = jax.jit(tx.update)
    one = update(gradients[0], tx.init(params), params, value=jnp.float32(2.0))[1]
    for loss in (jnp.nan, 1e20):
        two = update(gradients[1], one, params, value=jnp.float32(loss))[1]
        np.testing.assert_array_equal(one.trend[:-1], two.trend[:-1])
    with pytest.raises(ValueError, match="reads the parameters"):
        tx.update(gradients[0], tx.init(params))


def test_second_order_gradient_equals_finite_differences(x64):
    optimizer, (start, _, _) = controller(hidden_size=3), trees()
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float64), (away(optimizer), start)))
    phi, start = unravel(flat)
    flat, unravel = ravel_pytree(phi)

    def loss(params):
        return sum(jnp.sum(jnp.log(jnp.cosh(leaf))) for leaf in params)

    def total(flat):
        tx = optimizer.bind(unravel(flat))

        def body(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            steps, state = tx.update(gradient, state, params, value=value)
            params = optax.apply_updates(params, steps)
            return (params, state), loss(params)

        return jnp.mean(jax.lax.scan(body, (start, tx.init(start)), length=4)[1])

    both, width = jax.jit(jax.value_and_grad(total)), 1e-5
    gradient = both(flat)[1]
    for seed in range(3):
        direction = jax.random.normal(jax.random.key(seed), flat.shape)
        difference = (both(flat + width * direction)[0] - both(flat - width * direction)[0]) / (2 * width)
        np.testing.assert_allclose(gradient @ direction, difference, rtol=1e-5, atol=1e-9)
    # α_0 too, though it is where a run begins.
    assert abs(unravel(gradient)["log_alpha"]) > 1e-6


def test_a_brake_takes_alpha_back_to_where_it_began_while_the_loss_has_risen():
    """And is not felt by noise about a mean, nor while the loss falls."""
    free, held = controller(gain=1.0), controller(gain=1.0, brake=1.5)
    phi = free.init(jax.random.key(0))
    phi["output"]["bias"] = phi["output"]["bias"].at[0].set(1.0)  # ever longer steps
    params, gradients, _ = trees(steps=1)

    @functools.partial(jax.jit, static_argnums=0)
    def log_changes(optimizer, losses):
        tx = optimizer.bind(phi)

        def body(state, loss):
            _, state = tx.update(gradients[0], state, params, value=loss)
            return state, state.tensors.log_change[0]

        return jax.lax.scan(body, tx.init(params), losses)[1]

    noise = jnp.asarray(np.random.default_rng(0).normal(size=300), jnp.float32)
    falls = noise - jnp.arange(300) / 50
    for calm in (5 + noise, falls):
        np.testing.assert_array_equal(log_changes(held, calm), log_changes(free, calm))
    rises = falls.at[100:].add(jnp.arange(200.0) / 10)
    changes = np.asarray(log_changes(held, rises))
    assert changes[100] == log_changes(free, rises)[100] > 5
    first = int(np.argmax(np.diff(changes) < 0))  # the first step back
    assert 100 < first < 150
    np.testing.assert_allclose(-np.diff(changes)[first : first + 10], 0.3, rtol=1e-4)
    np.testing.assert_allclose(changes[-50:], 0.0, atol=1e-6)
    tx = held.bind(phi)
    state, update = tx.init(params), jax.jit(tx.update)
    for loss in rises:
        state = update(gradients[0], state, params, value=loss)[1]
    for step in range(1, 4):  # not where no loss is told
        state = update(gradients[0], state, params)[1]
        np.testing.assert_allclose(state.tensors.log_change, 0.3 * step * np.tanh(1.0), rtol=1e-4)
    # Until it has risen for good: a level that stays is one to go on from.
    level = jnp.concatenate([falls[:100], *[5 + noise, 5 - noise] * 3])
    changes = np.asarray(log_changes(held, level))
    braked = np.diff(changes) < 0
    assert changes[100:300].min() < 1e-6 and braked[100:200].mean() > 0.5 and braked[1000:].mean() < 0.02
    # However noisy what explodes is.
    wild = falls.at[100:].add(jnp.exp(jnp.arange(200.0) / 10) * jnp.abs(noise[:200]))
    assert log_changes(held, wild)[-1] == 0


def test_a_gradient_of_the_old_size_is_no_surge_and_one_after_none_is_none():
    """Once gradients are a thousandth of the first; a tensor that had none at first, or for a while, goes at once."""
    free, held = controller(), controller(surge=3.0)
    phi = free.init(jax.random.key(0))
    params, (one,), _ = trees(steps=1)
    small, none = (jax.tree.map(lambda g, c=c: c * g, one) for c in (1e-3, 0.0))
    fell = [one] * 3 + [small] * 60
    for optimizer, least, most in ((free, 10, 1e4), (held, 2, 3.5)):
        *_, before, after = looped(optimizer, phi, params, [*fell, one])
        ratio = np.linalg.norm(after[0]) / np.linalg.norm(before[0])
        assert least < ratio < most, ratio
    for gradients in ([none, one, one], [one, *[none] * 40, one]):
        steps = looped(held, phi, params, gradients)[-1]
        jax.tree.map(np.testing.assert_array_equal, steps, looped(free, phi, params, gradients)[-1])


@pytest.mark.parametrize("noise", ["per_step", "per_tensor"])
def test_noise_on_the_step_length_is_drawn_where_asked_for(noise):
    quiet, (params, gradients, _), key = controller(), trees(), jax.random.key(7)
    phi = away(quiet)

    @functools.partial(jax.jit, static_argnames=("kind", "in_use", "explore"))
    def step(kind, in_use="one", explore=False):
        tx = controller(noise=kind, noise_in_use=in_use).bind(phi)
        return tx.update(gradients[0], tx.init(params), params, key=key, explore=explore)

    (steps, state), (plain, after) = step(noise, explore=True), step("none", explore=True)
    ratios = [np.unique(np.round(np.asarray(a / b), 4)) for a, b in zip(steps, plain, strict=True)]
    assert all(ratio.size == 1 for ratio in ratios) and (ratios[0] == ratios[1]) == (noise == "per_step")
    # Outside of the recursion; in use it is its mode.
    np.testing.assert_array_equal(state.tensors.log_change, after.tensors.log_change)
    jax.tree.map(np.testing.assert_array_equal, step(noise)[0], plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6), step(noise, in_use="two")[0], plain)


REFUSED = [
    (dict(bank="adam_fast,adam_slo"), "did you mean 'adam_slow'"),
    (dict(features="sizes"), "did you mean 'size'"),
    (dict(hidden_size=0), "`hidden_size`"),
    (dict(beta2=1.0), "`beta2`"),
    (dict(bound=0.0), "`bound`"),
    (dict(surge=1.0), "`surge`"),
    (dict(brake=0.0), "`brake`"),
    (dict(brake=1.0, outputs="weights"), "`brake` is for a step length"),
    (dict(brake=1.0, loss_trend="log"), "`brake` goes by the loss"),
    (dict(weight_decay=-1.0), "`weight_decay`"),
    (dict(gain=-1.0), "`gain`"),
    (dict(gain=1.0, outputs="weights"), "`gain` is for a step length"),
    (dict(log_alpha=99.0), "`log_alpha`"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        controller(**options)


# ----- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3,), (7, 7, 7), (1, 300, 2), (5000, 9), (7,) * 70])
def test_sums_over_rows_are_sums_over_tensors(sizes):
    layout, true = layout_of(sizes), jnp.asarray(1) > 0
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]

    @jax.jit
    def both(leaves, true):
        matrix, owners = layout.matrix(leaves, jnp.float32), layout.owners(jnp.float32, true)
        totals = over_tensors(owners, jnp.stack(sums(matrix, matrix**2), axis=-1))
        return totals, layout.leaves(matrix + to_rows(owners, totals)[:, :1], leaves, true)

    totals, moved = both(leaves, true)
    for leaf, total, step in zip(leaves, totals, moved, strict=True):
        np.testing.assert_allclose(total, [leaf.sum(), (leaf**2).sum()], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(step, leaf + total[0], rtol=1e-5, atol=1e-4)
    padded = layout.shape[0] * layout.shape[1]
    assert padded <= 2 * sum(sizes) + 8 * len(sizes)


# ----- a network a coordinate in the bank -----------------------------------------------------------------------------


def test_a_bank_of_the_network_alone_with_a_scheduler_that_does_nothing_is_mlp():
    optimizer, alone = controller(bank="mlp", log_alpha=-3.0), mlp(log_alpha=-3.0)
    phi = optimizer.init(jax.random.key(0))
    phi["mlp"] = {key: away(mlp())[key] for key in ("network", "linear")}
    own = {**phi["mlp"], "log_alpha": jnp.float32(-3.0)}
    params, gradients, _ = trees()
    for ours, theirs in zip(
        looped(optimizer, phi, params, gradients), looped(alone, own, params, gradients), strict=True
    ):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_the_network_is_one_direction_among_the_others():
    """φ at its start weighs by a softmax of (2, 0); the scheduler's length is that of its start."""
    options = dict(bank="adam_medium,mlp", outputs="weights", log_alpha=-3.0)
    optimizer, adam, network = (
        controller(**options),
        controller(bank="adam_medium", log_alpha=-3.0),
        mlp(log_alpha=-3.0),
    )
    phi = optimizer.init(jax.random.key(0))
    own = {**phi["mlp"], "log_alpha": jnp.float32(-3.0)}
    params, gradients, _ = trees(steps=1)  # later steps depend on where the first one led
    (both,) = looped(optimizer, phi, params, gradients)
    (one,) = looped(adam, {**adam.init(jax.random.key(0))}, params, gradients)
    (other,) = looped(network, own, params, gradients)
    share = 1 / (1 + np.exp(-2.0))
    for found, first, second in zip(both, one, other, strict=True):
        np.testing.assert_allclose(found, share * first + (1 - share) * second, rtol=1e-5)


def test_the_scheduler_sets_the_length_of_the_networks_steps_a_tensor():
    optimizer = controller(bank="mlp")
    phi = away(optimizer, scale=0.3)
    params, gradients, losses = trees(steps=8, shapes=((3, 2), (50,)))
    found = looped(optimizer, phi, params, gradients, losses)
    lengths = np.array([[float(jnp.sqrt(jnp.mean(jnp.square(leaf)))) for leaf in steps] for steps in found])
    changes = np.diff(np.log(lengths), axis=0)
    assert (np.abs(changes) <= 0.3 + 1e-5).all() and np.abs(changes).max() > 0.01
    assert np.abs(lengths[-1, 0] - lengths[-1, 1]) > 1e-6  # each tensor its own


@pytest.mark.parametrize("text", ["lstm", "lstm_log_sign", "rnnprop", "mlp", "controller", "controller:bank=mlp"])
def test_second_order_gradients_are_finite_where_coordinates_have_none(text):
    """A square root at 0, as of the second moment of a pixel that is always black, has an infinite derivative."""
    optimizer = build_optimizer(parse_choice(text))
    params, phi = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, optimizer.init(jax.random.key(0))

    def end(phi):
        tx, moved = optimizer.bind(phi), params
        state = tx.init(moved)
        for _ in range(2):
            gradients = {"w": moved["w"] * jnp.array([0.0, 1.0, 2.0, 0.0]), "b": 0 * moved["b"]}
            steps, state = tx.update(gradients, state, moved, key=jax.random.key(0))
            moved = optax.apply_updates(moved, steps)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(moved))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(end))(phi)))


@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_gradients_are_finite_where_losses_are_nearly_zero(scale):
    """A quotient's derivative has the square of what it divides by, which underflows long before that does."""
    optimizer = controller(start="polyak")
    phi, start = away(optimizer, scale=0.1), scale * jnp.array([1.0, -2.0, 0.5])

    def end(phi, second_order):
        tx, moved = optimizer.bind(phi), start
        state, total = tx.init(moved), 0.0
        for _ in range(3):
            gradient = moved if second_order else jax.lax.stop_gradient(moved)
            steps, state = tx.update(gradient, state, moved, value=jnp.sum(gradient**2) / 2)
            moved = optax.apply_updates(moved, steps)
            total += jnp.sum(moved / scale) ** 2
        return total

    for second_order in (False, True):
        found = jax.jit(jax.grad(end), static_argnums=1)(phi, second_order)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_losses_that_are_not_told_or_not_finite_change_nothing_that_is_kept():
    """What is foretold adds up until the next loss that is."""
    optimizer = controller(loss_trend="log")
    tx, (params, gradients, losses) = optimizer.bind(away(optimizer)), trees(steps=4)
    state, slopes = tx.init(params), 0.0
    for index, gradient in enumerate(gradients):
        loss = {0: {"value": losses[0]}, 1: {"value": jnp.inf}, 2: {}, 3: {"value": jnp.array([losses[3]])}}[index]
        before, foretold = state.trend, jnp.sum(state.tensors.slope)
        steps, state = tx.update(gradient, state, params, **loss)
        slopes += foretold
        if index in (1, 2):
            np.testing.assert_array_equal(state.trend[:-1], before[:-1])
            np.testing.assert_allclose(state.trend[-1], slopes, rtol=1e-6)
    change, told = state.trend[4], state.trend[5]
    np.testing.assert_allclose([change, told], [0.2 * (losses[3] - losses[0]), 0.2 * slopes], rtol=1e-5)
    assert state.trend[-1] == 0


def test_a_tensor_without_a_gradient_stays_where_it_is():
    """Whatever it remembers of gradients before; the others go on."""
    optimizer = controller()
    phi = away(optimizer, scale=0.3)
    params, gradients, _ = trees(steps=4)
    still = [[gradient[0], jnp.zeros_like(gradient[1])] for gradient in gradients]
    *_, last = looped(optimizer, phi, params, [*gradients, still[-1]])
    assert (last[1] == 0).all() and (last[0] != 0).all()
