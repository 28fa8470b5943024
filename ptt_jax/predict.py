"""Histories in, forecasts out: a frozen backbone with a prompt as one compiled function of any number of rows.

A row is a history in whatever units: it is standardised in float64 here, so that a series around 1e8 keeps its digits,
and the forecast comes back in its units.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import members, tasks
from ptt_jax.intervals import Unit
from ptt_jax.model import CrossMAE
from ptt_jax.prompts import Prompt
from ptt_jax.scaling import Scaler, exact

ROWS, FEW = 1024, 64  # most rows of a dispatch, and those that cost little more than one


class Predictor(NamedTuple):
    """A frozen backbone, and the prompt that asks it; None is the mask token alone. quantiles: prompts of `levels`, an
    axis in front of the prompt's own."""

    model: CrossMAE
    backbone: Any
    prompt: Prompt | None
    lookback: int
    horizon: int
    quantiles: Prompt | None = None
    levels: tuple[float, ...] = ()

    def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
        """Returns y_RH float64 from the last `lookback` steps of each row, NaN where missing; shorter ones are padded.

        A row without any value is NaN. All that the prompt was tuned for is asked and cut: one program for every
        horizon, and the same first steps where queries see each other.
        """
        if self.levels:
            return self.told(history_RT, horizon)[0]
        x_RT, seen_RT, scaler = ready(history_RT, self.lookback)
        ask = functools.partial(run, self.model, self.horizon, self.backbone, self.prompt)
        parts = [np.asarray(ask(*rows))[:count] for rows, count in blocks(x_RT, seen_RT)]
        return restore(np.concatenate([np.zeros((0, self.horizon)), *parts])[:, :horizon], x_RT, seen_RT, scaler)

    def told(self, history_RT: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns y_RH as `__call__` does and, where there are quantile prompts, away_LRH float64: how far from it the
        quantiles of `levels` lie, ascending; its own 0 is among them unless a prompt is of the median."""
        x_RT, seen_RT, scaler = ready(history_RT, self.lookback)
        ask = functools.partial(run_levels, self.model, self.horizon, self.backbone, self.prompt, self.quantiles)
        parts = [np.asarray(ask(*rows))[:, :count] for rows, count in blocks(x_RT, seen_RT)]
        y_QRH = np.concatenate([np.zeros((1 + len(self.levels), 0, self.horizon)), *parts], 1)[..., :horizon]
        return restore_levels(y_QRH, self.levels, x_RT, seen_RT, scaler)

    def embed(self, history_RT: np.ndarray) -> np.ndarray:
        """Returns e_RD float32: what the frozen encoder says of each history, mean over the patches that hold anything.

        It moves neither with the units of a row nor with its level; NaN where a row has no value.
        """
        x_RT, seen_RT, _ = ready(history_RT, self.lookback)
        parts = [np.asarray(read(self.model, self.backbone, *rows))[:count] for rows, count in blocks(x_RT, seen_RT)]
        e_RD = np.concatenate([np.zeros((0, self.model.width), np.float32), *parts])
        e_RD[~seen_RT.any(1)] = np.nan
        return e_RD


def blocks(x_RT: np.ndarray, seen_RT: np.ndarray) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], int]]:
    """Yields rows of a dispatch, padded with rows without a value, and how many are real: to a power of two, and above
    FEW to one of four sizes in each doubling, so that few programs are compiled and few rows asked in vain."""
    for first in range(0, len(x_RT), ROWS):
        count = min(ROWS, len(x_RT) - first)
        size = 2 ** (count - 1).bit_length()
        padding = (0, -count % (size // 8 if count > FEW else size)), (0, 0)
        rows = slice(first, first + count)
        yield (np.pad(x_RT[rows], padding), np.pad(seen_RT[rows], padding)), count


def ready(history_RT: np.ndarray, lookback: int) -> tuple[np.ndarray, np.ndarray, Scaler]:
    """Returns x_RT float32, standardised row by row and finite, which of it is there, and how it was standardised."""
    missing = max(lookback - history_RT.shape[1], 0)
    history_RT = np.pad(history_RT[:, -lookback:], ((0, 0), (missing, 0)), constant_values=np.nan)
    seen_RT = ~np.isnan(history_RT)
    scaler = exact(history_RT.T, seen_RT.T)
    return scaler.transform(history_RT.T, seen_RT.T).T, seen_RT, scaler


def restore(y_RH: np.ndarray, x_RT: np.ndarray, seen_RT: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Returns forecasts of what `ready` made in the units of the rows; NaN where a row has no value."""
    y_RH = np.where((x_RT != 0).any(1)[:, None], y_RH, 0)  # what has stood still goes on so, to the last digit
    y_RH = y_RH * scaler.scale_C[:, None] + scaler.mean_C[:, None]
    y_RH[~seen_RT.any(1)] = np.nan
    return y_RH


def restore_levels(
    y_QRH: np.ndarray, levels: Sequence[float], x_RT: np.ndarray, seen_RT: np.ndarray, scaler: Scaler
) -> tuple[np.ndarray, np.ndarray]:
    """Returns y_RH and away_LRH (`Predictor.told`) of what `run_levels` said."""
    told_LRH = y_QRH[1:] if 0.5 in levels else y_QRH  # the forecast is the median where no prompt is
    moves_R1 = (x_RT != 0).any(1)[:, None]
    away_LRH = (told_LRH - y_QRH[0]) * (moves_R1 * scaler.scale_C[:, None])
    away_LRH[:, ~seen_RT.any(1)] = np.nan
    return restore(y_QRH[0], x_RT, seen_RT, scaler), np.sort(away_LRH, axis=0)


@functools.partial(jax.jit, static_argnums=0)
def read(model: CrossMAE, backbone: Any, x_RT: Array, observed_RT: Array) -> Array:
    model, backbone = members.first(model, backbone)
    outputs = model.apply({"params": backbone}, x_RT, observed_RT, method=model.read)
    z_RND, keep_RN, *_ = cast(tuple[Array, ...], outputs)
    keep_RN1 = keep_RN[..., None].astype(jnp.float32)  # under hiding 'value' the future's zeros follow
    return (z_RND[:, : keep_RN.shape[1]] * keep_RN1).sum(1) / jnp.maximum(keep_RN1.sum(1), 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(
    model: CrossMAE, horizon: int, backbone: Any, prompt: Prompt | None, x_RT: Array, observed_RT: Array,
    channel_R: Array | None = None,
) -> Array:  # fmt: skip
    """Returns y_RH of standardised rows; channel_R: which of a stack's prompts each is asked with."""
    encoded = members.observe(model, backbone, x_RT, observed_RT)
    asked = [(prompt, horizon)]
    channel_R = jnp.zeros(x_RT.shape[:1], jnp.int32) if channel_R is None else channel_R
    return tasks.forecasts(model, backbone, encoded, asked, channel_R)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_levels(
    model: CrossMAE, horizon: int, backbone: Any, prompt: Prompt | None, quantiles: Prompt, x_RT: Array,
    observed_RT: Array, channel_R: Array | None = None,
) -> Array:  # fmt: skip
    """Returns y_QRH of standardised rows: what the prompt says, and what that of each level says after it; channel_R:
    which of a stack's prompts each is asked with."""
    encoded = members.observe(model, backbone, x_RT, observed_RT)
    each = [jax.tree.map(lambda tokens, q=q: tokens[q], quantiles) for q in range(len(jax.tree.leaves(quantiles)[0]))]
    asked = [(one, horizon) for one in (prompt, *each)]
    channel_R = jnp.zeros(x_RT.shape[:1], jnp.int32) if channel_R is None else channel_R
    return jnp.stack(tasks.forecasts(model, backbone, encoded, asked, channel_R))


def foretell(
    predictor: Predictor, values_TC: np.ndarray, after: Sequence[int], horizon: int, unit: Unit
) -> tuple[np.ndarray, np.ndarray]:
    """Returns y_WHC of windows whose history ends `after` steps from the end, and unit_WC of each history; both NaN
    where a history has no value."""
    channels = values_TC.shape[1]
    y_WHC, unit_WC = np.empty((len(after), horizon, channels)), np.empty((len(after), channels))
    for part, history_RT in histories(values_TC, after, predictor.lookback):
        y_WHC[part] = predictor(history_RT, horizon).reshape(-1, channels, horizon).swapaxes(1, 2)
        unit_WC[part] = size(history_RT, unit).reshape(-1, channels)
    return y_WHC, unit_WC


def foretell_levels(
    predictor: Predictor, values_TC: np.ndarray, after: Sequence[int], horizon: int, unit: Unit
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what `foretell` does and, of a predictor with quantile prompts, away_LWHC float32 (`Predictor.told`)."""
    channels, rungs = values_TC.shape[1], len({*predictor.levels, 0.5})
    y_WHC, unit_WC = np.empty((len(after), horizon, channels)), np.empty((len(after), channels))
    away_LWHC = np.empty((rungs, *y_WHC.shape), np.float32)
    for part, history_RT in histories(values_TC, after, predictor.lookback):
        y_RH, away_LRH = predictor.told(history_RT, horizon)
        y_WHC[part] = y_RH.reshape(-1, channels, horizon).swapaxes(1, 2)
        unit_WC[part] = size(history_RT, unit).reshape(-1, channels)
        away_LWHC[:, part] = away_LRH.reshape(rungs, -1, channels, horizon).swapaxes(2, 3)
    return y_WHC, unit_WC, away_LWHC


def histories(values_TC: np.ndarray, after: Sequence[int], length: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields windows whose history ends `after` steps from the end, some at a time: a year of them would fill the
    memory; and history_RT of their series, NaN where missing."""
    padded_TC = np.pad(values_TC, ((length, 0), (0, 0)), constant_values=np.nan)
    step = max(ROWS // values_TC.shape[1], 1)
    for first in range(0, len(after), step):
        part = slice(first, min(first + step, len(after)))
        ends = [max(len(padded_TC) + a, length) for a in after[part]]
        yield part, np.stack([padded_TC[end - length : end].T for end in ends]).reshape(-1, length)


def size(history_RT: np.ndarray, unit: Unit) -> np.ndarray:
    """Returns the unit of each history, NaN where it has no value."""
    seen_RT = ~np.isnan(history_RT)
    spread_R = np.where(seen_RT.any(1), exact(history_RT.T, seen_RT.T, still=0.0).scale_C, np.nan)
    return unit.size(history_RT, spread_R)
