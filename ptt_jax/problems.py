"""A series made ready for a mesh: scaled, on the device or streamed to it, with its splits; and several as one."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import memory
from ptt_jax import mesh as meshes
from ptt_jax.data import Series
from ptt_jax.errors import UserError
from ptt_jax.frame import shorten
from ptt_jax.scaling import Scaler, fit_scaler
from ptt_jax.stream import Host
from ptt_jax.windows import Mix, Panel, Span, few, span


class Problem(NamedTuple):
    """A series, scaled, on the device or streamed to it, and where its splits lie."""

    series: Series
    scaler: Scaler
    panel: Panel | Host
    mesh: Mesh

    def span(self, split: str, lookback: int, horizons: tuple[int, ...]) -> Span:
        """Returns a split's windows. Raises UserError when one of the horizons fits none."""
        try:
            return span(self.series.splits[split], lookback, horizons, len(self.series.names_C), split)
        except UserError as e:
            raise UserError(f"{self.series.name}: {e}") from None

    def learning(self, cfg: ConfigDict) -> Span:
        """Returns the windows that a task learns from: the training split's, or `tune.share` of them."""
        return few(self.span("train", cfg.lookback, cfg.horizons), cfg.tune.share)


def prepare(series: Series, mesh: Mesh, budget: float = math.inf) -> Problem:
    """Returns the series scaled by its training rows, whole on each device, or on the host if it is over the budget.

    Raises UserError when it must be streamed and grain is not installed, or does not fit.
    """
    scaler = fit_scaler(series)
    values_CT, observed_CT = scaler.transform(series.values_TC).T, series.observed_TC.T
    if values_CT.nbytes + observed_CT.nbytes > budget:
        rows = np.ascontiguousarray(values_CT), np.ascontiguousarray(observed_CT)
        return Problem(series, scaler, Host(*rows, mesh, int(budget)), mesh)
    room, size = memory.of_device(mesh), values_CT.nbytes + observed_CT.nbytes
    if room and size > room.free:
        raise UserError(
            f"{series.name} takes {memory.words(size)} of each device, and {memory.words(room.free)} are free; "
            f"accepted: a config.data.device_bytes below {size}, so that it is streamed from the host, or a smaller one"
        )
    panel = Panel(jnp.asarray(values_CT), jnp.asarray(observed_CT))
    return Problem(series, scaler, meshes.replicate(mesh, panel), mesh)


def mix(problems: Sequence[Problem], lookback: int, horizon: int) -> Mix:
    """Returns the training windows of several problems as one panel. Raises UserError when one has no window, or does
    not lie on the device."""
    for problem in problems:
        if isinstance(problem.panel, Host):
            raise UserError(
                f"config.pretrain.also: {problem.series.name} is larger than config.data.device_bytes, and several "
                f"series cannot be streamed; accepted: a larger budget, or one series"
            )
    spans = [problem.span("train", lookback, (horizon,)) for problem in problems]
    return Mix(tuple(cast(Panel, p.panel) for p in problems), tuple(spans))


def words(problems: Sequence[Problem], panel: Panel | Host | Mix, span: Span, row_R: np.ndarray) -> str:
    """Returns where rows of a span lie, for a sentence: their series, and the steps of the first row's window.

    problems: those of a mix, in its order, or the one whose panel it is.
    """
    names: dict[str, None] = {}
    first = ""
    for row in map(int, row_R):
        of, own = problems[0], span
        if isinstance(panel, Mix):
            of, own = problems[row % len(problems)], panel.spans[row % len(problems)]
            row = row // len(problems) % own.rows
        name, start = of.series.names_C[row % own.channels], own.first + row // own.channels
        names[f"{of.series.name}: {name}" if len(problems) > 1 else name] = None
        first = first or f"rows {start} to {min(start + own.length, own.end) - 1}"
    return f"series {shorten(list(names))}; the first of them is {first} of {next(iter(names))!r}"
