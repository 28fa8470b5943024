"""A chunk of optimisation steps under one jit."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax import optim, windows
from ptt_jax.optim import Groups
from ptt_jax.tasks import Loss


@flax.struct.dataclass
class State:
    """Everything that a step changes. Batches, masks and dropout follow from (seed, step), so this is all of it."""

    step: Array
    params: Any
    opt_state: Any


def start(params: Any, tx: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def one(
    loss: Loss, tx: optax.GradientTransformation, groups: Groups, mesh: Mesh, batch: int, rows: int
) -> Callable[[State, Any, Array], tuple[State, Array]]:
    """Returns f(state, data, key) -> state, loss: one step, to be put under jit."""

    def step(state: State, data: Any, key: Array) -> tuple[State, Array]:
        order_key, step_key = jax.random.split(key)
        row_R = meshes.split(mesh, windows.batch(order_key, state.step, batch, rows))
        tuned, frozen = groups.part(state.params)

        def mean(tuned: Any) -> Array:
            key = jax.random.fold_in(step_key, state.step)
            sum_R, count_R = loss(optim.join(tuned, frozen), data, row_R, key)
            return sum_R.sum() / jnp.maximum(count_R.sum(), 1)

        value, grads = jax.value_and_grad(mean)(tuned)
        tuned, opt_state = optim.step(tx, grads, state.opt_state, tuned, frozen)
        return meshes.whole(mesh, State(state.step + 1, optim.join(tuned, frozen), opt_state)), value

    return step


def many(step: Callable[[State, Any, Array], tuple[State, Array]]) -> Callable:
    """Returns f(state, data, key, count) -> state, summed loss, under one jit with the state donated.

    `count` is traced: any number of steps runs in the same executable, so a short last chunk compiles nothing.
    """

    def chunk(state: State, data: Any, key: Array, count: Array) -> tuple[State, Array]:
        def body(_: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, value = step(carry[0], data, key)
            return state, carry[1] + value

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(())))

    return jax.jit(chunk, donate_argnums=0)
