"""The page beside an exported program: what goes in and comes out, what it is made of, and how to make intervals."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import export as jax_export

from ptt_jax import provenance, quantiles
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.fitted import Fitted
from ptt_jax.intervals import LEVELS, STILL, Intervals
from ptt_jax.predict import Predictor
from ptt_jax.seal import read_json

FORMAT, TWO = 1, 2  # of the page; of one whose program returns two things
DIGITS = 6  # of the page's quantiles and ratios
SIZE = (
    "size = ratio[name], or `relative` for another series, * spread ** (1 - recent) * move ** recent, with the names "
    "in `unit`; spread: the standard deviation of the row's values; move: the mean distance of its `last` values from "
    "those `lag` steps before, the spread where no two are known, and at least `still` of it"
)
# What a caller has to know, on the page, since nothing else need come along.
NOTES = {
    "history": "a row is one series' last steps, oldest first and one `freq` apart; NaN where a value is missing, and "
    "in front of a history that is shorter; a row without any value is forecast as NaN",
    "rows": "any number from 1 on; jax compiles for each number, so pad many different ones with rows of NaN",
    "digits": "float32 has seven digits: of a row whose level is large beside its moves, pass history - level, made in "
    "float64, and add level to numpy.asarray(forecast, 'float64')",
    "intervals": "low, high = forecast + quantiles[step] at (1 -/+ level / 100) / 2, interpolated between `levels`, * "
    f"size; {SIZE}",
}
# ... and where the program returns quantile forecasts, too.
TOLD = {
    "quantiles": "the program returns (forecast, told): told[l] is what the quantile prompt of the l-th of `levels` "
    "there says, or the forecast itself where that is 0.5 and no prompt is of it, in order",
    "digits": NOTES["digits"].replace("forecast, 'float64')", "forecast, 'float64'), and to told"),
    "intervals": "bounds = sort(weights @ told[:, row, step] + quantiles[step] * size), one for each of `levels`; low, "
    f"high = these at (1 -/+ level / 100) / 2, interpolated; {SIZE}",
}


def make(
    file: str, content: bytes, made: jax_export.Exported, predictor: Predictor, about: dict[str, Any]
) -> dict[str, Any]:
    """Returns the page of a program that a file of that content holds; about: what it says besides, as `of_fitted`."""
    versions, levels = provenance.versions(), list(quantiles.with_median(predictor.levels))
    shape = {"shape": ["rows", predictor.horizon], "dtype": "float32", "missing": "NaN"}
    notes = NOTES | (TOLD if predictor.levels else {})
    if "intervals" not in about:  # of a run, which has no table that they could be made of
        del notes["intervals"]
    told = {"name": "told", "levels": levels, **shape, "shape": [len(levels), *shape["shape"]]}
    return {
        "format": TWO if predictor.levels else FORMAT,
        "program": {
            "file": file, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
            "platforms": list(made.platforms), "calling_convention_version": made.calling_convention_version,
            "versions": {name: versions[name] for name in ("ptt_jax", "jax", "jaxlib")},
        },
        "input": {"name": "history", "shape": ["rows", predictor.lookback], "dtype": "float32", "missing": "NaN"},
        "output": {"name": "forecast", **shape},
        **({"quantiles": told} if predictor.levels else {}),
        "patch": predictor.model.patch,
        "backbone": stores.content_hash(predictor.backbone),
        "notes": notes,
        **about,
    }  # fmt: skip


def to_read(page: dict[str, Any]) -> str:
    """Returns the page as JSON with a line for each plain list, and not for each of its items."""
    lines = json.dumps(page, indent=1, allow_nan=False)
    # No string of JSON holds a raw line break: what is inside of one is left as it is.
    plain = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")
    return plain.sub(lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", lines)


def is_page(path: Path) -> bool:
    """Says whether a file is such a page."""
    try:
        return "program" in read_json(path)
    except UserError:
        return False


def of_fitted(of: Fitted) -> dict[str, Any]:
    """Returns what the page of a Forecaster's export says besides shapes: its series and their intervals."""
    table = of_intervals(of.names_C, of.intervals, of.predictor.levels)
    return {"freq": of.freq, "season": of.season, "prompt": of.prompt_hash, "intervals": table}


def of_intervals(names_C: Sequence[str], known: Intervals, tuned: Sequence[float] = ()) -> dict[str, Any]:
    """Returns what `Intervals.bounds` needs, for JSON, which has no NaN; or, with quantile prompts of the levels
    `tuned`, `quantiles.bounds`: what these say of each of LEVELS is a weighted sum."""

    def plain(values: np.ndarray) -> list[float | None]:
        return [float(f"{v:.{DIGITS}g}") if np.isfinite(v) else None for v in values.tolist()]

    weights = {}
    if tuned:
        rungs = quantiles.with_median(tuned)
        # With every digit: their sum is 1, or bounds would be off by a share of the series' level.
        weights["weights"] = [quantiles.said(np.eye(len(rungs)), rungs, q).tolist() for q in LEVELS]
    return {
        "levels": plain(LEVELS),
        **weights,
        "quantiles": [plain(column) for column in known.quantile_QH.T],
        "ratio": dict(zip(names_C, plain(known.ratio_C), strict=True)),
        "relative": plain(np.array([known.relative]))[0],
        "unit": {**known.unit._asdict(), "still": STILL},
    }
