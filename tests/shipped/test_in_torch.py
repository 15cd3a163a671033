"""PyTorch takes the steps that jax takes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metaopt
from metaopt.errors import UserError

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install torch", exc_type=ImportError)

INPUTS = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
TARGETS = np.sin(INPUTS.sum(axis=1, keepdims=True))


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def loss_in_torch(model: Any) -> Any:
    return ((model(torch.from_numpy(INPUTS)) - torch.from_numpy(TARGETS)) ** 2).mean()


def loss_in_jax(params: list[jax.Array]) -> jax.Array:
    w1, b1, w2, b2 = params
    return jnp.mean((jnp.tanh(INPUTS @ w1.T + b1) @ w2.T + b2 - TARGETS) ** 2)


def by_hand(tx: Any, params: list[jax.Array], steps: int, value: bool) -> list[jax.Array]:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_in_jax)(params)
        changes, state = tx.update(gradients, state, params, **({"value": loss} if value else {}))
        return optax.apply_updates(params, changes), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def values(model: Any) -> list[jax.Array]:
    return [jnp.array(one.detach().numpy()) for one in model.parameters()]


@pytest.mark.parametrize(
    ("optimizer", "with_loss"),
    [("networks_rl", False), (optax.contrib.schedule_free_adamw(0.01), False),
     (optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau(patience=2)), True)],
    ids=["networks_rl", "schedule_free", "plateau"],
)  # fmt: skip
def test_a_hundred_steps_are_those_of_jax(optimizer: Any, with_loss: bool) -> None:
    model = network()
    tx = metaopt.load(optimizer) if isinstance(optimizer, str) else optimizer
    expected = by_hand(tx, values(model), 100, with_loss)
    ours = metaopt.to_torch(optimizer, model.parameters())

    def closure() -> Any:
        ours.zero_grad()
        loss = loss_in_torch(model)
        loss.backward()
        return loss

    first = loss_in_torch(model).item()
    for _ in range(100):
        if with_loss:
            last = ours.step(closure)
        else:
            closure()
            last = ours.step()
    assert (last is None) != with_loss
    for own, due in zip(values(model), expected, strict=True):
        np.testing.assert_allclose(own, due, atol=1e-5)
    assert loss_in_torch(model).item() < 0.5 * first


def test_a_state_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    def trained(model: Any, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_in_torch(model).backward()
            optimizer.step()

    whole, half = network(), network()
    trained(whole, metaopt.to_torch("networks_rl", whole.parameters()), 6)
    optimizer = metaopt.to_torch("networks_rl", half.parameters())
    trained(half, optimizer, 3)
    torch.save({"model": half.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    trained(half, optimizer, 1)  # what was saved is no view of what goes on
    saved, again = torch.load(tmp_path / "saved.pt", weights_only=True), network()
    again.load_state_dict(saved["model"])
    resumed = metaopt.to_torch("networks_rl", again.parameters())
    resumed.load_state_dict(saved["optimizer"])
    trained(again, resumed, 3)
    for one, other in zip(values(whole), values(again), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="other parameters"):
        metaopt.to_torch("networks_rl", [torch.zeros(3, requires_grad=True)]).load_state_dict(saved["optimizer"])


def test_what_has_no_gradient_stays_and_other_kinds_of_tensors_are_taken() -> None:
    still, half = torch.ones(2, requires_grad=True), torch.ones((3, 2), dtype=torch.bfloat16).t().requires_grad_()
    optimizer = metaopt.to_torch(optax.sgd(0.5), [{"params": [still]}, {"params": [half]}])
    half.grad = torch.ones_like(half)
    turned = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    another = metaopt.to_torch(optax.sgd(0.5), [turned])
    turned.grad = torch.full((2,), 1j).conj()
    another.step()
    assert (turned == 1 + 0.5j).all()
    optimizer.step()
    assert (still == 1).all() and (half == 0.5).all() and half.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_state_is_saved_in_every_type(dtype: str) -> None:
    param = torch.ones(3, dtype=getattr(torch, dtype), requires_grad=True)
    optimizer = metaopt.to_torch(optax.adam(0.1), [param])
    param.sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    due = [leaf.dtype for leaf in optimizer.state[param]["metaopt"]]
    again = metaopt.to_torch(optax.adam(0.1), [param])
    again.load_state_dict(saved)
    assert [leaf.dtype for leaf in again.state[param]["metaopt"]] == due
    for one, other in zip(again.state_dict()["state"][0]["metaopt"], saved["state"][0]["metaopt"], strict=True):
        assert one.dtype == other.dtype and (one == other).all() and one.any()


def test_random_keys_in_a_state_are_saved() -> None:
    """Steps of noise alone: saved and loaded it goes on with the same draws."""

    def init(params: Any) -> Any:
        return {"key": jax.random.key(3), "count": jnp.zeros((), jnp.int32)}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        own, key = jax.random.split(state["key"])
        noise = [jax.random.normal(own, leaf.shape) for leaf in updates]
        return noise, {"key": key, "count": state["count"] + 1}

    tx = optax.GradientTransformation(init, update)

    def step(optimizer: Any, model: Any) -> None:
        optimizer.zero_grad()
        loss_in_torch(model).backward()
        optimizer.step()

    model = network()
    optimizer = metaopt.to_torch(tx, model.parameters())
    step(optimizer, model)
    kept, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    step(optimizer, model)
    other = network()
    other.load_state_dict(weights)
    again = metaopt.to_torch(tx, other.parameters())
    again.load_state_dict(kept)
    step(again, other)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_deep_copy_goes_on_by_itself() -> None:
    param = torch.ones(3, requires_grad=True)
    own = (param, metaopt.to_torch(optax.adam(0.1), [param]))
    other = copy.deepcopy(own)
    for steps, (one, optimizer) in ((1, own), (2, other)):
        for _ in range(steps):
            one.grad = torch.ones(3)
            optimizer.step()
        np.testing.assert_allclose(one.detach().numpy(), 1 - 0.1 * steps, rtol=1e-4)


def test_sparse_gradients_are_taken() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    before = table.weight.detach().clone()
    optimizer = metaopt.to_torch(optax.sgd(0.5), table.parameters())
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert ((before - table.weight) == 0.5 * torch.tensor([[0.0], [1.0], [0.0], [0.0]])).all()


def test_what_torch_lets_users_do_wrong_is_one_line() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer, other = metaopt.to_torch(optax.adam(0.1), [param]), torch.optim.Adam([param])
    with pytest.raises(UserError, match="another optimizer"):
        optimizer.load_state_dict(other.state_dict())
    param.grad = torch.ones(3)
    other.step()
    with pytest.raises(UserError, match="another optimizer"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(UserError, match="make another optimizer"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    with pytest.raises(UserError, match="return the loss"):
        optimizer.step(lambda: None)  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(UserError, match="is no optimizer of optax's"):
        metaopt.to_torch(other, [param])  # pyright: ignore[reportArgumentType]


def test_without_torch_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        metaopt.to_torch("networks_rl", [])


def test_the_rate_of_a_group_multiplies_its_steps_and_schedulers_change_it():
    still, moved = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = metaopt.to_torch(optax.sgd(0.5), [{"params": [still], "lr": 0.0}, {"params": [moved]}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    still.grad = moved.grad = torch.ones(2)
    for expected in (0.5, 0.25):
        optimizer.step()
        schedule.step()
        assert (still == 1).all() and (moved == expected).all()
