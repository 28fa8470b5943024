"""A chunk of optimisation steps under one jit."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax import optim, windows
from ptt_jax.optim import Groups
from ptt_jax.tasks import Loss

Step = Callable[..., tuple["State", "Seen"]]  # f(state, data, key, ...) -> state, what it saw


@flax.struct.dataclass
class State:
    """Everything that a step changes. Batches, masks and dropout follow from (seed, step), so this is all of it."""

    step: Array
    params: Any
    opt_state: Any


class Seen(NamedTuple):
    """What a step saw: its loss, and which rows of its batch have one that is not finite."""

    loss: Array
    bad_R: Array


class Sums(NamedTuple):
    """What a chunk of steps saw: their losses' sum; the first step at which that was not finite, -1 if it always was,
    and which rows of its batch made it so. Members of a `fan` have axes in front."""

    loss: Array
    first: Array
    bad_R: Array


def start(params: Any, tx: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def order(key: Array, at: Array, batch: int, rows: int) -> Array:
    """Returns row_R, the rows of step `at`: what `one` reads under the same key."""
    return windows.batch(jax.random.split(key)[0], at, batch, rows)


def orders(key: Array, batch: int, rows: int) -> Callable[[Array], Array]:
    """Returns f(at_J) -> row_JR, the `order` of many steps; of key_S, a key for each seed, row_JSR."""
    words = np.asarray(jax.random.key_data(key))  # on the host: who cuts rows there never waits for the device
    return lambda at_J: walk(words, at_J, batch, rows)


@functools.partial(jax.jit, static_argnums=(2, 3))
def walk(words: Array, at_J: Array, batch: int, rows: int) -> Array:
    """Does what `orders` says, of a key's numbers."""
    key = jax.random.wrap_key_data(words)

    def of_step(at: Array) -> Array:
        return jax.vmap(lambda key: order(key, at, batch, rows))(key) if key.ndim else order(key, at, batch, rows)

    return jax.vmap(of_step)(at_J)


def one(loss: Loss, tx: optax.GradientTransformation, groups: Groups, mesh: Mesh, batch: int, rows: int) -> Step:
    """Returns f(state, data, key) -> state, Seen: one step, to be put under jit."""

    def step(state: State, data: Any, key: Array) -> tuple[State, Seen]:
        row_R = meshes.split(mesh, order(key, state.step, batch, rows))
        _, step_key = jax.random.split(key)
        tuned, frozen = groups.part(state.params)

        def mean(tuned: Any) -> tuple[Array, Array]:
            key = jax.random.fold_in(step_key, state.step)
            sum_R, count_R = loss(optim.join(tuned, frozen), data, row_R, key)
            return sum_R.sum() / jnp.maximum(count_R.sum(), 1), ~jnp.isfinite(sum_R)

        (value, bad_R), grads = jax.value_and_grad(mean, has_aux=True)(tuned)
        tuned, opt_state = optim.step(tx, grads, state.opt_state, tuned, frozen)
        return meshes.whole(mesh, State(state.step + 1, optim.join(tuned, frozen), opt_state)), Seen(value, bad_R)

    return step


def fan(build: Callable[[Any], Step], axes: State) -> Step:
    """Returns f(state, data, key_S, hyper_G) -> state, Seen of loss_SG: many members in one step.

    Members are S seeds, each with rows of its own, times G settings of `hyper` (a dict of vectors), which share them,
    and so whatever no member changes: gathers and frozen encodings of a seed's rows are there once. build(hyper) makes
    the step of one setting; `axes` says with 0 and None what of a state is a member's own, (S, G, ...), and what is
    shared.
    """

    def step(state: State, data: Any, key_S: Array, hyper_G: Any) -> tuple[State, Seen]:
        def member(state: State, data: Any, key: Array, hyper: Any) -> tuple[State, Seen]:
            return build(hyper)(state, data, key)

        settings = jax.vmap(member, in_axes=(axes, None, None, 0), out_axes=(axes, 0))
        seeds = jax.vmap(settings, in_axes=(axes, data.member_axes, 0, None), out_axes=(axes, 0))
        return seeds(state, data, key_S, hyper_G)

    return step


def many(step: Step) -> Callable:
    """Returns f(state, count, data, *inputs) -> state, Sums, under one jit with the state donated.

    `count` is traced: any number of steps runs in the same executable, so a short last chunk compiles nothing.
    """

    step = jax.jit(step, inline=True)  # traced once for its shape and for the loop

    def chunk(state: State, count: Array, data: Any, *inputs: Any) -> tuple[State, Sums]:
        def body(i: Array, carry: tuple[State, Sums]) -> tuple[State, Sums]:
            before, sums = carry
            after, seen = step(before, data.at(i), *inputs)
            loss = sums.loss + seen.loss
            lost = ~jnp.isfinite(loss) & (sums.first < 0)
            first, bad_R = jnp.where(lost, before.step, sums.first), jnp.where(lost[..., None], seen.bad_R, sums.bad_R)
            return after, Sums(loss, first, bad_R)

        shape = jax.eval_shape(step, state, data.at(0), *inputs)[1]
        none = jnp.full(shape.loss.shape, -1, jnp.int32)
        sums = Sums(jnp.zeros(shape.loss.shape), none, jnp.zeros(shape.bad_R.shape, bool))
        return jax.lax.fori_loop(0, count, body, (state, sums))

    return jax.jit(chunk, donate_argnums=0)
