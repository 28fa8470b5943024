"""A run directory as a page to look at: `report.html`, one file, in any browser, without a network.

    python -m ptt_jax.page RUN      # of a finished run, of an earlier version, too

Reads only the files a run leaves behind (no jax, no matplotlib), as `report.py` does. What a run of an earlier version
did not keep is missing on the page, which says so.
"""

import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax import outlook, panels
from ptt_jax.charts import rows, swatch
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.found import Found, spoken
from ptt_jax.knobs import KNOBS
from ptt_jax.results import CALIBRATED, HOW, MEASURES, TUNED, grid
from ptt_jax.scales import number
from ptt_jax.sheet import Best, document, facts, figures, folded, table

KNOWN = {"data", "lookback", "horizon", "model", "split", "seed", "mse", "mae", "windows"}


def write(run: Path, command: str = "") -> Path:
    """Writes `run/report.html` from the run's own files; returns its path. Raises UserError without results.csv."""
    write_atomic(run / "report.html", html(Found(run), command))
    return run / "report.html"


def html(of: Found, command: str = "") -> str:
    """Returns the page."""
    parts = [
        ("forecasts", "Forecasts", outlook.forecasts(of)),
        ("scores", of.split.capitalize(), scores(of)),
        ("steps", "Error by step", panels.by_step(of)),
        ("channels", "Error by channel", panels.by_channel(of)),
        ("attention", "Attention over history", panels.attention(of)),
        ("learning", "Learning", panels.learning(of)),
        ("run", "The run", about(of, command)),
    ]
    foot = f"ptt_jax {of.versions.get('ptt_jax', '')}. The numbers are in results.csv, steps.csv and channels.csv."
    return document(f"Forecasts of {of.name}", head(of), parts, escape(foot))


def head(of: Found) -> str:
    """What is to be known first: the result in a sentence, and what it is of."""
    mse = grid(of.results[of.results["split"] == of.split], "mse")["mean"].dropna()
    what, text = f"mean {of.split} MSE", ""
    if of.tuned in mse:
        change = {m: 100 * (mse[of.tuned] / mse[m] - 1) for m in mse.index if m != of.tuned}
        aside = [f"{abs(c):.1f} % {'below' if c < 0 else 'above'} {spoken(m)}'s" for m, c in change.items()]
        text = f"{spoken(of.tuned).capitalize()}: {what} {mse[of.tuned]:.3f}{', ' * bool(aside)}{', '.join(aside)}."
    elif len(mse):
        text = f"The lowest {what} is {spoken(str(mse.idxmin()))}'s, {mse.min():.3f}."
    horizons = sorted(of.results["horizon"].unique())
    found = [("Lookback", f"{int(of.results['lookback'].iloc[0]):,} steps")]
    found.append(("Horizons", ", ".join(map(str, horizons[:6])) + (f" to {horizons[-1]}" if len(horizons) > 6 else "")))
    if "rows" in of.kept:
        found.insert(0, ("Data", f"{int(of.kept['rows']):,} rows of {int(of.kept['channels']):,} channels"))
    frozen, card = ", frozen" * (of.tuned == "prompt"), of.cards[0][1] if of.cards else {}
    counts = {f"Backbone{frozen}": of.backbone.get("parameters"), "Tuned": card.get("tuned_parameters")}
    found += [(name, f"{count:,} weights") for name, count in counts.items() if isinstance(count, int)]
    return f'<p class="lead">{escape(text)}</p>{facts(found)}'


def scores(of: Found) -> str:
    """Every model's errors, as dots and as tables; what else results.csv says of them in tables of their own."""
    here = of.results[of.results["split"] == of.split]

    def chart(metric: str) -> str:
        errors = grid(here, metric)
        errors = errors.iloc[:, panels.some(errors.shape[1], 9)]
        labels = [f"{column} steps" if column != "mean" else "mean" for column in errors]
        words = "; ".join(f"{spoken(m)} {number(errors.loc[m].iloc[-1])}" for m in errors.index)
        values = {spoken(m): (of.looks[m], errors.loc[m].to_numpy(float)) for m in errors.index}
        return rows(f"{metric.upper()} by horizon", f"{labels[-1]}: {words}", labels, values)

    how, seeds = " ".join(HOW.split()).replace("Bold:", "In colour:"), of.results["seed"].nunique()
    how += f" Of {seeds} seeds where there are several: the mean, and ± the spread of the MSE." if seeds > 1 else ""
    body = of.legend() + figures(map(chart, ("mse", "mae")), how, "two") + errors_of(of, of.split)
    for column in here.columns.difference(KNOWN, sort=False):
        if pd.api.types.is_numeric_dtype(here[column]) and here[column].notna().any():
            values = grid(here, column)
            cells = [[model(of, m), *map(number, values.loc[m])] for m in values.index if values.loc[m].notna().any()]
            caption = f"{MEASURES.get(column, spoken(column))} on {of.split}, by horizon"
            body += table(caption, ["model", *map(str, values)], cells, "numbers")
    if "coverage_80" in here:
        body += f"<p>{escape(' '.join(CALIBRATED.split()).replace('`', ''))}</p>"
    if of.split != "test":
        return body + "<p>The test split is not scored (<code>evaluate.test</code>).</p>"
    validation = "validation" in {*of.results["split"]}
    return body + (folded("The same on validation", errors_of(of, "validation")) if validation else "")


def errors_of(of: Found, split: str) -> str:
    """The table of a split: models by horizons."""
    here = of.results[of.results["split"] == split]
    mse, mae = (grid(here, metric).round(3) for metric in ("mse", "mae"))
    spread = here.groupby(["model", "horizon"])["mse"].std().unstack().reindex(index=mse.index, columns=mse.columns)
    body = []
    for name in mse.index:
        cells: list[str] = [model(of, name)]
        for error, other, around, column in zip(mse.loc[name], mae.loc[name], spread.loc[name], mse, strict=True):
            aside = f" <small>±{around:.3f}</small>" if np.isfinite(around) else ""
            text = f"{error:.3f}{aside} / {other:.3f}" if np.isfinite(error) else number(np.nan)
            cells.append(Best(text) if error == mse[column].min() else text)
        body.append(cells)
    windows = here.groupby("horizon")["windows"].unique().map(lambda counts: " or ".join(f"{n:,}" for n in counts))
    body.append(["<small>windows</small>", *(f"<small>{windows.get(column, '')}</small>" for column in mse)])
    return table(f"MSE / MAE on {split}, by horizon", ["model", *map(str, mse)], body, "numbers")


def model(of: Found, name: str) -> str:
    return f"{swatch(of.looks[name])} {escape(spoken(name))}"


def about(of: Found, command: str) -> str:
    """What the run is of and how it was made."""
    origin = of.config.get("backbone")
    text = f"<p>The backbone is taken from <code>{escape(str(origin))}</code>.</p>" if origin else ""
    text += f"<pre>{escape(command)}</pre>" if command else ""
    series = {key: value for key, value in of.data.items() if key not in ("splits", "also")}
    series |= {key: of.kept[key].item() for key in ("rows", "channels", "first", "last") if key in of.kept}
    series |= {"missing": f"{100 * float(of.kept['missing']):.2f} %"} if "missing" in of.kept else {}
    series |= {f"{part} rows": f"{a:,} to {b:,}" for part, (a, b) in of.data.get("splits", {}).items()}
    parts = [pairs("Data", series), pairs("What was trained: the backbone", of.backbone)]
    parts += [pairs(f"What was trained: {title}", {k: card[k] for k in TUNED if k in card}) for title, card in of.cards]
    parts.append(pairs("Versions", of.versions))
    tables = f'<div class="charts two">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'
    return text + settings(of) + tables


def settings(of: Found) -> str:
    """Knobs that are not at their default, and what they are; all of them folded."""
    if not of.config:
        return ""
    here, changed = pd.json_normalize(of.config).iloc[0].to_dict(), []
    for key, standard, _, words in KNOBS:
        usual = list(standard) if isinstance(standard, tuple) else standard
        if key in here and here[key] != usual:
            changed.append([code(key), *(escape(str(text)) for text in (here[key], usual, words))])
    head = ["knob", "here", "default", "what it is"]
    body = table("Settings that are not at their default", head, changed) if changed else ""
    return body + folded("All settings", pairs("Settings", here))


def code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def pairs(caption: str, tree: Mapping[str, Any]) -> str:
    """A nested dict as a table of dotted names and values; nothing of an empty one."""
    found = pd.json_normalize(dict(tree)).iloc[0].items() if tree else ()
    body = [[code(key), escape(str(value))] for key, value in found]
    return table(caption, [], body) if body else ""


if __name__ == "__main__":
    try:
        if not sys.argv[1:]:
            raise UserError("no run is named; accepted: python -m ptt_jax.page RUN, a run directory")
        for folder in sys.argv[1:]:
            print(f"report: {write(Path(folder))}")
    except UserError as e:
        print(f"ptt_jax: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)
