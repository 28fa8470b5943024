"""Parts of a page that are pictures of what a run found: errors by step and by channel, attention, curves of learning.

Each takes what was found and returns markup; what a run did not keep is a sentence in the picture's place.
"""

from html import escape

import numpy as np
import pandas as pd

from ptt_jax.charts import Line, bars, heat, lines, rows, swatch
from ptt_jax.found import ABSENT, Found, spoken
from ptt_jax.results import records
from ptt_jax.scales import Ticks, number, ticks
from ptt_jax.sheet import figures, folded, legend, missing, table

MANY = 24  # channels that are shown one by one
MOST = 1000  # channels in a table
FEW = 8  # horizons that are drawn
HUES = ("m2", "m3", "m4", "m5", "m6", "m7", "m1", "m0")


def some(count: int, most: int = FEW) -> list[int]:
    """Returns at most so many of range(count), evenly spread."""
    return [*map(int, np.unique(np.linspace(0, count - 1, most).astype(int)))] if count > 0 else []


def by_step(of: Found) -> str:
    """Error at each step of the longest horizon; of the others below."""
    found = of.table("steps.csv")
    if found is None:
        return missing(ABSENT.format("steps.csv"))
    horizons = sorted(found["horizon"].unique())

    def chart(horizon: int, metric: str) -> str:
        errors = found[found["horizon"] == horizon].groupby(["step", "model"])[metric].mean().unstack()
        step = errors.index.to_numpy()
        curves = [Line(spoken(m), of.looks[m], step, errors[m].to_numpy()) for m in of.models if m in errors]
        words = "; ".join(f"{c.name} from {number(c.y[0])} to {number(c.y[-1])}" for c in curves)
        return lines(f"{metric.upper()}, horizon {horizon}", words, curves, unit="step of the horizon")

    note = f"Mean over every window of {of.split} and every channel, scaled space."
    body = of.legend() + figures((chart(horizons[-1], metric) for metric in ("mse", "mae")), note, "two")
    others = [horizons[i] for i in some(len(horizons) - 1)]
    return body + (folded("The other horizons", figures(chart(h, "mse") for h in others)) if others else "")


def by_channel(of: Found) -> str:
    """Error of each channel, the worst first; of many the distribution."""
    found = of.table("channels.csv")
    if found is None:
        return missing(ABSENT.format("channels.csv"))
    horizon = found["horizon"].max()
    found = found[found["horizon"] == horizon].assign(place=lambda rows: rows.groupby("model").cumcount())
    mse, mae = (found.pivot(index=["place", "channel"], columns="model", values=metric) for metric in ("mse", "mae"))
    main = of.tuned if of.tuned in mse else of.models[-1]
    mse = mse[[m for m in of.models if m in mse]].sort_values(main, ascending=False)
    count, names = len(mse), mse.index.get_level_values("channel")
    which = f"the {MANY} worst of {count} channels" if count > MANY else "each channel, the worst first"

    def chart(metric: str, errors: pd.DataFrame) -> str:
        values = {spoken(m): (of.looks[m], errors[m].to_numpy()[:MANY]) for m in mse}
        words = ", ".join(f"{name} {number(v)}" for name, v in zip(names[:8], errors[main], strict=False))
        title = f"{metric.upper()}, horizon {horizon}"
        return rows(title, f"{which.capitalize()}; {spoken(main)}: {words}", names[:MANY], values)

    charts = [chart("mse", mse), chart("mae", mae.loc[mse.index])]
    if count > MANY:
        title, words = f"All {count} channels", f"How many channels have which MSE of {spoken(main)}"
        charts[1] = bars(title, words, mse[main].to_numpy(), of.looks[main].split()[0], f"MSE of {spoken(main)}")
    wins = [f"{spoken(m)} on {int((mse[main] < mse[m]).sum())}" for m in mse if m != main]
    note = f"{which.capitalize()}; {of.split}, scaled space."
    note += f" Of {count} channels {spoken(main)} has a lower MSE than {', '.join(wins)}." if wins else ""
    body = [[escape(n), *map(number, row)] for n, row in zip(names[:MOST], mse.to_numpy(), strict=False)]
    caption = f"MSE by channel, horizon {horizon}" + (f", the {MOST} worst" if count > MOST else "")
    whole = table(caption, ["channel", *map(spoken, mse)], body, "numbers")
    return of.legend() + figures(charts, note, "two") + folded("As a table", whole)


def attention(of: Found) -> str:
    """What future patches read of the history's, in the mean and by head."""
    if "attention_IKMN" not in of.kept:
        where = (
            " Queries are followed under model.decoder_attention=cross, model.hiding=feature, no tune.prompts=layer."
        )
        return missing(ABSENT.format("exhibits.npz") + where)
    weight_IKMN, patch = of.kept["attention_IKMN"].astype(float), int(of.kept["patch"])
    blocks, heads, queries, keys = weight_IKMN.shape
    # A tick says where the first step of a patch lies, seen from the first step that is forecast.
    xticks: Ticks = [(n, f"\u2212{(keys - n) * patch:,}") for n in sorted({round(v) for v, _ in ticks(0, keys - 1)})]
    yticks: Ticks = [(m, f"{m * patch + 1:,}") for m in sorted({round(v) for v, _ in ticks(0, queries - 1)})]
    units = ("step of the history, before now", "step of the future")
    mean_MN, even = weight_IKMN.mean((0, 1)), 100 / keys
    share_N = 100 * mean_MN.mean(0)
    top = ", ".join(f"{share_N[n]:.0f} % to the patch that begins {(keys - n) * patch} steps before now"
                    for n in np.argsort(-share_N)[:3])  # fmt: skip
    who = "the prompt's queries" if of.tuned == "prompt" else "the mask token's queries, before tuning"
    words = f"Even attention would be {even:.1f} % a patch. Most is paid: {top}."
    back = Line(f"share of attention to a patch of {patch} steps", "m2", -patch * np.arange(keys, 0, -1.0), share_N)
    charts = [
        heat(f"Attention of {who}", words, mean_MN, xticks, yticks, units),
        lines("How far back they read, %", words, [back], levels=[even], zero=True, axis={"word": "from step"},
              unit="step at which the patch begins, before now"),
    ]  # fmt: skip
    note = (
        f"The darker, the more: mean over heads, blocks and rows of {of.split} that were drawn once; of several "
        f"networks the first. {words}"
    )
    each = [(f"Block {i + 1}, head {k + 1}", weight_IKMN[i, k]) for i in range(blocks) for k in range(heads)][:16]
    body = figures(charts, note, "two")
    if len(each) == 1:
        return body
    parts = (heat(name, f"{patch} steps a patch", weight_MN, xticks, yticks, units) for name, weight_MN in each)
    return body + folded("Each head", figures(parts))


def learning(of: Found) -> str:
    """Losses of pre-training, and what tuning does to the validation error of each horizon."""
    pretrain, tune = (records(of.run / "metrics.jsonl", stage) for stage in ("pretrain", "tune"))
    names = {"loss": "training", "validation_loss": "validation", "validation_forecast": "validation, forecasting"}
    at = pretrain.index.to_numpy(float)
    first = [Line(n, k, at, pretrain[key].to_numpy(float)) for k, (key, n) in zip(HUES, names.items(), strict=False)
             if key in pretrain]  # fmt: skip
    second = []
    for part, aside in (("validation", ""), ("train", " aside")):
        errors = tune.filter(like=f"{part}_mse.")
        change = 100 * (errors / errors.loc[0] - 1) if 0 in errors.index else errors.iloc[:0]
        for look, i in zip(HUES, some(change.shape[1]), strict=False):
            name = f"horizon {str(change.columns[i]).split('.')[1]}{', training rows' if aside else ''}"
            second.append(Line(name, look + aside, change.index.to_numpy(float), change.iloc[:, i].to_numpy(float)))
    panels, zero_shot = [], "Tuning: validation MSE, % from zero-shot"
    for title, curves, levels in (("Pre-training: loss", first, ()), (zero_shot, second, (0.0,))):
        curves = [c for c in curves if np.isfinite(c.y).any()]
        if curves:
            lowest = {c.name: f"{number(float(np.nanmin(c.y)))} at {c.x[np.nanargmin(c.y)]:,.0f}" for c in curves}
            words = "Lowest: " + "; ".join(f"{name} {low}" for name, low in lowest.items())
            chart = figures([lines(title, words, curves, levels=levels, dots=True, unit="step")], kind="one")
            panels.append(chart + legend((swatch(c.look), f"{c.name}: {lowest[c.name]}") for c in curves))
    if not panels:
        return missing(ABSENT.format("metrics.jsonl"))
    note = "A dot is the lowest point of a curve, and its legend says where. What is kept is chosen on validation."
    return f'<div class="charts two">{"".join(f"<div>{p}</div>" for p in panels)}</div><p><small>{note}</small></p>'
