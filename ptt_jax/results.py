"""What a run's files say, in the words and the order that its pages have. No jax."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd

PLAIN = ("seasonal_naive", "linear", "zero_shot", "prompt")  # from plain to tuned
# `chosen`: the step that each horizon keeps, of each seed
TUNED = ("task", "mode", "tuned_parameters", "seeds", "chosen", "setting", "seconds", "backbone")
HOW = """\
MSE and MAE in scaled space (each channel standardised by its training rows), averaged over every window, channel and
observed step of the split; no window is dropped. Bold: the lowest MSE of a column. The mean weighs horizons alike."""
CALIBRATED = """\
Shares of the truths inside, and the CRPS in scaled space (twice the mean pinball loss over the levels of
`tune.quantiles`, or over the deciles), means of the horizons. Intervals are made from validation's errors at each step
(split conformal, of every window), which chose the prompts, too. Raw are the quantile prompts by themselves, whose MSE
and MAE are the median's. The CRPS of runs with other levels are no comparison."""
# columns of results.csv besides the errors, as people call them
MEASURES = {
    "coverage_80": "80 % cover", "coverage_95": "95 % cover", "crps": "CRPS",
    "raw_coverage_80": "80 % cover, raw", "raw_crps": "CRPS, raw",
}  # fmt: skip


def records(path: Path, stage: str) -> pd.DataFrame:
    """The numbers of a stage by step, nested ones under dotted names."""
    steps = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, AttributeError):  # an interrupted run may leave a line cut short
            record = json.loads(line)
            if record.get("stage") == stage and "step" in record:
                steps[record["step"]] = record  # a resumed run may say a step twice: its later word counts
    numbers = pd.json_normalize([steps[step] for step in sorted(steps)]).set_axis(sorted(steps))
    return numbers.apply(pd.to_numeric, errors="coerce")


def ordered(models: Iterable[str]) -> list[str]:
    """The known models from plain to tuned, then others by name."""
    return [model for model in PLAIN if model in models] + sorted(set(models) - set(PLAIN))


def grid(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Models by horizons and their mean: the mean of the seeds; one that diverged (nan) stays visible."""
    cells = rows.groupby(["model", "horizon"])[metric].agg(lambda seeds: seeds.mean(skipna=False)).unstack()
    return cells.assign(mean=cells.mean(axis=1, skipna=False)).loc[ordered(cells.index)]
