"""Gaps in windows: how values are hidden, and what closes a gap without a model. Arrays in, arrays out."""

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

KINDS = ("points", "blocks")


@flax.struct.dataclass
class Law:
    """How observed values are hidden: kind 'points' or 'blocks'; the shares, of which each row draws one; the shortest
    and the longest block, in steps. Only the kind is part of a program."""

    kind: str = flax.struct.field(pytree_node=False)
    ratios: tuple[float, ...]
    shortest: int
    longest: int


def law(kind: str, ratios: tuple[float, ...], blocks: tuple[float, float], season: int) -> Law:
    """Returns the law whose blocks have their shortest and longest length in seasons; a step at least."""
    shortest, longest = (max(round(length * season), 1) for length in blocks)
    return Law(kind, ratios, shortest, longest)


def hide(of: Law, key: Array, row_R: Array, observed_RL: Array) -> Array:
    """Returns hidden_RL, True where an observed value is hidden. A row's gaps follow from (key, its number), in
    whatever batch it is.

    points: each observed value with probability r. blocks: run after run, each at a uniform place and of a uniform
    length, until round(r * observed values) are hidden; the last run ends early. A run that passes the end goes on at
    the beginning, so that no step is hidden more often than another. Runs may overlap, and cross values that were
    missing already.
    """
    draw = points if of.kind == "points" else blocks

    def row(row: Array, observed_L: Array) -> Array:
        ratio_key, gap_key = jax.random.split(jax.random.fold_in(key, row))
        return draw(of, gap_key, jax.random.choice(ratio_key, jnp.array(of.ratios)), observed_L)

    return jax.vmap(row)(row_R, observed_RL)


def points(of: Law, key: Array, ratio: Array, observed_L: Array) -> Array:
    return observed_L & jax.random.bernoulli(key, ratio, observed_L.shape)


def blocks(of: Law, key: Array, ratio: Array, observed_L: Array) -> Array:
    steps, at_L = len(observed_L), jnp.arange(len(observed_L))
    wanted = jnp.round(ratio * observed_L.sum()).astype(jnp.int32)

    def run(count: Array) -> tuple[Array, Array]:
        length_key, begin_key = jax.random.split(jax.random.fold_in(key, count))
        length = jax.random.randint(length_key, (), of.shortest, of.longest + 1)
        return jax.random.randint(begin_key, (), 0, steps), length

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        run_L, count = carry
        begin, length = run(count)
        new_L = ((at_L - begin) % steps < length) & observed_L & (run_L == 0)
        return jnp.where(new_L, count, run_L), count + 1

    # The number of the run that hid a step, 0 = none did.
    start = jnp.zeros(steps, jnp.int32), jnp.int32(1)
    run_L, count = jax.lax.while_loop(lambda carry: (carry[0] > 0).sum() < wanted, body, start)
    begin, _ = run(count - 1)
    last_L = (run_L == count - 1) & (run_L > 0)
    spare = (run_L > 0).sum() - wanted
    nth_L = jnp.roll(jnp.cumsum(jnp.roll(last_L, -begin)), begin)
    return (run_L > 0) & ~(last_L & (nth_L > last_L.sum() - spare))


def interpolate(x_RL: Array, seen_RL: Array) -> Array:
    """Returns the seen values, and between them straight lines in time; the ends are held, and 0 is in a row of which
    nothing is seen."""
    steps = x_RL.shape[1]
    at_RL, before_RL, after_RL = around(seen_RL)
    left_RL = jnp.where(before_RL < 0, after_RL, before_RL)
    right_RL = jnp.where(after_RL == steps, left_RL, after_RL)
    share_RL = (at_RL - left_RL) / jnp.maximum(right_RL - left_RL, 1)
    last = steps - 1  # where nothing is seen, left and right lie outside
    x_left_RL, x_right_RL = (jnp.take_along_axis(x_RL, jnp.minimum(i_RL, last), axis=1) for i_RL in (left_RL, right_RL))
    line_RL = x_left_RL + share_RL * (x_right_RL - x_left_RL)
    line_RL = jnp.where(seen_RL, x_RL, line_RL)
    return jnp.where(seen_RL.any(1, keepdims=True), line_RL, 0)


def around(seen_RL: Array) -> tuple[Array, Array, Array]:
    """Returns each step's place, and the places of the nearest seen ones before and after, itself where it is seen: -1
    and the length where there is none."""
    at_RL = jnp.broadcast_to(jnp.arange(seen_RL.shape[1]), seen_RL.shape)
    before_RL = jax.lax.cummax(jnp.where(seen_RL, at_RL, -1), axis=1)
    after_RL = jax.lax.cummin(jnp.where(seen_RL, at_RL, seen_RL.shape[1]), axis=1, reverse=True)
    return at_RL, before_RL, after_RL


def nearest(seen_RL: Array) -> Array:
    """Returns how many steps away the nearest seen value is: 0 where one is, a window and more where none is."""
    steps = seen_RL.shape[1]
    at_RL = jnp.broadcast_to(jnp.arange(steps), seen_RL.shape)
    before_RL = jax.lax.cummax(jnp.where(seen_RL, at_RL, -steps), axis=1)
    after_RL = jax.lax.cummin(jnp.where(seen_RL, at_RL, 2 * steps), axis=1, reverse=True)
    return jnp.minimum(at_RL - before_RL, after_RL - at_RL)


def draw(guess_RL: Array, x_RL: Array, seen_RL: Array, reach: float) -> Array:
    """Returns the seen values, and at the others a guess that is drawn to its seen neighbours: what it misses of them,
    in between on straight lines, is added to it and fades with the distance from the nearest one, to 1/e at `reach`
    steps. 0 leaves the guess alone."""
    if not reach:
        return jnp.where(seen_RL, x_RL, guess_RL)
    missed_RL = interpolate(x_RL - guess_RL, seen_RL) * jnp.exp(-nearest(seen_RL) / reach)
    return jnp.where(seen_RL, x_RL, guess_RL + missed_RL)


def seasonal(x_RL: Array, seen_RL: Array, season: int) -> Array:
    """Returns the seen values, and at the others those of `season_around`."""
    return jnp.where(seen_RL, x_RL, season_around(x_RL, seen_RL, season))


def season_around(x_RL: Array, seen_RL: Array, season: int) -> Array:
    """Returns at each step, a seen one too, the value a season earlier, or later if that is unseen, then two seasons
    earlier, and so on as far as the window goes; a straight line where none of these is seen, or without a season."""
    steps, line_RL = x_RL.shape[1], interpolate(x_RL, seen_RL)
    if not 1 < season < steps:
        return line_RL

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        y_RL, known_RL = carry
        away = (i // 2 + 1) * season * (1 - 2 * (i % 2))
        at_L = jnp.arange(steps) - away
        found_RL = jnp.roll(seen_RL, away, axis=1) & ((at_L >= 0) & (at_L < steps))[None] & ~known_RL
        return jnp.where(found_RL, jnp.roll(x_RL, away, axis=1), y_RL), known_RL | found_RL

    return jax.lax.fori_loop(0, 2 * ((steps - 1) // season), body, (line_RL, jnp.zeros_like(seen_RL)))[0]


def average(x_RL: Array, seen_RL: Array) -> Array:
    """Returns the seen values, and at the others their mean; 0 in a row of which nothing is seen."""
    count_R1 = jnp.maximum(seen_RL.sum(1, keepdims=True), 1)
    return jnp.where(seen_RL, x_RL, jnp.where(seen_RL, x_RL, 0).sum(1, keepdims=True) / count_R1)
