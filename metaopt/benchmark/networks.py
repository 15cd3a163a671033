"""Networks on vectors and images: normalised, residual, convolutional, implicit, and those with plateaus."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metaopt.benchmark import sources
from metaopt.benchmark.layers import (
    Activation,
    cross_entropy,
    forward,
    mlp,
    normals,
    over_examples,
    over_features,
    windows,
)
from metaopt.benchmark.parts import Examples, Splits, drawn, exact, on_draws, on_examples
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- what is learned ------------------------------------------------------------------------------------------------


def waves(key: Key) -> Splits:
    """Cylinder, bell or funnel in noise, 64 points long (Saito 1994)."""

    def one(key: Key) -> Examples:
        label_key, place_key, noise_key = jax.random.split(key, 3)
        label = jax.random.randint(label_key, (), 0, 3)
        start, length = jnp.array([8.0, 16.0]) + jnp.array([8.0, 32.0]) * jax.random.uniform(place_key, (2,))
        height, noise = normals(noise_key, (), (64,))
        share = (jnp.arange(64) - start) / length
        ramp = jnp.stack([jnp.ones(64), share, 1 - share])[label]
        return Examples((jnp.where((share >= 0) & (share <= 1), (6 + height) * ramp, 0.0) + noise) / 3, label)

    return drawn(key, one, 512, 256)


def spirals(key: Key) -> Splits:
    """Two spirals in a plane that is turned by the task."""
    turn_key, key = jax.random.split(key)
    turn = jax.random.uniform(turn_key, (), maxval=2 * jnp.pi)

    def one(key: Key) -> Examples:
        radius_key, noise_key, label_key = jax.random.split(key, 3)
        label = jax.random.bernoulli(label_key).astype(jnp.int32)
        radius = jnp.sqrt(jax.random.uniform(radius_key, ()))
        angle = turn + 8 * radius + jnp.pi * label
        noise = 0.03 * jax.random.normal(noise_key, (2,))
        return Examples(2 * radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + noise, label)

    return drawn(key, one, 256, 256)


def teacher(num_inputs: int, num_train: int, activation: Activation = jnp.tanh):
    """Numbers that a random network of 16 hidden units gives, of variance about 1, with noise of a tenth."""

    def draw(key: Key) -> Splits:
        net_key, key = jax.random.split(key)
        net = mlp(net_key, num_inputs, 16, 1, gain=4.0)

        def one(key: Key) -> Examples:
            x, noise = normals(key, (num_inputs,), (1,))
            return Examples(x, forward(net, x, activation) + 0.1 * noise)

        return drawn(key, one, num_train, 256)

    return draw


# ----- layer normalisation (Ba et al. 2016) ---------------------------------------------------------------------------


def layer_norm_wine() -> TaskFamily:
    """Cultivars of wine by a relu network."""
    data = sources.table("wine")
    return _normalised((13, 32, 32, 3), jax.nn.relu, data.splits, 16, (data.source,))


def layer_norm_waves() -> TaskFamily:
    """Shapes of waves by a tanh network."""
    return _normalised((64, 64, 64, 64, 3), jnp.tanh, waves, 32)


def layer_norm_deep() -> TaskFamily:
    """Spirals by eight layers of gelu, on all examples at once."""
    return _normalised((2, *[16] * 8, 2), jax.nn.gelu, spirals, None)


def _normalised(sizes, activation, examples, batch_size, known=()) -> TaskFamily:
    def loss(params: Params, batch: Examples) -> Scalar:
        return cross_entropy(forward(params, batch.inputs, activation, over_features), batch.targets)

    return on_examples(loss, lambda key: mlp(key, *sizes, normalised=True), examples, batch_size, sources=known)


# ----- plateaus -------------------------------------------------------------------------------------------------------


def parity() -> TaskFamily:
    """Parity of three of eight bits by a layer of sigmoids, on all 256 inputs."""

    def examples(key: Key) -> Splits:
        bits = 2.0 * ((jnp.arange(256)[:, None] >> jnp.arange(8)) & 1) - 1
        chosen = jax.random.permutation(key, 8)[:3]
        return {"train": Examples(bits, (jnp.prod(bits[:, chosen], axis=1) > 0).astype(jnp.int32))}

    def loss(params: Params, batch: Examples) -> Scalar:
        return cross_entropy(forward(params, batch.inputs, jax.nn.sigmoid), batch.targets)

    return on_examples(loss, lambda key: mlp(key, 8, 32, 2, gain=1.0), examples)


def deep_sigmoid() -> TaskFamily:
    """Spirals by four layers of sigmoids, whose gradients vanish, on all examples at once."""

    def loss(params: Params, batch: Examples) -> Scalar:
        return cross_entropy(forward(params, batch.inputs, jax.nn.sigmoid), batch.targets)

    return on_examples(loss, lambda key: mlp(key, 2, *[16] * 4, 2, gain=1.0), spirals)


# ----- deep linear networks (Saxe et al. 2014) ------------------------------------------------------------------------


def deep_linear() -> TaskFamily:
    """Four matrices whose product is to be one of condition number 30."""
    return _deep_linear(12, 4, 30.0, 0.0, 12**-0.5)


def deep_linear_identity() -> TaskFamily:
    """Ten matrices that begin near the identity."""
    return _deep_linear(8, 10, 10.0, 1.0, 0.02)


def _deep_linear(dim: int, depth: int, condition: float, identity: float, deviation: float) -> TaskFamily:
    def sample(key: Key) -> jax.Array:
        left, right = jax.random.orthogonal(key, dim, (2,))
        return left * condition ** -jnp.linspace(0.0, 1.0, dim) @ right

    def init(key: Key, task: Task) -> Params:
        return [identity * jnp.eye(dim) + deviation * draw for draw in normals(key, *[(dim, dim)] * depth)]

    def loss(params: Params, task: jax.Array) -> Scalar:
        product = params[0]
        for matrix in params[1:]:
            product = product @ matrix
        return jnp.mean((product - task) ** 2) * dim

    return exact(loss, init, sample)


# ----- residual networks with batch normalisation ---------------------------------------------------------------------


def residual_breast_cancer() -> TaskFamily:
    """Tumours told apart by three relu blocks."""
    data = sources.table("breast_cancer")

    def loss(params: Params, batch: Examples) -> Scalar:
        return cross_entropy(_residual(params, batch.inputs, jax.nn.relu), batch.targets)

    return on_examples(loss, _residual_init(30, 32, 3, 2), data.splits, 32, sources=(data.source,))


def residual_teacher() -> TaskFamily:
    """Another network's numbers by six gelu blocks."""

    def loss(params: Params, batch: Examples) -> Scalar:
        return jnp.mean((_residual(params, batch.inputs, jax.nn.gelu) - batch.targets) ** 2)

    return on_examples(loss, _residual_init(10, 24, 6, 1), teacher(10, 1024), 64)


def _residual_init(inputs: int, width: int, depth: int, outputs: int):
    def init(key: Key) -> Params:
        first, last, *inner = normals(key, (inputs, width), (width, outputs), *[(width, width)] * (2 * depth))
        blocks = [
            {
                "w": (2 / width) ** 0.5 * into,
                "scale": jnp.ones_like(into[0]),
                "b": jnp.zeros_like(into[0]),
                "v": (width * depth) ** -0.5 * out,
            }
            for into, out in zip(inner[:depth], inner[depth:], strict=True)
        ]
        return {"in": inputs**-0.5 * first, "blocks": blocks, "out": width**-0.5 * last, "b": jnp.zeros(outputs)}

    return init


def _residual(params: Params, x: jax.Array, activation: Activation) -> jax.Array:
    x = x @ params["in"]
    for block in params["blocks"]:
        x = x + activation(block["scale"] * over_examples(x @ block["w"]) + block["b"]) @ block["v"]
    return over_examples(x) @ params["out"] + params["b"]


# ----- convolution ----------------------------------------------------------------------------------------------------


def conv_glyphs() -> TaskFamily:
    """Letters in 13 fonts by two strided layers of relu, told apart in three other fonts."""
    return _convolution(((8, 2), (16, 2)), jax.nn.relu, None, 32)


def conv_batch_norm() -> TaskFamily:
    """Letters by four layers of gelu with batch normalisation."""
    return _convolution(((8, 2), (16, 2), (24, 2), (24, 1)), jax.nn.gelu, over_examples, 16)


def conv_layer_tanh() -> TaskFamily:
    """Letters by three layers of tanh."""
    return _convolution(((12, 2), (16, 2), (32, 2)), jnp.tanh, None, 32)


def _convolution(layers, activation: Activation, normalise: Activation | None, batch_size: int) -> TaskFamily:
    data = sources.glyphs()

    def init(key: Key) -> Params:
        conv_key, dense_key = jax.random.split(key)
        channels, side = [1, *(count for count, _ in layers)], 16
        for _, stride in layers:
            side //= stride
        shapes = [(9 * before, after) for before, after in zip(channels, channels[1:], strict=False)]
        convolutions = [
            {"w": (2 / draw.shape[0]) ** 0.5 * draw, "scale": jnp.ones_like(draw[0]), "b": jnp.zeros_like(draw[0])}
            for draw in normals(conv_key, *shapes)
        ]
        if normalise is None:
            convolutions = [{name: layer[name] for name in ("w", "b")} for layer in convolutions]
        return {"conv": convolutions, "dense": mlp(dense_key, side * side * channels[-1], len(sources.LETTERS))}

    def loss(params: Params, batch: Examples) -> Scalar:
        x = batch.inputs
        for layer, (_, stride) in zip(params["conv"], layers, strict=True):
            x = windows(x, stride) @ layer["w"]
            x = activation((x if normalise is None else layer["scale"] * normalise(x)) + layer["b"])
        return cross_entropy(forward(params["dense"], x.reshape(x.shape[0], -1), activation), batch.targets)

    return on_examples(loss, init, data.splits, batch_size, sources=(data.source,))


# ----- implicit layers ------------------------------------------------------------------------------------------------


def equilibrium() -> TaskFamily:
    """A deep equilibrium model (Bai et al. 2019): twelve steps towards z = tanh(Wz + Ux + b), then a linear layer."""

    def init(key: Key) -> Params:
        inner, into, out = normals(key, (24, 24), (10, 24), (24, 1))
        return {
            "W": 0.7 * 24**-0.5 * inner,
            "U": 10**-0.5 * into,
            "b": jnp.zeros(24),
            "v": 24**-0.5 * out,
            "c": jnp.zeros(1),
        }

    def loss(params: Params, batch: Examples) -> Scalar:
        drive = batch.inputs @ params["U"] + params["b"]
        z = jnp.zeros_like(drive)
        for _ in range(12):
            z = jnp.tanh(z @ params["W"] + drive)
        return jnp.mean((z @ params["v"] + params["c"] - batch.targets) ** 2)

    return on_examples(loss, init, teacher(10, 512), 64)


def hypernetwork() -> TaskFamily:
    """A network that gives the weights of networks that draw sines, told amplitude, phase and frequency (Ha 2017)."""
    width = 16

    def draw(key: Key, task: Task, num: int) -> tuple[jax.Array, jax.Array]:
        code_key, x_key = jax.random.split(key)
        code = jax.random.uniform(code_key, (num, 3), minval=-1.0)
        return code, jax.random.uniform(x_key, (num, 12, 1), minval=-1.0)

    def loss(params: Params, task: Task, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        code, x = batch
        made = forward(params, code, jax.nn.relu)
        w, b, v = (made[:, i * width : (i + 1) * width][:, None] for i in range(3))
        shown = jnp.sum(jnp.tanh(3 * x * w + b) * v, axis=-1)  # [num, 12]
        amplitude, phase, frequency = (code[:, i, None] for i in range(3))
        return jnp.mean((shown - (1 + 0.5 * amplitude) * jnp.sin((4 + frequency) * x[..., 0] + 2 * phase)) ** 2)

    return on_draws(loss, lambda key, task: mlp(key, 3, 64, 64, 3 * width), draw, 32, 512)
