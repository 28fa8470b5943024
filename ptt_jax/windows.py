"""The series on the device, and the rows that are cut out of it inside a jitted step.

A row is one channel of one window. Rows are numbered window by window: row = window * C + channel.
"""

import itertools
import math
from collections.abc import Callable, Generator
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax.bits import mix
from ptt_jax.errors import UserError


class Resident:
    """What lies whole on the device, so that every dispatch reads the same."""

    member_axis = None  # seeds of a sweep share it

    def feed(self, span: "Span", rows: "Order", dispatches: int, split: bool = True) -> Generator[Self, None, None]:
        """Yields what each dispatch reads; `stream.Host` yields the rows themselves."""
        yield from itertools.repeat(self, dispatches)

    def like(self, span: "Span", rows: tuple[int, ...]) -> Self:
        """Returns what a dispatch will read, as `feed` does, of rows of that shape."""
        return self

    def fits(self, span: "Span", rows: int) -> int | None:
        """Returns how many blocks of so many rows fit in a dispatch; None = any number."""
        return None

    def at(self, block: Array | int) -> Self:
        """Returns what a block of a dispatch reads."""
        return self


@flax.struct.dataclass
class Panel(Resident):
    """A scaled series on the device: values_CT float32, finite everywhere; observed_CT bool, False = missing."""

    values_CT: Array
    observed_CT: Array

    def cut(self, span: "Span", row_R: Array, begin: int, end: int) -> tuple[Array, Array]:
        """Returns steps [begin, end) of the rows' windows."""
        channel_R, start_R = row_R % span.channels, span.first + row_R // span.channels
        at_RL = start_R[:, None] + jnp.arange(begin, end)[None]
        inside_RL = at_RL < span.end
        at_RL = jnp.minimum(at_RL, span.end - 1)
        return self.values_CT[channel_R[:, None], at_RL], self.observed_CT[channel_R[:, None], at_RL] & inside_RL


@flax.struct.dataclass
class Streamed:
    """Whole windows that were cut on the host: values_JRL and observed_JRL, the rows of each block of a dispatch.

    Read like a Panel by the program whose order they were cut in: a row's number is not looked at again.
    """

    values_JRL: Array
    observed_JRL: Array

    member_axis = 0  # of a block, when seeds of a sweep have rows of their own

    def at(self, block: Array | int) -> "Streamed":
        return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, block, keepdims=False), self)

    def cut(self, span: "Span", row_R: Array, begin: int, end: int) -> tuple[Array, Array]:
        return self.values_JRL[..., begin:end], self.observed_JRL[..., begin:end]


@flax.struct.dataclass
class Mix(Resident):
    """Several series in a Panel's place, each with the windows of its own span. Of rows 0, 1, 2, ... every series has
    its turn, so that each teaches as often, however long it is; a row's number goes round and round in its series."""

    panels: tuple[Panel, ...]
    spans: tuple["Span", ...]

    @property
    def span(self) -> "Span":
        """The span of all: as many rows as let the largest series have each of its rows once."""
        rows = max(s.rows for s in self.spans) * len(self.spans)
        if rows >= 2**31:
            raise UserError(f"a mix of {len(self.spans)} series has {rows} rows; accepted: less than 2^31 in all")
        return Span(0, 0, (rows,), self.spans[0].lookback, self.spans[0].horizons, 1)

    def cut(self, span: "Span", row_R: Array, begin: int, end: int) -> tuple[Array, Array]:
        """Returns steps [begin, end) of the rows' windows. Every series is asked for every row: gathers are cheap."""
        turn_R1, at_R = (row_R % len(self.panels))[:, None], row_R // len(self.panels)
        parts = [p.cut(s, at_R % s.rows, begin, end) for p, s in zip(self.panels, self.spans, strict=True)]
        values_RL, observed_RL = parts[0]
        for i, (x_RL, seen_RL) in enumerate(parts[1:], 1):
            values_RL = jnp.where(turn_R1 == i, x_RL, values_RL)
            observed_RL = jnp.where(turn_R1 == i, seen_RL, observed_RL)
        return values_RL, observed_RL


Windows = Panel | Streamed | Mix
Order = Callable[[int], Array | np.ndarray]  # f(dispatch) -> its row numbers, row_R or by blocks row_JR


@flax.struct.dataclass
class Span:
    """Admissible windows of a split: starts `first`, `first` + 1, ... with `counts[i]` windows for `horizons[i]`.

    Shorter horizons have more windows; a row is in the span when its shortest target fits. Steps from `end` on belong
    to another split and count as missing.

    Where a split lies may be traced, so that one program serves every split; lookback, horizons and channels are part
    of a program.
    """

    first: int
    end: int
    counts: tuple[int, ...]
    lookback: int = flax.struct.field(pytree_node=False)
    horizons: tuple[int, ...] = flax.struct.field(pytree_node=False)
    channels: int = flax.struct.field(pytree_node=False)

    @property
    def rows(self) -> int:
        return self.counts[0] * self.channels

    @property
    def length(self) -> int:
        return self.lookback + self.horizons[-1]

    def apart(self, horizon: int) -> int:
        """Returns how many windows of the horizon of that index lie end to end: none forecasts a step of another."""
        return (self.counts[horizon] - 1) // self.horizons[horizon] + 1


def span(border: tuple[int, int], lookback: int, horizons: tuple[int, ...], channels: int, split: str) -> Span:
    """Returns the windows whose targets lie in the rows `border` = [begin, end); history may reach across `begin`.

    `horizons` ascend. Starts are checked here because XLA clamps one that is out of range without a word.

    Raises:
      UserError: not one window of the longest horizon fits; the sentence names the split.
    """
    begin, end = border
    first = max(begin - lookback, 0)
    counts = tuple(end - first - lookback - h + 1 for h in horizons)
    if counts[-1] < 1:
        raise UserError(
            f"the {split} split has rows {begin} to {end}: too few for one window of {lookback} steps of history and "
            f"{horizons[-1]} to forecast; accepted: a longer split, a smaller lookback or smaller horizons"
        )
    if counts[0] * channels >= 2**31:
        raise UserError(
            f"the {split} split has {counts[0]} windows of {channels} channels; accepted: less than 2^31 rows in all"
        )
    return Span(first, end, counts, lookback, horizons, channels)


def few(whole: Span, share: float) -> Span:
    """Returns the first `share` of a span's windows of the longest horizon, at least one, for every horizon: what
    few-shot learning may see. All of the span for 1."""
    if share == 1:
        return whole
    count = max(math.ceil(share * whole.counts[-1]), 1)
    end = whole.first + whole.length + count - 1
    return whole.replace(end=end, counts=(count,) * len(whole.counts))  # type: ignore[attr-defined]


def take(panel: Windows, span: Span, row_R: Array) -> tuple[Array, Array]:
    """Returns x_RL float32 and observed_RL bool of the numbered rows, L = lookback + longest horizon."""
    return panel.cut(span, row_R, 0, span.length)


def past(panel: Windows, span: Span, row_R: Array) -> tuple[Array, Array]:
    """Returns x_RT and observed_RT, the rows' history."""
    return panel.cut(span, row_R, 0, span.lookback)


def future(panel: Windows, span: Span, row_R: Array) -> tuple[Array, Array]:
    """Returns x_RH and observed_RH, what the longest horizon holds; steps past the split's end count as missing."""
    return panel.cut(span, row_R, span.lookback, span.length)


def stretch(first: Array | int, size: int, rows: Array | int) -> tuple[Array, Array]:
    """Returns row_R, `size` rows from `first` on, and real_R: padding past the last row is that row again, not real.

    It never counts past `rows`, which may be as many as an int32 holds.
    """
    at_R, left = jnp.arange(size), rows - first
    return first + jnp.minimum(at_R, left - 1), at_R < left


def shuffle(key: Array, at_R: Array, rows: int, rounds: int = 48) -> Array:
    """Returns row_R: where position `at` of an endless walk over range(rows) leads, each row once in `rows` positions.

    The walk is a function of (key, at) alone, so that resuming needs no state, and it needs no table: 862 channels make
    ten million rows. It is a swap-or-not shuffle (Hoang, Morris and Rogaway 2012): each round pairs x with k - x mod
    rows, and a coin that depends on the pair alone decides whether they swap, which is a bijection.
    """
    at_R, size = at_R.astype(jnp.uint32), jnp.uint32(rows)
    epoch_R, x_R = at_R // size, at_R % size

    def swap_or_not(x_R: Array, bits_2: Array) -> tuple[Array, None]:
        partner_R = (mix(epoch_R ^ bits_2[0]) % size + size - x_R) % size
        coin_R = mix(jnp.maximum(x_R, partner_R) ^ mix(epoch_R ^ bits_2[1])) & 1
        return jnp.where(coin_R == 1, partner_R, x_R), None

    bits_r2 = jax.random.bits(key, (rounds, 2), jnp.uint32)
    return jax.lax.scan(swap_or_not, x_R, bits_r2)[0].astype(jnp.int32)


def batch(key: Array, step: Array, size: int, rows: int) -> Array:
    """Returns row_R, the rows of optimisation step `step`: every row once an epoch, none dropped, one by one.

    A batch may straddle epochs. step * size must stay below 2^32 (`optim.plan` checks it).
    """
    return shuffle(key, step.astype(jnp.uint32) * jnp.uint32(size) + jnp.arange(size, dtype=jnp.uint32), rows)
