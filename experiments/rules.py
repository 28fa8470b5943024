"""Other rules for the intervals of own data, beside the one in `calibrate.py`, on the ends of coverage.py.

    python experiments/rules.py [--data=NN5_daily,illness]

A rule changes one thing of what intervals are made from; a ridge regression is in the place of the model. Coverage and
pinball loss are those of 80 % intervals on windows after each end. What finished is in results/rules.csv.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from coverage import Scene, scene, study
from ledger import exit_code

from ptt_jax import calibrate, intervals
from ptt_jax.intervals import Intervals, Unit

LEVELS = np.array([0.1, 0.9])  # the only ones that are judged: quantiles at all of them would take most of the time
AS_IS = "as it is"


class Evidence(NamedTuple):
    """What `calibrate.fit` makes intervals from, in units of one kind."""

    map_WHC: np.ndarray  # the linear map's residuals over the history
    unit_WC: np.ndarray
    age_W: np.ndarray  # steps from the end
    own_VHC: np.ndarray  # the model's on the last rows
    map_VHC: np.ndarray
    unit_VC: np.ndarray
    apart: int
    kept: int  # windows of the last rows that do not overlap

    def size(self) -> np.ndarray:
        """Returns size_HC."""
        return calibrate.ratio(self.own_VHC, self.map_VHC, self.unit_VC)

    def fit(self, size_HC: np.ndarray | None = None, apart: int = 0, pick_W: Any = slice(None)) -> Intervals:
        """Returns intervals, as they are or with something else in their stead."""
        residual_WHC = self.map_WHC * (self.size() if size_HC is None else size_HC)
        return intervals.fit(residual_WHC[pick_W], self.unit_WC[pick_W], apart or self.apart)


def faded(of: Evidence, halves: float) -> Intervals:
    """Windows drawn by their age, which counts half each such share of the history."""
    weight_W = 0.5 ** (of.age_W / of.age_W.max() / halves)
    count = len(weight_W)
    return of.fit(pick_W=np.random.default_rng(0).choice(count, 2 * count, p=weight_W / weight_W.sum()))


def stretched(of: Evidence, lent: int) -> Intervals:
    """Widths by which 80 % of the last rows are covered, drawn to the former as by so many windows."""
    known = of.fit()
    low_VHC, high_VHC = (known.at(q)[None, :, None] * (known.ratio_C * of.unit_VC)[:, None] for q in LEVELS)
    with np.errstate(all="ignore"):
        bound_VHC = np.where(of.own_VHC >= 0, high_VHC, low_VHC)
        reach_VHC = np.where(of.own_VHC * bound_VHC > 0, of.own_VHC / bound_VHC, np.nan)
    factor = float(np.nanquantile(reach_VHC, 0.8)) ** (of.kept / (of.kept + lent))
    return known._replace(quantile_QH=known.quantile_QH * factor)


def alike(of: Evidence, share: float) -> Intervals:
    """Each series' width drawn to the median's, on a geometric scale."""
    known = of.fit()
    return known._replace(ratio_C=known.ratio_C ** (1 - share) * np.median(known.ratio_C) ** share)


def pooled(size_HC: np.ndarray) -> np.ndarray:
    return np.broadcast_to(size_HC.mean(1, keepdims=True), size_HC.shape)


def single(size_HC: np.ndarray) -> np.ndarray:
    return np.full_like(size_HC, np.exp(np.log(size_HC).mean()))


RULES: dict[str, Callable[[Evidence], Intervals]] = {
    AS_IS: lambda of: of.fit(),
    "size: the map's own": lambda of: of.fit(np.ones_like(of.size())),
    "size: by step, of all series": lambda of: of.fit(pooled(of.size())),
    "size: one number": lambda of: of.fit(single(of.size())),
    "size: drawn to 1 as by 2 windows": lambda of: of.fit(of.size() ** (of.kept / (of.kept + 2))),
    "size: drawn to 1 as by 10 windows": lambda of: of.fit(of.size() ** (of.kept / (of.kept + 10))),
    "widths of the last rows": lambda of: stretched(of, 0),
    "widths of the last rows, drawn as by 5 windows": lambda of: stretched(of, 5),
    "widths of the last rows, drawn as by 20 windows": lambda of: stretched(of, 20),
    "weight halves in a quarter of the history": lambda of: faded(of, 0.25),
    "weight halves in half of the history": lambda of: faded(of, 0.5),
    "weight halves in the history": lambda of: faded(of, 1.0),
    "no correction of finite samples": lambda of: of.fit(apart=10**6),
    "half as many independent windows": lambda of: of.fit(apart=max(of.apart // 2, 1)),
    "all series count as one": lambda of: of.fit(apart=max(of.apart // of.unit_WC.shape[1], 1)),
    "width of a series half its own": lambda of: alike(of, 0.5),
    "width of all series alike": lambda of: alike(of, 1.0),
}
UNITS = {"unit: a quarter of moves": 0.25, "unit: three quarters of moves": 0.75, "unit: moves alone": 1.0}


def measure(of: Scene) -> list[dict[str, Any]]:
    """Returns a row for each rule."""
    model, past, horizon, rows = of.model, of.past, of.model.horizon, len(of.past.values_TC)
    count = min(calibrate.CUTOFFS, max(calibrate.LEAST, calibrate.ROWS // len(past.names_C)))
    last = calibrate.cutoffs(-of.kept, -horizon, count)
    first = model.lookback - rows
    every = calibrate.cutoffs(first, -horizon, count)
    map_WHC = calibrate.crossed(past, [*every, *last], model.lookback, horizon)
    usual, found = Unit.of(of.season, horizon, model.lookback), []
    for recent in (usual.recent, *UNITS.values()):
        unit = usual._replace(recent=recent)
        own_VHC, unit_VC = calibrate.back_test(model, past, last, unit)
        unit_WC = calibrate.sizes(past, every, model.lookback, unit)
        evidence = Evidence(
            map_WHC[: len(every)], unit_WC, -np.array(every), own_VHC, map_WHC[len(every) :], unit_VC,
            -first // horizon, of.kept // horizon,
        )  # fmt: skip
        residual_WHC, size_WC = calibrate.back_test(model, of.whole, of.after, unit)
        rules = RULES if recent == usual.recent else {w: RULES[AS_IS] for w, r in UNITS.items() if r == recent}
        for rule, make in rules.items():
            known = make(evidence)
            sides = [known.at(q)[None, :, None] * (known.ratio_C * size_WC)[:, None] for q in LEVELS]
            losses = [intervals.pinball(residual_WHC, side, q) for side, q in zip(sides, LEVELS, strict=True)]
            loss = float(np.mean(losses) / np.nanmean(np.abs(residual_WHC)))
            found.append({"rule": rule, "coverage": intervals.coverage(residual_WHC, *sides), "pinball": loss})
    return found


def table(rows: pd.DataFrame) -> str:
    """Returns the table for README.md."""
    lines = [
        "| rule | ends that 75 to 85 % cover | more, fewer | mean distance from 80 % | pinball loss |",
        "|---" * 5 + "|",
    ]
    of = {rule: part.set_index(["data", "end"]) for rule, part in rows.groupby("rule")}
    base = of[AS_IS]
    for rule in (*RULES, *UNITS):
        here = of[rule].loc[base.index]
        inside, before = here["coverage"].between(0.75, 0.85), base["coverage"].between(0.75, 0.85)
        change = f"+{(inside & ~before).sum()}, -{(before & ~inside).sum()}"
        loss = np.exp(np.log(here["pinball"] / base["pinball"]).mean())
        off = (here["coverage"] - 0.8).abs().mean()
        lines.append(f"| {rule} | {inside.sum()} of {len(here)} | {change} | {off:.4f} | {loss:.4f} |")
    return "\n".join(lines)


def judge(data: str, end: float) -> list[dict[str, Any]]:
    """Returns the rows of the csv, none where the history is too short."""
    here = scene(data, end)
    return [{"data": data, "end": end, **row} for row in measure(here)] if here else []


@exit_code("rules")
def main() -> None:
    intervals.LEVELS = LEVELS
    warnings.filterwarnings("ignore", message=".*windows that don't overlap are too few")
    study("rules", __doc__, judge, lambda rows: f"{rows[0]['data']} {rows[0]['end']}", table)


if __name__ == "__main__":
    sys.exit(main())
