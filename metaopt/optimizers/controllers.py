"""A learned controller: a small recurrent network a tensor says when to step how far, and along what.

The directions are hand-designed ones, each normalised so that it neither grows with the gradient's scale nor is of
length 1: as noise takes over, all of them shrink by themselves. What the network reads is free of the loss's scale, and
of any shift of it but under `start=polyak` and `loss_trend=log`. It is one and the same for all tensors, so φ fits any
pytree.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metaopt.errors import suggest
from metaopt.optimizers import mlps, trends
from metaopt.optimizers.coordinatewise import from_rows, rows_of
from metaopt.optimizers.noise import NoiseInUse, gamma_noise
from metaopt.optimizers.placement import explicit_mesh, laid_out_by_xla, last_axis_over, shardings, spread, vary_with
from metaopt.optimizers.steering import ControllerState, Noise, Outputs, Rule, Start, TensorState, one_update
from metaopt.optimizers.step_rules import LOG_ALPHA_RANGE
from metaopt.optimizers.tensors import Layout, layout_of
from metaopt.registry import OPTIMIZERS
from metaopt.trees import usual_rules
from metaopt.types import Explore, Key, MetaParams, Optimizer, PyTree

FAST, MEDIUM, SLOW = 0, 1, 2  # of the momenta
# A direction: which momentum, and whether each coordinate is divided by its own root mean square or by the tensor's.
BANK = {
    "adam_fast": (FAST, True),
    "adam_medium": (MEDIUM, True),
    "adam_slow": (SLOW, True),
    "momentum_fast": (FAST, False),
    "momentum_medium": (MEDIUM, False),
    "momentum_slow": (SLOW, False),
}
NETWORK = "mlp"  # in the bank: the direction of `mlp`'s network, learned with the rest, in each tensor of RMS 1
# What the network reads of a tensor: how many numbers. `others` is the mean state of the other tensors.
FEATURES = {
    "size": 3,  # of each momentum: log of mean m̂² over mean v̂
    "cosine": 3,  # between the gradient and each momentum before it
    "ratio": 3,  # mean |m̂|/√v̂
    "last_step": 1,  # the cosine between the gradient and the last step
    "slope": 1,  # along the last step: that at its end over it and that at its start; -½ on a line, 0 at a minimum
    "second": 1,  # log of the fast mean v̂ over the slow one
    "gradient": 1,  # log of mean ∇² over mean v̂
    "params": 1,  # log RMS(θ) less log α
    "alpha": 1,
    "time": 1,
    "start": 1,  # 1/√t: the first steps, which log t hardly tells apart
    "coordinates": 1,
    "loss": 1,  # its trend; 0 where `update` is given no `value`
    "change": 2,  # of the loss over it and what the slopes at the last step foretold, at once and on average; or 0
    "others": 0,
}
NETWORK_SIZE = 8, 2  # units a layer, layers
SHARE = 0.5  # of the way to Polyak's step at which α begins, before meta-training


@OPTIMIZERS.register(shorter_steps=lambda options: "log_alpha")
def controller(
    *,
    hidden_size: int = 16,
    bank: str = "adam_medium,adam_fast,adam_slow,momentum_medium,momentum_slow",
    features: str = "all",
    outputs: Outputs = "both",
    loss_trend: trends.Kind = "spread",
    log_alpha: float = -4.6,
    start: Start = "fixed",
    max_change: float = 0.3,
    early_change: float = 0.0,
    gain: float = 0.0,
    bound: float | None = None,
    brake: float | None = None,
    surge: float | None = None,
    weight_decay: float = 0.0,
    noise: Noise = "none",
    noise_in_use: NoiseInUse = "one",
    beta_fast: float = 0.5,
    beta: float = 0.9,
    beta_slow: float = 0.99,
    beta2_fast: float = 0.9,
    beta2: float = 0.999,
) -> Optimizer:
    """A GRU a tensor that steers a bank of normalised directions: -α_t Σ_j w_j d_j, log α_t = log α_{t-1} + c tanh o.

    It begins as .65 Adam and .35 the others of the bank. The loss is read where `update` is given it as `value=`. With
    `bank=mlp` it is the scheduler of Celo (Moudgil et al. 2025): a network a coordinate gives the direction, one a
    tensor its length.

    Args:
      hidden_size: of the GRU's state, one a tensor.
      bank: directions, with commas between them: adam_fast, adam_medium, adam_slow (m̂/√v̂), momentum_fast,
        momentum_medium, momentum_slow (m̂/√mean v̂), mlp (a network's a coordinate, as of `mlp`; ten more numbers a
        coordinate, and the last step is read without its part); the first is the one it begins with.
      features: what the GRU reads, with commas between them: size, cosine, ratio, last_step, slope, second, gradient,
        params, alpha, time, start, coordinates, loss, change, others; or all.
      outputs: whether it sets the step length (`alpha`), the mixture (`weights`) or `both`.
      loss_trend: a fast less a slow average of the loss, over its `spread` about the latter, or those of its `log`,
        which a shift of the loss changes.
      log_alpha: log α_0, a part of φ.
      start: `polyak`: log α begins a share of the way from log α_0 to that of Polyak's step (1987) along the normalised
        gradient, after which the loss would be 0 if it went on falling as at θ_0; the share is a part of φ. A shift of
        the loss changes it. Where the first loss is not told, α begins at α_0.
      max_change: c, the most that log α changes in a step, late in a run.
      early_change: k, the most is c (1 + k/√t) at step t, for the right α may be a hundred times α_0.
      gain: g, a step's α is e^{g tanh o'} times the one that is kept, o' one more output; 0: there is none.
      bound: α times the lengths of the directions, weighted, is kept below this multiple of RMS(θ), or of α_0 if
        that is larger; a length is an RMS, of Adam's directions the mean absolute value: a step on few coordinates may
        be longer. Noise and weight decay are not counted. None: it is not.
      brake: b, while a fast average of the loss lies above the lowest that a slow one has been by more than b mean
        changes of the loss from step to step, α falls as fast as it may until it is where it began, and each step that
        lowest comes by a hundredth nearer to the slow average; none: the network alone decides. Not under
        loss_trend=log, nor at steps where no loss is told.
      surge: s, the weighted directions together count as at most s times as long as they were on average of late: where
        gradients have become small and α large, one gradient of the old size would carry θ away; none: they do not.
      weight_decay: λ of decoupled decay, -α_t λ θ.
      noise: ξ_t ~ Gamma(2, 1) on α_t, `per_step` or `per_tensor`; drawn as that of `lstm`.
      noise_in_use: what stands for ξ_t in use: `one` (its mode), `two` (its mean), or it stays `on`.
      beta_fast, beta, beta_slow: of the momenta.
      beta2_fast, beta2: of the second moments; of the fast one the mean over a tensor is all that is kept.
    """
    betas, seconds = (beta_fast, beta, beta_slow), (beta2_fast, beta2)
    for name, value in zip(("beta_fast", "beta", "beta_slow", "beta2_fast", "beta2"), (*betas, *seconds), strict=True):
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` ({value}) must be in [0, 1).")
    least, most = LOG_ALPHA_RANGE
    if not least <= log_alpha <= most:
        raise ValueError(f"`log_alpha` ({log_alpha:g}) must lie between {least:g} and {most:g}, where it is kept.")
    for name, value in (("hidden_size", hidden_size), ("max_change", max_change), ("bound", bound), ("brake", brake)):
        if value is not None and value <= 0:
            raise ValueError(f"`{name}` ({value}) must be above 0.")
    if surge is not None and surge <= 1:  # at 1 a mean that has fallen could not rise again
        raise ValueError(f"`surge` ({surge}) must be above 1; try 3.")
    for name, value in (("weight_decay", weight_decay), ("gain", gain), ("early_change", early_change)):
        if value < 0:
            raise ValueError(f"`{name}` ({value}) must be at least 0.")
    for name, value in (("gain", gain), ("brake", brake)):
        if value and outputs == "weights":
            raise ValueError(f"`{name}` is for a step length that is set; take outputs=both or alpha, or leave it out.")
    if brake is not None and loss_trend == "log":
        raise ValueError("`brake` goes by the loss, not by its logarithm; take loss_trend=spread, or leave it out.")
    rule = Rule(
        bank=tuple(BANK.get(name) for name in _names("bank", bank, {**BANK, NETWORK: None})),
        features=tuple(FEATURES) if features == "all" else _names("features", features, FEATURES),
        hidden_size=hidden_size,
        outputs=outputs,
        loss_trend=loss_trend,
        start=start,
        max_change=max_change,
        early_change=early_change,
        gain=gain,
        bound=bound,
        brake=brake,
        surge=surge,
        weight_decay=weight_decay,
        noise=noise,
        noise_in_use=noise_in_use,
        betas=betas,
        seconds=seconds,
    )

    def init(key: Key) -> MetaParams:
        return _init_params(rule, log_alpha, key)

    return Optimizer(init, functools.partial(_bind, rule), noise="exploring" if noise != "none" else "none")


def _names(option: str, text: str, known: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ValueError(f"`{option}`: {suggest(name, known)}")
    return names


def _init_params(rule: Rule, log_alpha: float, key: Key) -> MetaParams:
    keys, hidden = jax.random.split(key, 3), rule.hidden_size

    def weights(key: Key, inputs: int, scale: float = 1.0) -> jax.Array:
        return scale / max(inputs, 1) ** 0.5 * jax.random.normal(key, (inputs, 3 * hidden), jnp.float32)

    gru = {
        "input": weights(keys[0], sum(FEATURES[name] for name in rule.features)),
        "state": weights(keys[1], hidden),
        "bias": jnp.zeros(3 * hidden, jnp.float32),
    }
    if "others" in rule.features:
        gru["others"] = weights(keys[2], hidden, 0.3)
    outputs = 1 + len(rule.bank) + (rule.gain > 0)  # Δ log α, the weights, the gain
    kernel = jnp.zeros((hidden, outputs), jnp.float32)
    bias = jnp.zeros(outputs, jnp.float32).at[1].set(1.0)
    found = {
        "gru": gru,
        "output": {"kernel": kernel, "bias": bias},
        "log_alpha": jnp.asarray(log_alpha, jnp.float32),
    }
    if rule.start == "polyak":
        found["polyak"] = jnp.asarray(SHARE, jnp.float32)
    if None in rule.bank:
        found[NETWORK] = mlps.init_params(jax.random.fold_in(key, 1), *NETWORK_SIZE)
    return found


# ----- bound to φ -----------------------------------------------------------------------------------------------------


def _bind(rule: Rule, meta_params: MetaParams) -> optax.GradientTransformationExtraArgs:
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(meta_params))

    @usual_rules()
    def init(params: PyTree) -> ControllerState:
        mesh = explicit_mesh(params)
        if mesh is None:
            state = _new_state(rule, rows_of(params), dtype)
            return vary_with(state, meta_params, params)._replace(count=state.count)
        axes, _ = spread(mesh, params)
        make = functools.partial(_new_state, rule, rows_of(params), dtype)
        out = jax.tree.map(lambda leaf: last_axis_over(mesh, axes, leaf), jax.eval_shape(make))
        # Jitted, so that no device ever holds the whole of it.
        build = jax.jit(lambda params: laid_out_by_xla(lambda params: make(), out, params), keep_unused=True)
        return build(params)

    @usual_rules()
    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        key: Key | None = None,
        value: jax.Array | None = None,
        explore: Explore = False,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        sizes = [leaf.size for leaf in rows_of(updates)]
        if not sum(sizes):
            return updates, state
        if params is None:
            raise ValueError("controller reads the parameters; call update(gradients, state, params).")

        def one(meta_params: Any, updates: PyTree, state: Any, params: PyTree, key: Any, value: Any) -> Any:
            gradients = rows_of(updates)
            layout = _layout(gradients)
            noise = _noise(rule, layout, key, explore, dtype)
            gradient, theta = (layout.matrix(leaves, dtype) for leaves in (gradients, rows_of(params)))
            learned = None
            if None in rule.bank:
                given = layout, meta_params[NETWORK], gradients, rows_of(params), state.network, dtype
                learned, _, network = mlps.directions(*given)
                learned = mlps.of_length_one(layout, learned, layout.owners(dtype, network.count > 0))
                state = state._replace(network=network)
            steps, state = one_update(rule, layout, meta_params, gradient, theta, learned, state, value, noise)
            return from_rows(layout.leaves(steps, gradients, state.count > 0), updates), state

        args = (meta_params, updates, state, params, key, value)
        mesh = explicit_mesh(updates)
        return one(*args) if mesh is None else laid_out_by_xla(one, shardings(mesh, (updates, state)), *args)

    return optax.GradientTransformationExtraArgs(init, update)


def _layout(leaves: list[jax.Array]) -> Layout:
    return layout_of([leaf.size for leaf in leaves])


def _new_state(rule: Rule, rows: list[jax.Array], dtype: Any) -> ControllerState:
    layout = _layout(rows)
    tensors, momenta = len(layout.sizes), len(rule.betas)

    def zeros(*shape: int) -> jax.Array:  # each a buffer of its own, or the state could not be donated
        return jnp.zeros(shape, dtype)

    return ControllerState(
        count=jnp.zeros((), jnp.int32),
        first=tuple(zeros(*layout.shape) for _ in range(momenta)),
        second=zeros(*layout.shape),
        tensors=TensorState(
            second=zeros(tensors, 2),
            first=zeros(tensors, momenta),
            step=zeros(tensors, 2 * momenta),
            slope=zeros(tensors),
            log_change=zeros(tensors),
            hidden=zeros(tensors, rule.hidden_size),
            length=zeros(tensors),
        ),
        trend=trends.unseen(dtype),
        began=zeros(),
        network=mlps.new_state(rows, dtype) if None in rule.bank else (),
    )


def _noise(rule: Rule, layout: Layout, key: Key | None, explore: Explore, dtype: Any) -> jax.Array | float:
    """ξ_t, [tensors] or for all of them, or what stands for it."""
    if rule.noise != "none" and (explore or rule.noise_in_use == "on") and key is not None:
        return gamma_noise(key[None], len(layout.sizes) if rule.noise == "per_tensor" else 1, dtype)[0]
    return 2.0 if rule.noise != "none" and rule.noise_in_use == "two" else 1.0
