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

Step = Callable[..., tuple["State", Array]]  # f(state, data, key, ...) -> state, loss


@flax.struct.dataclass
class State:
    """Everything that a step changes. Batches, masks and dropout follow from (seed, step), so this is all of it."""

    step: Array
    params: Any
    opt_state: Any


def start(params: Any, tx: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def order(key: Array, at: Array, batch: int, rows: int) -> Array:
    """Returns row_R, the rows of step `at`: what `one` reads under the same key."""
    return windows.batch(jax.random.split(key)[0], at, batch, rows)


def one(loss: Loss, tx: optax.GradientTransformation, groups: Groups, mesh: Mesh, batch: int, rows: int) -> Step:
    """Returns f(state, data, key) -> state, loss: one step, to be put under jit."""

    def step(state: State, data: Any, key: Array) -> tuple[State, Array]:
        row_R = meshes.split(mesh, order(key, state.step, batch, rows))
        _, step_key = jax.random.split(key)
        tuned, frozen = groups.part(state.params)

        def mean(tuned: Any) -> Array:
            key = jax.random.fold_in(step_key, state.step)
            sum_R, count_R = loss(optim.join(tuned, frozen), data, row_R, key)
            return sum_R.sum() / jnp.maximum(count_R.sum(), 1)

        value, grads = jax.value_and_grad(mean)(tuned)
        tuned, opt_state = optim.step(tx, grads, state.opt_state, tuned, frozen)
        return meshes.whole(mesh, State(state.step + 1, optim.join(tuned, frozen), opt_state)), value

    return step


def fan(build: Callable[[Any], Step], axes: State) -> Step:
    """Returns f(state, data, key_S, hyper_G) -> state, loss_SG: many members in one step.

    Members are S seeds, each with rows of its own, times G settings of `hyper` (a dict of vectors), which share them,
    and so whatever no member changes: gathers and frozen encodings of a seed's rows are there once. build(hyper) makes
    the step of one setting; `axes` says with 0 and None what of a state is a member's own, (S, G, ...), and what is
    shared.
    """

    def step(state: State, data: Any, key_S: Array, hyper_G: Any) -> tuple[State, Array]:
        def member(state: State, data: Any, key: Array, hyper: Any) -> tuple[State, Array]:
            return build(hyper)(state, data, key)

        settings = jax.vmap(member, in_axes=(axes, None, None, 0), out_axes=(axes, 0))
        seeds = jax.vmap(settings, in_axes=(axes, data.member_axes, 0, None), out_axes=(axes, 0))
        return seeds(state, data, key_S, hyper_G)

    return step


def many(step: Step) -> Callable:
    """Returns f(state, count, data, *inputs) -> state, summed losses, under one jit with the state donated.

    `count` is traced: any number of steps runs in the same executable, so a short last chunk compiles nothing.
    """

    step = jax.jit(step, inline=True)  # traced once for its shape and for the loop

    def chunk(state: State, count: Array, data: Any, *inputs: Any) -> tuple[State, Array]:
        def body(i: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, value = step(carry[0], data.at(i), *inputs)
            return state, carry[1] + value

        shape = jax.eval_shape(step, state, data.at(0), *inputs)[1]
        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(shape.shape)))

    return jax.jit(chunk, donate_argnums=0)
