"""Recurrence, attention and word vectors, on texts that every installation carries and on sequences made up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metaopt.benchmark import sources
from metaopt.benchmark.layers import cross_entropy, normals, over_features
from metaopt.benchmark.parts import on_draws, on_examples
from metaopt.types import Key, Params, Scalar, Task, TaskFamily

# ----- recurrence -----------------------------------------------------------------------------------------------------


def gru_licence() -> TaskFamily:
    """The next sign of a licence by gated recurrent units (Cho et al. 2014)."""
    (data, source), num_signs = sources.licence_windows(25, 8)
    width = 32

    def init(key: Key) -> Params:
        into, inner, out = normals(key, (num_signs, 3 * width), (width, 3 * width), (width, num_signs))
        return {
            "in": 0.5 * into,
            "U": width**-0.5 * inner,
            "b": jnp.zeros(3 * width),
            "out": width**-0.5 * out,
            "c": jnp.zeros(num_signs),
        }

    def loss(params: Params, signs: jax.Array) -> Scalar:
        driven = (jax.nn.one_hot(signs[:, :-1], num_signs) @ params["in"] + params["b"]).swapaxes(0, 1)

        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            gates, new = jnp.split(h @ params["U"], [2 * width], axis=-1)
            reset, keep = jnp.split(jax.nn.sigmoid(x[:, : 2 * width] + gates), 2, axis=-1)
            h = keep * h + (1 - keep) * jnp.tanh(x[:, 2 * width :] + reset * new)
            return h, h

        _, hidden = jax.lax.scan(step, jnp.zeros((signs.shape[0], width)), driven)
        return cross_entropy(hidden @ params["out"] + params["c"], signs[:, 1:].T)

    return on_examples(loss, init, data, 16, sources=(source,))


def rnn_adding() -> TaskFamily:
    """The sum of the two numbers in twenty that are marked, by a tanh recurrence (Hochreiter and Schmidhuber 1997)."""
    length, width = 20, 32

    def draw(key: Key, task: Task, num: int) -> tuple[jax.Array, jax.Array]:
        value_key, first_key, second_key = jax.random.split(key, 3)
        values = jax.random.uniform(value_key, (num, length))
        half = length // 2
        first = jax.nn.one_hot(jax.random.randint(first_key, (num,), 0, half), length)
        marks = first + jax.nn.one_hot(jax.random.randint(second_key, (num,), half, length), length)
        return jnp.stack([values, marks], axis=-1), jnp.sum(values * marks, axis=1)

    def init(key: Key, task: Task) -> Params:
        into, inner, out = normals(key, (2, width), (width, width), (width,))
        U = 0.9 * jnp.linalg.qr(inner)[0]
        return {"in": into, "U": U, "b": jnp.zeros(width), "out": width**-0.5 * out, "c": jnp.ones(())}

    def loss(params: Params, task: Task, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        inputs, sums = batch
        driven = (inputs @ params["in"] + params["b"]).swapaxes(0, 1)

        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x + h @ params["U"]), None

        last, _ = jax.lax.scan(step, jnp.zeros((inputs.shape[0], width)), driven)
        return jnp.mean((last @ params["out"] + params["c"] - sums) ** 2)

    return on_draws(loss, init, draw, 32, 512)


def lstm_recall() -> TaskFamily:
    """The first sign of sixteen, the others being of no use, by a long short-term memory."""
    length, width, kinds, others = 16, 24, 6, 4

    def draw(key: Key, task: Task, num: int) -> tuple[jax.Array, jax.Array]:
        first_key, rest_key = jax.random.split(key)
        first = jax.random.randint(first_key, (num,), 0, kinds)
        rest = jax.random.randint(rest_key, (num, length - 1), kinds, kinds + others)
        return jax.nn.one_hot(jnp.concatenate([first[:, None], rest], axis=1), kinds + others), first

    def init(key: Key, task: Task) -> Params:
        into, inner, out = normals(key, (kinds + others, 4 * width), (width, 4 * width), (width, kinds))
        bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)  # forgets little at first
        return {"in": 0.5 * into, "U": width**-0.5 * inner, "b": bias, "out": width**-0.5 * out, "c": jnp.zeros(kinds)}

    def loss(params: Params, task: Task, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        signs, first = batch

        def step(state: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            h, c = state
            into, forget, out, new = jnp.split(x + h @ params["U"], 4, axis=-1)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(into) * jnp.tanh(new)
            return (jax.nn.sigmoid(out) * jnp.tanh(c), c), None

        zeros = jnp.zeros((signs.shape[0], width))
        driven = (signs @ params["in"] + params["b"]).swapaxes(0, 1)
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), driven)
        return cross_entropy(h @ params["out"] + params["c"], first)

    return on_draws(loss, init, draw, 32, 512)


# ----- attention (Vaswani et al. 2017) --------------------------------------------------------------------------------


def attention_names() -> TaskFamily:
    """The next letter of a character's name by one block of width 32."""
    return _names(depth=1, width=32, heads=4, batch_size=6)


def attention_names_deep() -> TaskFamily:
    """The same by two narrow blocks."""
    return _names(depth=2, width=16, heads=2, batch_size=6)


def _names(depth: int, width: int, heads: int, batch_size: int) -> TaskFamily:
    data, num_signs = sources.character_names(), len(sources.SIGNS) + 1

    def init(key: Key) -> Params:
        key, block_key = jax.random.split(key)
        signs, places, out = normals(key, (num_signs, width), (sources.NAME_LENGTH, width), (width, num_signs))
        blocks = [_block_init(key, width) for key in jax.random.split(block_key, depth)]
        return {"signs": 0.5 * signs, "places": 0.5 * places, "blocks": blocks, "out": width**-0.5 * out}

    def loss(params: Params, names: jax.Array) -> Scalar:
        seen, wanted = names[:, :-1], names[:, 1:]
        x = jax.nn.one_hot(seen, num_signs) @ params["signs"] + params["places"]
        for block in params["blocks"]:
            x = _block(block, x, heads, causal=True)
        weights = (seen > 0).astype(x.dtype)  # up to the sign that ends the name
        return cross_entropy(over_features(x) @ params["out"], wanted, weights)

    return on_examples(loss, init, data.splits, batch_size, sources=(data.source,))


def attention_recall() -> TaskFamily:
    """What stood beside a key among eight pairs, whose meanings change each time (associative recall)."""
    kinds, width = 8, 24

    def draw(key: Key, task: Task, num: int) -> tuple[jax.Array, jax.Array]:
        key_key, value_key, asked_key = jax.random.split(key, 3)
        names = jnp.argsort(jax.random.uniform(key_key, (num, kinds)), axis=1)
        values = jax.random.randint(value_key, (num, kinds), 0, kinds)
        asked = jax.random.randint(asked_key, (num,), 0, kinds)
        chosen = jax.nn.one_hot(asked, kinds)
        name, answer = (jnp.sum(chosen * each, axis=1).astype(jnp.int32) for each in (names, values))
        pairs = jnp.concatenate([jax.nn.one_hot(names, kinds), jax.nn.one_hot(values, kinds)], axis=-1)
        question = jnp.concatenate([jax.nn.one_hot(name, kinds), jnp.zeros((num, kinds))], axis=-1)
        return jnp.concatenate([pairs, question[:, None]], axis=1), answer

    def init(key: Key, task: Task) -> Params:
        key, *block_keys = jax.random.split(key, 3)
        into, out = normals(key, (2 * kinds, width), (width, kinds))
        return {"in": into, "blocks": [_block_init(key, width) for key in block_keys], "out": width**-0.5 * out}

    def loss(params: Params, task: Task, batch: tuple[jax.Array, jax.Array]) -> Scalar:
        signs, answers = batch
        x = signs @ params["in"]
        for block in params["blocks"]:
            x = _block(block, x, heads=2, causal=False)
        return cross_entropy(over_features(x[:, -1]) @ params["out"], answers)

    return on_draws(loss, init, draw, 12, 512)


def _block_init(key: Key, width: int) -> Params:
    into, back, up, down = normals(key, (width, 3 * width), (width, width), (width, 2 * width), (2 * width, width))
    return {
        "qkv": width**-0.5 * into,
        "back": 0.5 * width**-0.5 * back,
        "up": (2 / width) ** 0.5 * up,
        "b": jnp.zeros(2 * width),
        "down": 0.5 * (2 * width) ** -0.5 * down,
        "scales": jnp.ones((2, width)),
    }


def _block(params: Params, x: jax.Array, heads: int, causal: bool) -> jax.Array:
    """[n, length, width], normalised before each part."""
    num, length, width = x.shape
    made = (params["scales"][0] * over_features(x)) @ params["qkv"]
    q, k, v = made.reshape(num, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
    scores = (heads / width) ** 0.5 * jnp.einsum("nhtd,nhsd->nhts", q, k)
    if causal:
        scores = jnp.where(jnp.tri(length, dtype=bool), scores, -1e9)
    mixed = jnp.einsum("nhts,nhsd->nthd", jax.nn.softmax(scores), v).reshape(num, length, width)
    x = x + mixed @ params["back"]
    return x + jax.nn.gelu(params["scales"][1] * over_features(x) @ params["up"] + params["b"]) @ params["down"]


# ----- word vectors ---------------------------------------------------------------------------------------------------


def skip_gram() -> TaskFamily:
    """Which words of a licence stand near which, against five drawn ones (Mikolov et al. 2013): sparse gradients."""
    words, num_words, source = sources.licence_words()
    width, negatives = 96, 5

    def pairs(text: np.ndarray) -> dict[str, np.ndarray]:
        near = [(text[:-gap], text[gap:]) for gap in (1, 2)]
        left, right = (np.concatenate(side) for side in zip(*near, strict=True))
        return {"word": np.concatenate([left, right]), "near": np.concatenate([right, left])}

    def noise(key: Key, seen: dict[str, jax.Array]) -> jax.Array:
        # By frequency, which falls with the number: log-uniform, as in Zipf's law.
        uniform = jax.random.uniform(key, (seen["word"].shape[0], negatives))
        return jnp.clip(jnp.exp(uniform * np.log(num_words + 1.0)) - 1, 0, num_words - 1).astype(jnp.int32)

    def init(key: Key) -> Params:
        return dict(zip(("in", "out"), 0.1 * jax.random.normal(key, (2, num_words, width)), strict=True))

    def loss(params: Params, batch: tuple[dict[str, jax.Array], jax.Array]) -> Scalar:
        seen, drawn = batch
        vector = params["in"][seen["word"]]
        true = jnp.sum(vector * params["out"][seen["near"]], axis=-1)
        false = jnp.einsum("nd,nkd->nk", vector, params["out"][drawn])
        return jnp.mean(jax.nn.softplus(-true) + jnp.sum(jax.nn.softplus(false), axis=-1))

    cut = int(0.8 * len(words))
    splits = {"train": pairs(words[:cut]), "test": pairs(words[cut:])}
    return on_examples(loss, init, splits, 64, noise, sources=(source,))


def cooccurrence() -> TaskFamily:
    """Log counts of words near each other by products of vectors, all at once (GloVe, Pennington et al. 2014)."""
    words, _, source = sources.licence_words()
    num, width = 128, 12
    counts = np.zeros((num, num), np.float32)
    for gap in range(1, 6):
        held = (words[:-gap] < num) & (words[gap:] < num)
        np.add.at(counts, (words[:-gap][held], words[gap:][held]), 1.0 / gap)
    counts += counts.T
    weights = np.minimum(counts / 10, 1.0) ** 0.75

    def init(key: Key) -> Params:
        left, right = normals(key, (num, width), (num, width))
        return {"in": 0.3 * left, "out": 0.3 * right, "a": jnp.zeros(num), "b": jnp.zeros(num)}

    def loss(params: Params, seen: tuple[jax.Array, jax.Array]) -> Scalar:
        wanted, weights = seen
        shown = params["in"] @ params["out"].T + params["a"][:, None] + params["b"]
        return jnp.sum(weights * (shown - wanted) ** 2) / jnp.sum(weights)

    return on_examples(loss, init, {"train": (np.log1p(counts), weights)}, sources=(source,), whole=True)
