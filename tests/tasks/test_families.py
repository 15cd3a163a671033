"""What every family keeps to, over the registry, plain and rescaled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from metaopt.choices import Choice, parse_choice
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.registry import TASKS
from metaopt.tasks import rescaled

VARIANTS = [
    *TASKS,
    "classifier:hidden_layers=3,batch_norm=true,activation=tanh",
    "regularised_classifier:input_noise=0.1,batch_size=none",
]
CASES = [(name, 0.0) for name in VARIANTS] + [("classifier", 1.0)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} rescale={case[1]:g}")
def family(request):
    name, rescale = request.param
    return build_family(parse_choice(name), rescale=rescale)


def start(family, key):
    """A task, its first parameters and a batch."""
    task_key, init_key, batch_key = jax.random.split(key, 3)
    task = family.sample(task_key, family.data)
    return task, family.init(init_key, task), family.batch(batch_key, task, family.data)


def no_metrics(params, task, batch):
    return {}


def test_gradient_against_finite_differences(family, x64):
    @jax.jit
    def compare(family, key):
        start_key, direction_key = jax.random.split(key)
        task, params, batch = start(family, start_key)
        flat, unflatten = ravel_pytree(params)
        direction = jax.random.normal(direction_key, flat.shape)
        loss = lambda flat: family.loss(unflatten(flat), task, batch)  # noqa: E731
        along = jnp.vdot(jax.grad(loss)(flat), direction)
        ahead, behind = jax.lax.map(lambda h: loss(flat + h * direction), jnp.array([1e-6, -1e-6]))
        return along, (ahead - behind) / 2e-6

    along, difference = compare(family, jax.random.key(1))
    assert along.dtype == jnp.float64
    np.testing.assert_allclose(difference, along, rtol=1e-6, atol=1e-8)


def test_vmapped_equals_looped_and_data_is_an_argument(family):
    """One family is traced once for all its data, and a batch of tasks is the same as its tasks one by one."""
    traces = []

    def run(family, key):
        traces.append(1)
        task, params, batch = start(family, key)
        held_out = [family.eval_batch(task, family.data, split) for split in family.splits]
        metrics = [(family.metrics or no_metrics)(params, task, examples) for examples in held_out]
        losses = [family.loss(params, task, examples) for examples in held_out]
        return *jax.value_and_grad(family.loss)(params, task, batch), losses, metrics

    keys = jax.random.split(jax.random.key(3), 3)
    batched = jax.jit(jax.vmap(run, (None, 0)))(family, keys)
    assert len(np.unique(batched[0])) == 3
    assert all(np.all(np.isfinite(losses)) for losses in batched[2]) and len(batched[2]) == len(family.splits)
    assert all(bool(metrics) == bool(family.metrics) and set(family.events) <= set(metrics) for metrics in batched[3])
    one = jax.jit(run)
    looped = [one(family, key) for key in keys]
    for i, single in enumerate(looped):
        for many, alone in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(many[i], alone, rtol=1e-3, atol=1e-5)

    half = jax.tree.map(lambda x: x // 2 if x.dtype == jnp.int32 else x / 2, family.data)
    loss, _, held_out_losses, _ = one(dataclasses.replace(family, data=half), keys[0])
    assert len(traces) == 2  # the vmapped and the single one
    if family.data != ():
        assert loss != looped[0][0]
        assert all(a != b for a, b in zip(held_out_losses, looped[0][2], strict=True))
    constants = jax.make_jaxpr(run)(family, keys[0]).consts
    assert sum(np.size(constant) for constant in constants) < 1000


def test_every_leaf_has_its_type(family):
    task, params, batch = jax.eval_shape(lambda: start(family, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((task, params, batch)))
    loss = jax.eval_shape(family.loss, params, task, batch)
    assert loss.shape == () and loss.dtype == jnp.float32


@pytest.mark.parametrize("name", TASKS)
def test_reports_accuracy_of_what_has_labels(name):
    family = TASKS[name]()
    task, params, _ = jax.eval_shape(lambda: start(family, jax.random.key(0)))
    held_out = jax.eval_shape(lambda task: family.eval_batch(task, family.data, "train"), task)
    reported = jax.eval_shape(family.metrics or no_metrics, params, task, held_out)
    labelled = ("logistic_regression", "classifier", "regularised_classifier")
    assert ("accuracy" in reported) == (name in labelled)
    assert family.evaluated_on


@pytest.mark.parametrize("name", VARIANTS)
def test_name_is_the_choice_that_builds_it(name):
    family = build_family(parse_choice(name))
    assert family.name == name
    assert build_family(parse_choice(family.name)).name == name


def test_splits():
    assert TASKS["classifier"]().splits == TASKS["autoencoder"]().splits == ("train", "validation", "test")
    assert TASKS["quadratic"]().splits == TASKS["linear_regression"]().splits == ("train",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quadratic:dim=0", "`dim` is 0; give a whole number of 1 or more"),
        ("quadratic:dim=2.5", "dim is 2.5"),
        ("rosenbrock:pairs=-1", "`pairs` is -1"),
        ("linear_regression:batch_size=201", r"from 1 to 200 \(there are 200 training examples\)"),
        ("logistic_regression:num_classes=1", "`num_classes` is 1; give a whole number of 2 or more"),
        ("logistic_regression:density=0.0", "`density` .0.0. must be above 0 and at most 1"),
        ("classifier:hidden_layers=11", "`hidden_layers` is 11; give a whole number from 0 to 10"),
        ("classifier:width=0", "`width` is 0"),
        ("classifier:batch_size=1258", r"there are 1,257 training examples"),
        ("classifier:activation=gelu", "'gelu'"),
        ("regularised_classifier:num_examples=0", r"`num_examples` is 0; give a whole number from 1 to 1257"),
        ("regularised_classifier:num_examples=20", r"`batch_size` is 64; give a whole number from 1 to 20"),
        ("regularised_classifier:input_noise=0", "`input_noise` is 0.0; give a finite number above 0"),
        ("autoencoder:data=digit", "did you mean 'digits'"),
        ("classifier:layers=3", "did you mean 'hidden_layers'"),
        ("quadratics", "did you mean 'quadratic'"),
    ],
)
def test_refuses_with_a_remedy(text, message):
    with pytest.raises(UserError, match=message):
        build_family(parse_choice(text))


def test_factories_check_what_they_are_called_with():
    with pytest.raises(ValueError, match="give one of relu, tanh, sigmoid"):
        TASKS["classifier"](activation="gelu")
    with pytest.raises(ValueError, match="`dim` is True"):
        TASKS["quadratic"](dim=True)
    for log_range in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="log_range"):
            rescaled(TASKS["quadratic"](), log_range)


def test_registry_names_are_the_factories_names():
    assert {name: factory.__name__ for name, factory in TASKS.items()} == {name: name for name in TASKS}
    assert build_family(Choice("quadratic", {"dim": 4})).name == "quadratic:dim=4"
