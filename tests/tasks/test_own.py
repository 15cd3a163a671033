"""`make_task`: plain losses, flax modules, data and draws; files of one's own in our families; every refusal."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import metaopt
from metaopt.choices import Choice, parse_choice
from metaopt.cli.entry import main
from metaopt.errors import UserError
from metaopt.experiment import build_family
from metaopt.inner.unroll import unroll
from metaopt.registry import TASKS
from metaopt.runs.environment import describe_data
from metaopt.runs.train import resume, train
from metaopt.tasks.checks import check_family
from metaopt.types import TaskFamily

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 4)).astype(np.float32)
Y = X @ np.array([1.0, -2.0, 0.5, 3.0], np.float32)
DATA = {"x": X, "y": Y}
KEY = jax.random.key(0)


def squares(w, batch):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)


def net_squares(net, batch):
    return jnp.mean((net(batch["x"])[:, 0] - batch["y"]) ** 2)


def zeros(key):
    return jnp.zeros(4)


def normal(key):
    return jax.random.normal(key, (4,))


def task_of(family, key=KEY):
    task = family.sample(key, family.data)
    return task, family.init(key, task), family.batch(key, task, family.data)


def split_losses(family, params, task=()):
    return {
        split: float(family.loss(params, task, family.eval_batch(task, family.data, split))) for split in family.splits
    }


def falls(family, steps=60, **options):
    """Mean losses before and after some steps of Adam, over three tasks."""
    optimizer = metaopt.build_optimizer(Choice("adam", options or {"learning_rate": 0.1}))
    _, trace = jax.jit(lambda key: _run(optimizer, family, key, steps))(KEY)
    return float(jnp.mean(trace.initial_loss)), float(jnp.mean(trace.loss[-1]))


def _run(optimizer, family, key, steps):
    from metaopt.inner.binding import bind_tasks
    from metaopt.inner.step import reset

    tx = bind_tasks(optimizer, optimizer.init(key))
    task, state = reset(tx, family, jax.random.split(key, 3))
    return unroll(tx, family, task, state, length=steps)


# ----- what there is of task and batch -------------------------------------------------------------------------------


def test_a_deterministic_loss():
    family = metaopt.make_task(lambda params: jnp.sum((params - 2) ** 2), zeros, lower_bound=0.0)
    assert task_of(family)[0] == () and task_of(family)[2] == ()
    assert family.batch_size is None and family.splits == ("train",) and family.evaluated_on == "the exact loss"
    assert split_losses(family, jnp.ones(4)) == {"train": 4.0}
    before, after = falls(family)
    assert before == 16 and after < 0.1
    assert family.lower_bound == 0 and metaopt.make_task(jnp.sum, zeros).lower_bound is None


def test_minibatches_of_arrays():
    family = metaopt.make_task(squares, zeros, data=DATA)
    task, params, batch = task_of(family)
    assert batch["x"].shape == (32, 4) and batch["y"].shape == (32,) and family.batch_size == 32
    np.testing.assert_allclose(batch["x"] @ np.array([1.0, -2.0, 0.5, 3.0]), batch["y"], rtol=1e-4, atol=1e-5)
    assert family.splits == ("train", "validation", "test")
    rows = {split: np.asarray(part["x"]) for split, part in family.data.items()}
    assert {split: len(part) for split, part in rows.items()} == {"train": 160, "validation": 20, "test": 20}
    each = np.concatenate(list(rows.values()))
    np.testing.assert_array_equal(each[np.lexsort(each.T)], X[np.lexsort(X.T)])
    for split, loss in split_losses(family, params).items():
        np.testing.assert_allclose(loss, np.mean(np.asarray(family.data[split]["y"]) ** 2), rtol=1e-5)
    train = {row.tobytes() for row in rows["train"]}
    drawn = jax.vmap(lambda key: family.batch(key, (), family.data)["x"])(jax.random.split(KEY, 50))
    assert {row.tobytes() for row in np.asarray(drawn).reshape(-1, 4)} == train
    assert family.evaluated_on == "the full training set (160 examples)"
    assert falls(family)[1] < 0.2


def test_splits_by_fraction_and_seed():
    def lengths(**settings):
        return {
            split: len(part["x"])
            for split, part in metaopt.make_task(squares, zeros, data=DATA, **settings).data.items()
        }

    assert lengths(split=(0.5, 0.25, 0.25)) == {"train": 100, "validation": 50, "test": 50}
    assert lengths(split=(0.9, 0.0, 0.1)) == {"train": 180, "test": 20}
    assert lengths(split=None) == {"train": 200}
    first, again, other, plain = (metaopt.make_task(squares, zeros, data=DATA, seed=seed) for seed in (0, 0, 1, None))
    np.testing.assert_array_equal(first.data["test"]["x"], again.data["test"]["x"])
    assert not np.array_equal(first.data["test"]["x"], other.data["test"]["x"])
    np.testing.assert_array_equal(plain.data["train"]["x"], X[:160])
    assert first.sources[0].sha256 == other.sources[0].sha256
    changed = metaopt.make_task(squares, zeros, data={"x": X, "y": Y + 1e-3})
    assert changed.sources[0].sha256 != first.sources[0].sha256
    given = {"train": DATA, "test": {"x": X[:5], "y": Y[:5]}}
    family = metaopt.make_task(squares, zeros, data=given, batch_size="all")
    assert family.splits == ("train", "test") and family.batch_size == 200
    np.testing.assert_array_equal(family.batch(KEY, (), family.data)["x"], X)


def test_data_as_a_tuple_and_as_one_array():
    family = metaopt.make_task(lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), zeros, data=(X, Y))
    np.testing.assert_allclose(
        split_losses(family, jnp.zeros(4))["train"], np.mean(np.asarray(family.data["train"][1]) ** 2), rtol=1e-5
    )
    family = metaopt.make_task(
        lambda w, batch: jnp.mean((batch - w) ** 2), zeros, data=X.astype(np.float64), batch_size=8
    )
    assert family.batch_size == 8 and family.data["train"].dtype == jnp.float32


def test_tasks_of_their_own():
    family = metaopt.make_task(
        lambda params, task: jnp.sum((params - task) ** 2),
        lambda key, task: task + 1,
        sample=lambda key: jax.random.uniform(key, (4,)),
        lower_bound=lambda task: 0 * task[0],
    )
    task, params, batch = task_of(family)
    np.testing.assert_array_equal(params, task + 1)
    assert batch == () and family.loss(params, task, batch) == 4
    assert family.lower_bound(task) == 0
    assert falls(family)[1] < 0.1


def test_tasks_and_data():
    family = metaopt.make_task(
        lambda w, scale, batch: jnp.mean((batch["x"] @ w - scale * batch["y"]) ** 2),
        zeros,
        sample=lambda key, data: jnp.mean(data["y"]) + jax.random.uniform(key),
        data=DATA,
        metrics=lambda w, scale, batch: {"scale": scale + 0 * w[0]},
    )
    task, params, batch = task_of(family)
    expected = np.mean((float(task) * np.asarray(batch["y"])) ** 2)
    np.testing.assert_allclose(family.loss(params, task, batch), expected, rtol=1e-5)
    np.testing.assert_allclose(
        task, np.mean(np.asarray(family.data["train"]["y"])) + jax.random.uniform(KEY), rtol=1e-6
    )
    assert family.metrics(params, task, batch) == {"scale": task}


def test_batches_of_their_own(register):
    def draw(key):
        return jax.random.normal(key, (8, 4)) + 3

    family = metaopt.make_task(
        lambda w, batch: jnp.mean((w - batch) ** 2),
        zeros,
        batch=draw,
        metrics=lambda w, batch: {"mean": jnp.mean(batch)},
    )
    held_out = family.eval_batch((), family.data, "train")
    batches = jax.vmap(draw)(jax.random.split(jax.random.key(0), 16))
    np.testing.assert_allclose(family.loss(jnp.zeros(4), (), held_out), jnp.mean(batches**2), rtol=1e-6)
    np.testing.assert_allclose(family.metrics(jnp.zeros(4), (), held_out)["mean"], jnp.mean(batches), rtol=1e-6)
    assert family.evaluated_on == "the mean of 16 batches, the same each time" and family.batch_size == 8
    register(TASKS, "draws", lambda: family)
    assert (
        falls(build_family(Choice("draws"), oracle=Choice("exact")))[1] < 1.5
    )  # the variance of the batch, 1, and what is left of 9


def test_windows_of_a_series():
    series = np.arange(100.0)
    family = metaopt.make_task(
        lambda w, window: jnp.mean((window - w) ** 2),
        lambda key: jnp.zeros(()),
        data=series,
        split=(0.8, 0.2, 0.0),
        seed=None,
        batch=lambda key, part: jax.lax.dynamic_slice(part, (jax.random.randint(key, (), 0, len(part) - 5),), (5,)),
    )
    windows = np.asarray(jax.vmap(lambda key: family.batch(key, (), family.data))(jax.random.split(KEY, 100)))
    assert windows.max() < 80 and np.all(np.diff(windows, axis=1) == 1)
    held_out = family.eval_batch((), family.data, "validation").batches
    assert held_out.shape == (16, 5) and held_out.min() >= 80
    own = metaopt.make_task(
        lambda w, window: jnp.mean((window - w) ** 2),
        lambda key: jnp.zeros(()),
        data=series,
        batch=lambda key, part: part[:5],
        eval_batch=lambda part: part,
    )
    assert own.eval_batch((), own.data, "test").shape == (10,)


# ----- modules -------------------------------------------------------------------------------------------------------


class NnxNet(nnx.Module):
    def __init__(self, rngs, norm=False, dropout=False):
        self.hidden = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None
        self.layers = nnx.List([nnx.Linear(8, 1, rngs=rngs)])

    def __call__(self, x):
        x = self.hidden(x)
        x = nnx.tanh(self.norm(x) if self.norm else x)
        return self.layers[0](self.dropout(x) if self.dropout else x)


class LinenNet(nn.Module):
    norm: bool = False
    dropout: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = nn.tanh(nn.BatchNorm(use_running_average=False)(x) if self.norm else x)
        x = nn.Dropout(0.5, deterministic=False)(x) if self.dropout else x
        return nn.Dense(1)(x)


def batch_normalised(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_modules(kind, norm):
    init = LinenNet(norm=norm) if kind == "linen" else lambda key: NnxNet(nnx.Rngs(key), norm=norm)
    family = metaopt.make_task(
        net_squares, init, data=DATA, metrics=lambda net, batch: {"mean": jnp.mean(net(batch["x"]))}
    )
    task, params, batch = task_of(family)
    names = ("Dense_0", "Dense_1") if kind == "linen" else ("hidden", "layers")
    hidden, out = params[names[0]], params[names[1]]
    out = out if kind == "linen" else out[0]
    assert hidden["kernel"].shape == (4, 8) and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    inside = np.asarray(batch["x"] @ hidden["kernel"] + hidden["bias"])
    outputs = np.tanh(batch_normalised(inside) if norm else inside) @ out["kernel"] + out["bias"]
    expected = np.mean((outputs[:, 0] - batch["y"]) ** 2)
    for _ in range(2):  # a call leaves nothing behind
        np.testing.assert_allclose(jax.jit(family.loss)(params, task, batch), expected, rtol=1e-4)
    np.testing.assert_allclose(family.metrics(params, task, batch)["mean"], np.mean(outputs), rtol=1e-3, atol=1e-5)
    other = family.init(jax.random.key(1), task)
    assert not np.array_equal(other[names[0]]["kernel"], hidden["kernel"])
    before, after = falls(family, steps=40, learning_rate=0.05)
    assert after < 0.3 * before


def test_an_rnn_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.GRUCell(1, 3, rngs=rngs))
            self.out = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.rnn(x[..., None])[:, -1])

    family = metaopt.make_task(net_squares, lambda key: Net(nnx.Rngs(key)), data=DATA)
    _, params, batch = task_of(family)
    assert set(params) == {"rnn", "out"} and "rngs" not in params["rnn"]
    losses = [jax.jit(family.loss)(params, (), batch) for _ in range(2)]
    assert losses[0] == losses[1] > 0


def test_modules_of_a_task():
    family = metaopt.make_task(
        lambda net, scale, batch: jnp.mean((net(batch["x"])[:, 0] - scale * batch["y"]) ** 2),
        LinenNet(),
        sample=lambda key: jax.random.uniform(key),
        data=DATA,
    )
    task, params, batch = task_of(family)
    assert np.isfinite(family.loss(params, task, batch))

    def scaled(key, scale):
        net = NnxNet(nnx.Rngs(key))
        net.hidden.bias[...] = jnp.full(8, scale)
        return net

    family = metaopt.make_task(
        lambda net, scale, batch: scale * net_squares(net, batch),
        scaled,
        sample=lambda key: jax.random.uniform(key),
        data=DATA,
    )
    task, params, _ = task_of(family)
    np.testing.assert_array_equal(params["hidden"]["bias"], np.full(8, task))


# ----- by name, in runs ----------------------------------------------------------------------------------------------


def test_the_registry_names_what_it_makes_and_a_run_records_its_data(register):
    def lines(batch_size: int = 16):
        return metaopt.make_task(squares, zeros, data=DATA, batch_size=batch_size)

    register(TASKS, "lines", lines)
    family = build_family(parse_choice("lines:batch_size=8"))
    assert family.name == "lines:batch_size=8" and family.batch_size == 8
    (entry,) = describe_data([Choice("lines")])
    assert entry == {"name": "lines", "source": "arrays in Python", "sha256": family.sources[0].sha256}
    with pytest.raises(UserError, match=r"'lines': `batch_size` is 161; .*there are 160 training examples in `data`"):
        build_family(parse_choice("lines:batch_size=161"))
    augmented = build_family(parse_choice("lines:rescale=1,companion=3,min_batch_size=2"))
    before, after = falls(augmented)
    assert after < before


def test_a_run_on_ones_own_data(register, tiny, tmp_path, monkeypatch):
    """Meta-training and its evaluation, with a loss whose bound is not known; the data set is the same on resuming."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{x[0]:.4f},{x[1]:.4f},{'lily' if y > 0 else 'aster'}" for x, y in zip(X, Y, strict=True)]
    (tmp_path / "flowers.csv").write_text("\n".join(["a,b,label", *rows]))

    def lines():
        return metaopt.make_task(net_squares, LinenNet(), data=DATA, batch_size=16)

    register(TASKS, "lines", lines)
    flowers = Choice("classifier", {"data": "flowers.csv", "batch_size": 16, "width": 4})
    path = train(dataclasses.replace(tiny, tasks=(Choice("lines"),)), tmp_path / "run")
    (entry,) = json.loads((path / "environment.json").read_text())["data"]
    assert entry == {"name": "lines", "source": "arrays in Python", "sha256": entry["sha256"]}
    results = json.loads((path / "evaluation.json").read_text())["results"]
    assert [result["task"] for result in results] == ["lines"]

    path = train(dataclasses.replace(tiny, tasks=(flowers,), num_meta_steps=2), tmp_path / "other")
    (entry,) = json.loads((path / "environment.json").read_text())["data"]
    assert entry["name"] == "flowers.csv" and entry["classes"] == ["aster", "lily"]
    assert entry["source"] == str(tmp_path / "flowers.csv") and len(entry["sha256"]) == 64
    (tmp_path / "flowers.csv").write_text("\n".join(["a,b,label", *rows[::-1]]))
    with pytest.raises(UserError, match=r"data set flowers.csv in .* is not the one that .*other was begun with"):
        resume(path, num_meta_steps=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classifier:data=none.csv", "'none.csv' is no file"),
        ("classifier:data=numbers.csv", "numbers.csv holds labels of type float64"),
        ("regression_network:data=words.csv", "words.csv is not a table of numbers: could not convert string 'lily'"),
        ("classifier:data=words.csv", r"`batch_size` is 64; .* from 1 to 40 \(there are 40 training examples in words"),
        ("regression_network:data=digits", "'digits' holds classes to predict, and not numbers"),
        ("classifier:data=diabetes", "'diabetes' holds numbers to predict, and not classes"),
        ("autoencoder:split_seed=1", "'digits' has a split of its own"),
        ("classifier:data=words.csv,split_seed=-1,batch_size=4", "the seed of a split is -1"),
    ],
)
def test_files_that_do_not_fit_a_family(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.csv").write_text("".join(f"{i},{i * i},{'aster' if i % 2 else 'lily'}\n" for i in range(50)))
    (tmp_path / "numbers.csv").write_text("".join(f"{i},{i * i},{i / 3}\n" for i in range(50)))
    with pytest.raises(UserError, match=message) as caught:
        build_family(parse_choice(text))
    assert "\n" not in str(caught.value)


def test_families_on_files_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("colour.npz", images=RNG.integers(0, 256, (100, 3, 3, 3), np.uint8), labels=np.arange(100) % 12)
    np.savez("line.npz", x=X, y=np.stack([Y, -Y], axis=1))
    family = build_family(parse_choice("classifier:data=colour.npz,batch_size=8,hidden_layers=0"))
    assert [layer["w"].shape for layer in task_of(family)[1]] == [(27, 12)]
    assert family.name == "classifier:data=colour.npz,hidden_layers=0,batch_size=8"
    assert build_family(parse_choice("autoencoder:data=colour.npz,batch_size=8")).sources[0].classes == ()
    family = build_family(parse_choice("regression_network:data=line.npz,hidden_layers=0,split_seed=3"))
    assert [layer["w"].shape for layer in task_of(family)[1]] == [(4, 2)]
    mean = [{"w": jnp.zeros((4, 2)), "b": jnp.zeros(2)}]
    np.testing.assert_allclose(split_losses(family, mean)["train"], 1, rtol=1e-5)
    assert falls(family)[1] < 0.05


# ----- refusals ------------------------------------------------------------------------------------------------------


BAD = {
    "loss takes no batch": (
        dict(loss=lambda w: w.sum(), init=zeros, data=DATA),
        r"called as loss\(params, batch\), but",
    ),
    "loss takes too much": (
        dict(loss=squares, init=zeros),
        r"as loss\(params\), but is written as loss\(w, batch",
    ),
    "no loss": (dict(loss=3, init=zeros), "`loss` is 3; give a function"),
    "init takes nothing": (dict(loss=jnp.sum, init=lambda: jnp.zeros(3)), r"called as init\(key\)"),
    "init is an array": (dict(loss=jnp.sum, init=jnp.zeros(3)), "`init` is .*; give a function"),
    "sample takes nothing": (dict(loss=lambda w, t: w.sum(), init=zeros, sample=lambda: 0), r"sample\(key\)"),
    "batch without data": (dict(loss=squares, init=zeros, batch=lambda key, data: data), r"called as batch\(key\)"),
    "batch of data": (
        dict(loss=squares, init=zeros, data=DATA, batch=lambda key: DATA),
        r"called as batch\(key, data\)",
    ),
    "metrics": (dict(loss=squares, init=zeros, data=DATA, metrics=lambda w: {}), r"metrics\(params, batch\)"),
    "size without data": (dict(loss=jnp.sum, init=zeros, batch_size=3), "`batch_size` is of minibatches of `data`"),
    "eval without batch": (
        dict(loss=jnp.sum, init=zeros, eval_batch=lambda: ()),
        "`eval_batch` is given, but the loss",
    ),
    "large batch": (dict(loss=squares, init=zeros, data=DATA, batch_size=161), "160 training examples in `data`"),
    "no size": (dict(loss=squares, init=zeros, data=DATA, batch_size=0), "`batch_size` is 0"),
    "bound": (dict(loss=jnp.sum, init=zeros, lower_bound=-np.inf), "`lower_bound` is -inf; give a finite number"),
    "fractions": (dict(loss=squares, init=zeros, data=DATA, split=(0.8, 0.1)), "`split` is .*three fractions"),
    "sum": (dict(loss=squares, init=zeros, data=DATA, split=(0.8, 0.1, 0.2)), "that sum to 1"),
    "seed": (dict(loss=squares, init=zeros, data=DATA, seed=-1), "the seed of a split is -1"),
    "few": (dict(loss=squares, init=zeros, data={"x": X[:2], "y": Y[:2]}), "2 examples are too few"),
    "lengths": (dict(loss=squares, init=zeros, data={"x": X, "y": Y[:-1]}), r"\(200 in `data\['x'\]` and 199 in"),
    "nan": (
        dict(loss=squares, init=zeros, data={"x": X, "y": Y + np.nan}),
        r"`data\['y'\]` holds 200 numbers that are nan",
    ),
    "words": (dict(loss=squares, init=zeros, data={"x": X, "y": Y.astype(str)}), r"`data\['y'\]` is of type <U"),
    "objects": (dict(loss=squares, init=zeros, data={"x": X, "y": np.array([{}] * 200)}), "of type object"),
    "complex": (dict(loss=squares, init=zeros, data={"x": X, "y": Y + 1j}), "of type complex64"),
    "beyond int32": (dict(loss=squares, init=zeros, data={"x": X, "y": np.full(200, 2**40)}), "beyond 2,147,483,647"),
    "numbers": (dict(loss=squares, init=zeros, data={"x": [1.0, 2.0], "y": 3.0}), r"`data\['x'\]\[0\]` has shape \(\)"),
    "empty": (dict(loss=squares, init=zeros, data={}), "`data` holds no arrays"),
    "splits differ": (
        dict(loss=squares, init=zeros, data={"train": DATA, "test": {"x": X[:, :2], "y": Y}}),
        "`data` of test and of train differ",
    ),
    "class": (dict(loss=net_squares, init=NnxNet, data=DATA), "is the class NnxNet; with flax nnx give a function"),
    "nnx module": (dict(loss=net_squares, init=NnxNet(nnx.Rngs(0)), data=DATA), "is the module NnxNet; with flax nnx"),
    "dropout": (
        dict(loss=net_squares, init=lambda key: NnxNet(nnx.Rngs(key), dropout=True), data=DATA),
        r"state that a loss cannot carry \(RngCount at dropout.rngs.count, RngKey",
    ),
    "text for a batch": (dict(loss=net_squares, init=lambda key: key, batch=lambda key: "ab"), "`batch` gives a str; "),
    "linen dropout": (dict(loss=net_squares, init=LinenNet(dropout=True), data=DATA), "Dropout"),
    "linen without a call": (dict(loss=lambda net, b: jnp.mean(b["y"]), init=LinenNet(), data=DATA), "no parameters"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_with_a_remedy(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        metaopt.make_task(**arguments)
    assert "\n" not in str(caught.value)


COUNT = iter(range(1000))


def grows(key):
    return jnp.zeros((2 + next(COUNT), 4))


def picks(w, batch):
    return jnp.mean(batch["x"][batch["y"] > 0] @ w)


def branches(w):
    return jnp.sum(w) if w[0] > 0 else -jnp.sum(w)


def breaks(w):
    raise RuntimeError("two\nlines")


UNFIT = {
    "two shapes": (
        dict(loss=lambda w, b: jnp.mean(b @ w), init=zeros, batch=grows),
        "`batch` gives shapes .* and then",
    ),
    "two starts": (dict(loss=jnp.sum, init=grows), "`init` gives shapes"),
    "mask": (dict(loss=picks, init=zeros, data=DATA), r"`loss` \(.*test_own.py, line \d+\) needs an"),
    "branch": (dict(loss=branches, init=zeros), "`loss` .* needs an array's numbers where jax has its shape alone"),
    "size": (
        dict(loss=jnp.sum, init=lambda key: jnp.zeros(jax.random.randint(key, (), 1, 9))),
        "`init` .* needs an array",
    ),
    "numpy": (dict(loss=lambda w: np.sin(w).sum(), init=zeros), "`loss` .* needs an array's numbers"),
    "numpy batch": (
        dict(loss=squares, init=zeros, data=DATA, batch=lambda key, data: {"x": data["x"][: int(data["y"][0])]}),
        "`batch` .* needs an array's numbers",
    ),
    "raises": (dict(loss=breaks, init=zeros), r"`loss` \(.*test_own.py, line \d+\) raises RuntimeError: two lines"),
    "shapes": (dict(loss=lambda w: w @ jnp.ones(3), init=zeros), "`loss` .* raises TypeError: "),
    "no scalar": (dict(loss=lambda w: w, init=zeros), r"`loss` gives shape \(4,\), and has to be one number"),
    "pair": (dict(loss=lambda w: (w.sum(), w), init=zeros), "`loss` gives 2 arrays"),
    "whole loss": (dict(loss=lambda w: jnp.int32(3), init=zeros), "`loss` is of type int32"),
    "complex loss": (dict(loss=lambda w: w.sum() * 1j, init=zeros), "`loss` is of type complex64"),
    "complex": (dict(loss=lambda z: jnp.abs(z - (1 + 3j)) ** 2, init=lambda key: jnp.zeros((), complex)), "two arrays"),
    "whole": (dict(loss=jnp.sum, init=lambda key: {"a": jnp.zeros(3, int)}), r"parameter \['a'\] is of type int32"),
    "none": (dict(loss=lambda w: 1.0, init=lambda key: {}), "`init` gives no parameters"),
    "split": (
        dict(loss=squares, init=zeros, data=DATA, eval_batch=lambda data: data["x"]),
        "`loss` .* raises",
    ),
    "metrics": (dict(loss=squares, init=zeros, data=DATA, metrics=lambda w, b: {"a": b["z"]}), "`metrics` .* KeyError"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_refuses_what_no_inner_loop_can_run_on(case):
    arguments, message = UNFIT[case]
    with pytest.raises(ValueError, match=message) as caught:
        metaopt.make_task(**arguments)
    assert "\n" not in str(caught.value)


def test_a_family_by_hand_is_refused_where_it_is_built_and_names_itself(register, capsys):
    def vector(loss):
        return TaskFamily(
            data=(),
            sample=lambda key, data: (),
            init=lambda key, task: jnp.zeros(3),
            batch=lambda key, task, data: (),
            loss=loss,
            eval_batch=lambda task, data, split: (),
        )

    def vectors(scale: float = 1.0):
        return vector(lambda params, task, batch: scale * params)

    register(TASKS, "vectors", vectors)
    with pytest.raises(UserError, match=r"^task family vectors:scale=2.0: `loss` gives shape \(3,\), and has to be"):
        build_family(parse_choice("vectors:scale=2.0"))
    assert main(["train", "quadratic_rl", "--tasks", "vectors"]) == 2
    assert "task family vectors: `loss` gives shape (3,)" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(ValueError, match=r"^`loss` gives 2 arrays"):
        check_family(vector(lambda params, task, batch: (params, params)))
