"""Classifier and autoencoder: arithmetic against numpy, initial laws, batch normalisation, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from metaopt.data import Examples, load_dataset
from metaopt.tasks import autoencoder, classifier, examples
from metaopt.tasks.networks import Network

ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def random_params(network, key=0):
    """Initial weights with every bias and scale moved from its initial value, so that a lost one shows."""
    rng = np.random.default_rng(key)
    params = jax.jit(network.init)(jax.random.key(key))
    return jax.tree.map(lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(x.dtype), params)


def numpy_apply(params, images, batch_norm, activation):
    x = np.asarray(images, np.float64)
    for layer in params[:-1]:
        x = x @ np.asarray(layer["w"])
        if batch_norm:
            x = np.asarray(layer["scale"]) * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        x = ACTIVATIONS[activation](x + np.asarray(layer["b"]))
    return x @ np.asarray(params[-1]["w"]) + np.asarray(params[-1]["b"])


@pytest.mark.parametrize(
    ("hidden_layers", "batch_norm", "activation"),
    [(0, False, "relu"), (3, False, "relu"), (2, False, "tanh"), (2, False, "sigmoid"), (3, True, "relu")],
)
def test_losses_against_numpy(hidden_layers, batch_norm, activation, x64):
    settings = {"hidden_layers": hidden_layers, "batch_norm": batch_norm, "activation": activation, "width": 8}
    test = load_dataset("digits")
    for factory, num_outputs in ((classifier, 10), (autoencoder, 64)):
        family = factory(**settings)
        params = random_params(Network(64, num_outputs, hidden_layers, 8, batch_norm, activation))
        batch = family.eval_batch((), family.data, "test")
        outputs = numpy_apply(params, test.test.inputs, batch_norm, activation)
        if factory is autoencoder:
            expected = np.mean((outputs - test.test.inputs) ** 2)
        else:
            probs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
            expected = log_loss(test.test.targets, probs, labels=range(10))
            assert family.metrics is not None
            accuracy = family.metrics(params, (), batch)["accuracy"]
            np.testing.assert_allclose(accuracy, accuracy_score(test.test.targets, outputs.argmax(1)), rtol=1e-6)
        np.testing.assert_allclose(jax.jit(family.loss)(params, (), batch), expected, rtol=1e-9)


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("tanh", 1.0), ("sigmoid", 1.0)])
def test_initial_weights(activation, gain):
    params = Network(64, 10, 2, 200, True, activation).init(jax.random.key(0))
    for layer, variance in zip(params, [gain / 64, gain / 200, 1 / 200], strict=True):
        w = np.asarray(layer["w"], np.float64)
        assert abs(np.mean(w**2) - variance) < 4 * variance * np.sqrt(2 / w.size)
        assert abs(np.mean(w)) < 4 * np.sqrt(variance / w.size)
        np.testing.assert_array_equal(layer["b"], 0)
    assert [sorted(layer) for layer in params] == [["b", "scale", "w"], ["b", "scale", "w"], ["b", "w"]]


@pytest.mark.parametrize("hidden_layers", [0, 1, 10])
def test_shapes_of_every_depth(hidden_layers):
    family = classifier(hidden_layers=hidden_layers, width=20)
    params = jax.eval_shape(family.init, jax.random.key(0), ())
    shapes = [layer["w"].shape for layer in params]
    sizes = [64, *[20] * hidden_layers, 10]
    assert shapes == list(zip(sizes, sizes[1:], strict=False))


def test_batch_norm_invariances(x64):
    network = Network(5, 4, 2, 6, True, "relu")
    params = random_params(network)
    inputs = jax.random.normal(jax.random.key(2), (50, 5))
    apply = jax.jit(network.apply)
    outputs = apply(params, inputs)
    larger = [{**layer, "w": 1e3 * layer["w"]} for layer in params[:-1]] + params[-1:]
    larger_still = [{**layer, "w": 1e3 * layer["w"]} for layer in larger[:-1]] + params[-1:]
    np.testing.assert_allclose(apply(larger_still, inputs), apply(larger, inputs), atol=1e-9)
    np.testing.assert_allclose(apply(larger, inputs), outputs, atol=1e-3)  # up to the epsilon under the root
    np.testing.assert_allclose(apply(params, inputs + jnp.arange(5.0)), outputs, atol=1e-10)
    order = jax.random.permutation(jax.random.key(3), 50)
    np.testing.assert_allclose(apply(params, inputs[order]), outputs[order], atol=1e-10)
    # The gradient is orthogonal to weights on whose length nothing depends.
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(network.apply(p, inputs)))))(larger)
    scale = jnp.linalg.norm(gradient[0]["w"]) * jnp.linalg.norm(larger[0]["w"])
    assert abs(jnp.vdot(gradient[0]["w"], larger[0]["w"])) < 1e-9 * scale


def test_batch_statistics_are_those_of_the_batch():
    network = Network(5, 4, 1, 6, True, "tanh")
    params = random_params(network)
    inputs = jax.random.normal(jax.random.key(2), (50, 5))
    assert not np.allclose(network.apply(params, inputs[:10]), network.apply(params, inputs)[:10], atol=1e-2)
    without = Network(5, 4, 1, 6, False, "tanh")
    params = random_params(without)
    np.testing.assert_allclose(without.apply(params, inputs[:10]), without.apply(params, inputs)[:10], rtol=1e-5)


def test_evaluation_holds_the_whole_split():
    family, dataset = classifier(), load_dataset("digits")
    for split in ("train", "validation", "test"):
        batch = family.eval_batch((), family.data, split)
        np.testing.assert_array_equal(batch.inputs, getattr(dataset, split).inputs)
        np.testing.assert_array_equal(batch.targets, getattr(dataset, split).targets)
    assert family.evaluated_on == "the full training set (1,257 examples)"


def test_evaluation_of_a_large_split_is_a_fixed_part(monkeypatch):
    monkeypatch.setattr(examples, "MAX_EVAL_EXAMPLES", 300)
    family, dataset = classifier(), load_dataset("digits")
    assert family.evaluated_on == "a fixed 300 of the 1,257 training examples"
    batch = family.eval_batch((), family.data, "train")
    np.testing.assert_array_equal(batch.inputs, dataset.train.inputs[:300])
    assert family.eval_batch((), family.data, "test").targets.shape == (270,)


def test_minibatches_come_from_the_training_split_alone():
    family, dataset = classifier(), load_dataset("digits")
    batches = jax.vmap(lambda key: family.batch(key, (), family.data))(jax.random.split(jax.random.key(0), 200))
    assert batches.inputs.shape == (200, 64, 64) and batches.targets.shape == (200, 64)
    train = {image.tobytes(): label for image, label in zip(dataset.train.inputs, dataset.train.targets, strict=True)}
    images, labels = np.asarray(batches.inputs).reshape(-1, 64), np.asarray(batches.targets).ravel()
    assert all(train[image.tobytes()] == label for image, label in zip(images, labels, strict=True))
    share = np.bincount(dataset.train.targets, minlength=10) / len(dataset.train.targets)
    assert np.all(np.abs(np.bincount(labels, minlength=10) / labels.size - share) < 4 * np.sqrt(share / labels.size))


def test_families_share_the_data_on_the_device():
    assert classifier().data["train"].inputs is autoencoder(width=5).data["train"].inputs
    assert isinstance(classifier().data["test"], Examples)
