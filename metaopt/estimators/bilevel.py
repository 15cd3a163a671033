"""Hypergradients of a plain problem: dQ(θ*(h), h)/dh, θ* = argmin_θ L(θ, h), where T(θ) = θ - λ∇L is a step towards θ*.

Pure functions of any pytrees θ and h, for use alone; `metaopt.estimators.hypergradients` makes estimators of them.
Derivatives of L have to exist: a pair (θ, h) -> number that `jax.grad` takes twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metaopt.types import Key, Params, PyTree, Scalar

# (v -> Hv, b) -> an approximate solution v of Hv = b, both trees of θ's structure
Solve = Callable[[Callable[[Params], Params], Params], Params]
LANCZOS = 5  # products that look for a direction of negative curvature
ROUNDING = 1e-5  # of the largest curvature seen: what counts as zero in float32


class Problem(NamedTuple):
    """Both losses are (θ, h) -> one number."""

    inner_loss: Callable[[Params, PyTree], Scalar]  # L, e.g. training error and prior
    validation_loss: Callable[[Params, PyTree], Scalar]  # Q


def descend(problem: Problem, params: Params, hyper: PyTree, *, rate: Any, steps: int) -> Params:
    """θ after so many steps of gradient descent."""

    def body(params: Params, _: None) -> tuple[Params, None]:
        return optax.tree.add_scale(params, -rate, jax.grad(problem.inner_loss)(params, hyper)), None

    return jax.lax.scan(body, params, None, length=steps)[0]


def unrolled(
    problem: Problem, params: Params, hyper: PyTree, *, rate: Any, steps: int, forward: bool = False
) -> PyTree:
    """dQ(T^η(θ_0, h), h)/dh, exactly: the hypergradient of what was computed, biased only as that is not θ*.

    Cost: in reverse mode a descent and about three more, with every θ in memory (Maclaurin et al. 2015); `forward`
    runs one descent of tangents for each number of h, with none of it (Franceschi et al. 2017).
    """

    def reached(hyper: PyTree) -> Scalar:
        return problem.validation_loss(descend(problem, params, hyper, rate=rate, steps=steps), hyper)

    return (jax.jacfwd if forward else jax.grad)(reached)(hyper)


def greedy(problem: Problem, params: Params, hyper: PyTree, *, rate: Any) -> tuple[PyTree, Params]:
    """(∇_h Q(T(θ, h), h), T(θ, h)): the last step alone, for a descent in h after each one in θ.

    Biased: what h did to θ before counts for nothing. Cost: two gradients and a product.
    """

    def reached(hyper: PyTree) -> tuple[Scalar, Params]:
        after = descend(problem, params, hyper, rate=rate, steps=1)
        return problem.validation_loss(after, hyper), after

    return jax.grad(reached, has_aux=True)(hyper)


# ----- by the implicit function theorem -------------------------------------------------------------------------------


def identity(product: Callable[[Params], Params], b: Params) -> Params:
    """T1-T2: the identity for the inverse Hessian (Luketina et al. 2016). Cost: nothing; right as far as H = I."""
    return b


def neumann(product: Callable[[Params], Params], b: Params, *, rate: Any, terms: int) -> Params:
    """α Σ_{i<k} (I - αH)ⁱ b (Lorraine et al. 2020): what k steps of descent near θ* give, too short along flat valleys.

    Needs 0 < αH < 2. Cost: k - 1 products.
    """

    def body(carry: tuple[Params, Params], _: None) -> tuple[tuple[Params, Params], None]:
        term, total = carry
        term = optax.tree.add_scale(term, -rate, product(term))
        return (term, optax.tree.add(total, term)), None

    (_, total), _ = jax.lax.scan(body, (b, b), None, length=terms - 1)
    return optax.tree.scale(rate, total)


def conjugate_gradients(
    product: Callable[[Params], Params], b: Params, *, tolerance: Any = 1e-5, max_steps: int | None = None
) -> Params:
    """H⁻¹b to a residual of `tolerance`‖b‖. Cost: a product an iteration, at most as many as θ has numbers."""
    return jax.scipy.sparse.linalg.cg(product, b, tol=tolerance, maxiter=max_steps)[0]


class Implicit(NamedTuple):
    """A hypergradient with what it was made of."""

    gradient: PyTree  # of h's structure
    direction: Params  # v
    curvature: Scalar  # the smallest that `LANCZOS` products from v found, of H + damping; nan where none was asked for
    positive: Scalar  # bool: whether that is above 0


def implicit(
    problem: Problem,
    params: Params,
    hyper: PyTree,
    solve: Solve = conjugate_gradients,
    *,
    damping: Any = 0.0,
    checked: bool = True,
) -> Implicit:
    """∇_hQ - (∇²_θh L)ᵀ v with (H + damping) v = ∇_θQ, H = ∇²_θθ L, at a θ near θ*.

    Exact at θ* with an exact `solve` and H positive; off by the order of ‖θ - θ*‖ and of the solution's residual
    otherwise (Pedregosa 2016). `damping` makes a Hessian positive that is not, and the hypergradient smaller.

    Args:
      checked: look for negative curvature, for `LANCZOS` more products.
    """
    turned = jax.linearize(lambda params: jax.grad(problem.inner_loss)(params, hyper), params)[1]

    def product(v: Params) -> Params:
        return optax.tree.add_scale(turned(v), damping, v)

    b, direct = jax.grad(problem.validation_loss, argnums=(0, 1))(params, hyper)
    v = solve(product, b)
    (across,) = jax.vjp(lambda hyper: jax.grad(problem.inner_loss)(params, hyper), hyper)[1](v)
    gradient = optax.tree.sub(direct, across)
    if not checked:
        return Implicit(gradient, v, jnp.asarray(jnp.nan), jnp.asarray(True))
    least, most = extreme_curvatures(product, v)
    return Implicit(gradient, v, least, least > ROUNDING * jnp.maximum(most, 0.0))


def solution(inner_loss: Callable[[Params, PyTree], Scalar], params: Params, hyper: PyTree, solve: Solve) -> Params:
    """θ*(h), which is `params` and found already, with its derivative in h: compose and `jax.grad` as you like."""

    def solved(product: Callable[[Params], Params], b: Params) -> Params:
        # A Hessian is its own transpose, which a `solve` by itself cannot know.
        return jax.lax.custom_linear_solve(product, b, solve, symmetric=True)

    return jax.lax.custom_root(
        lambda params: jax.grad(inner_loss)(params, hyper), params, lambda slope, start: start, solved
    )


def extreme_curvatures(product: Callable[[Params], Params], v: Params, steps: int = LANCZOS) -> tuple[Scalar, Scalar]:
    """(least, most) of xᵀHx over the unit x in the span of v, Hv, ... (Lanczos): H has a curvature at or below `least`.

    v = H⁻¹b is a start that leans to small curvatures. Not a proof that H is positive: other directions are not seen.
    """
    flat, unravel = ravel_pytree(v)
    steps = min(steps, flat.size)

    def unit(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = jnp.linalg.norm(x)
        return x / jnp.where(norm > 0, norm, 1.0), norm

    q, _ = unit(flat)
    basis, images = [q], []
    for _ in range(steps):
        image = ravel_pytree(product(unravel(basis[-1])))[0]
        images.append(image)
        if len(basis) < steps:
            rest, size = image, jnp.linalg.norm(image)
            for _ in range(2):  # against rounding
                rest = rest - sum((known @ rest) * known for known in basis)
            new, left = unit(rest)
            basis.append(jnp.where(left > 1e-4 * size, new, 0.0))  # a closed span: nothing new
    rows, seen = jnp.stack(basis), jnp.sum(jnp.stack(basis) ** 2, axis=1) > 0.5
    projected = rows @ jnp.stack(images).T
    # What is outside the span takes the curvature of v, which is inside.
    projected = (projected + projected.T) / 2 + jnp.diag(jnp.where(seen, 0.0, projected[0, 0]))
    values = jnp.linalg.eigvalsh(projected)
    return values[0], values[-1]


# ----- along a straight line, and without gradients -------------------------------------------------------------------


def drmad(problem: Problem, start: Params, end: Params, hyper: PyTree, *, rate: Any, steps: int) -> PyTree:
    """The reverse sweep of `unrolled` on the straight line from θ_0 to θ_η in place of the path (Fu et al. 2016).

    dh -= λ(∂_h∂_θL)ᵀdθ, dθ -= λ∇²L dθ for t = η-1 ... 0 at θ_0 + (t/η)(θ_η - θ_0): exact where the derivatives do not
    hang on θ but through it linearly, biased otherwise. Cost: about three gradients a step; two θ in memory.
    """
    by_params, direct = jax.grad(problem.validation_loss, argnums=(0, 1))(end, hyper)
    way = optax.tree.sub(end, start)

    def body(carry: tuple[Params, PyTree], t: jax.Array) -> tuple[tuple[Params, PyTree], None]:
        slope, gradient = carry
        point = optax.tree.add_scale(start, t, way)
        back = jax.vjp(jax.grad(problem.inner_loss), point, hyper)[1]
        turned, across = back(slope)
        return (optax.tree.add_scale(slope, -rate, turned), optax.tree.add_scale(gradient, -rate, across)), None

    line = jnp.arange(steps - 1, -1, -1) / steps
    (_, gradient), _ = jax.lax.scan(body, (by_params, direct), line.astype(ravel_pytree(start)[0].dtype))
    return gradient


def random_search(
    problem: Problem, params: Params, hyper: PyTree, key: Key, *, scale: float, draws: int, rate: Any, steps: int
) -> tuple[PyTree, Scalar]:
    """(the best of `draws` settings h + scale·N(0, I), its Q after a descent); h itself is the first of them.

    No gradient: in many dimensions all draws are alike. Cost: a descent each.
    """

    def value(hyper: PyTree) -> Scalar:
        return problem.validation_loss(descend(problem, params, hyper, rate=rate, steps=steps), hyper)

    def body(best: tuple[PyTree, Scalar], key: Key) -> tuple[tuple[PyTree, Scalar], None]:
        new = shaken(hyper, key, scale)
        found = value(new)
        better = found < best[1]
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best[0])
        return (kept, jnp.where(better, found, best[1])), None

    return jax.lax.scan(body, (hyper, value(hyper)), jax.random.split(key, draws - 1))[0]


def shaken(hyper: PyTree, key: Key, scale: Any) -> PyTree:
    """h + scale·N(0, I)."""
    flat, unravel = ravel_pytree(hyper)
    return unravel(flat + scale * jax.random.normal(key, flat.shape, flat.dtype))


def hoag(
    problem: Problem,
    params: Params,
    hyper: PyTree,
    *,
    tolerance: Any = 1e-5,
    max_steps: int | None = None,
    damping: Any = 0.0,
) -> Implicit:
    """`implicit` by conjugate gradients: HOAG's step, to a tolerance that its user lets fall (Pedregosa 2016)."""
    solve = partial(conjugate_gradients, tolerance=tolerance, max_steps=max_steps)
    return implicit(problem, params, hyper, solve, damping=damping)
