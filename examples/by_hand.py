"""Meta-training by hand: an LSTM learns to optimise quadratics, in one loop without a run folder.

    python examples/by_hand.py

`metaopt train` does the same with checkpoints, validation, several devices and a page about the run.
"""

import jax
import jax.numpy as jnp
import optax

import metaopt

NUM_TASKS = 16  # optimised at the same time
HORIZON, WINDOW = 100, 20  # inner steps of a whole run, and of the part that one meta-step differentiates

family = metaopt.TASKS["quadratic"](dim=10)  # what is optimised: draws tasks, and tells their loss
optimizer = metaopt.OPTIMIZERS["rnnprop"](hidden_size=8)  # who optimises: φ -> a transformation of optax
meta_optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))  # who optimises φ


def begin(phi, key):
    """New tasks, and the state of inner runs at their first step."""
    return metaopt.reset(metaopt.bind_tasks(optimizer, phi), family, jax.random.split(key, NUM_TASKS))


def go_on(phi, task, state, length):
    """`length` inner steps of every task: the mean of the losses on the way, and the state after them.

    Each step is θ ← θ + update(∇f(θ); φ), and f at the new θ is both the loss that counts and the next step's gradient.
    """
    state, trace = metaopt.unroll(metaopt.bind_tasks(optimizer, phi), family, task, state, length=length)
    return jnp.mean(trace.loss), state  # trace.loss is [length, tasks]


@jax.jit
def meta_step(phi, opt_state, task, state):
    """Back-propagation through one window of the inner runs, and a step of φ against it."""
    (loss, state), gradient = jax.value_and_grad(go_on, has_aux=True)(phi, task, state, WINDOW)
    updates, opt_state = meta_optimizer.update(gradient, opt_state, phi)
    return optax.apply_updates(phi, updates), opt_state, state, loss


def train(num_meta_steps=500, seed=0):
    """Meta-trains, and returns the loss on tasks that it has not seen, before and after."""
    init_key, test_key, key = jax.random.split(jax.random.key(seed), 3)
    first = phi = optimizer.init(init_key)
    opt_state = meta_optimizer.init(phi)
    for step in range(num_meta_steps):
        if step * WINDOW % HORIZON == 0:  # the runs have come to their end
            task, state = begin(phi, jax.random.fold_in(key, step))
        phi, opt_state, state, loss = meta_step(phi, opt_state, task, state)
        if step % 100 == 0:
            print(f"meta-step {step}: loss {loss:.4f} over inner steps {int(state.step[0]) - WINDOW} ...")
    test = jax.jit(lambda phi: go_on(phi, *begin(phi, test_key), HORIZON)[0])
    return float(test(first)), float(test(phi))


if __name__ == "__main__":
    before, after = train()
    print(f"mean loss over {HORIZON} steps on new tasks: {before:.4f} before, {after:.4f} after meta-training")
