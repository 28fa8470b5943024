"""A run's pictures under `figures/`, by matplotlib: forecasts, errors by step, curves of learning. No jax, no model."""

import io
import warnings
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.files import write_atomic
from ptt_jax.results import records

# Okabe and Ito's colours stay apart for colour-blind eyes; a model keeps its own in every figure.
COLOURS = {"seasonal_naive": "#CC79A7", "linear": "#009E73", "zero_shot": "#0072B2", "prompt": "#D55E00"}
SPARE = ("#56B4E9", "#E69F00", "#8C6D31", "#999999")
SHOWN = 144  # steps of a forecast; of many more in one panel the eye can no longer tell models apart
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.color": "#E8E8E8",
    "legend.frameon": False,
    "text.parse_math": False,  # a channel may be called `$/MWh`
}


def draw(run: Path, models: list[str]) -> list[tuple[str, str, str]]:
    """Draws what the run has files for; returns each picture's title, caption and name. Raises ImportError without
    matplotlib."""
    import matplotlib

    colours = COLOURS | dict(zip((model for model in models if model not in COLOURS), cycle(SPARE)))
    drawn = []
    for title, (make, caption) in FIGURES.items():
        name, content = f"{make.__name__}.png", io.BytesIO()
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts the font lacks
            if (figure := make(run, colours)) is not None:
                figure.savefig(content, format="png", dpi=130)
                write_atomic(run / "figures" / name, content.getvalue())
                drawn.append((title, caption, name))
    return drawn


def panels(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """A figure as wide as a README; no pyplot, whose state is global."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def lines(ax: Any, colours: dict[str, str], curves: dict[str, tuple]) -> None:
    """The models' curves, the prompt's thick and on top."""
    for model in (model for model in colours if model in curves):
        look = {"linewidth": 1.9, "zorder": 2.5} if model == "prompt" else {"linewidth": 0.9, "zorder": 2.2}
        dot = {"marker": "o"} if len(curves[model][0]) == 1 else {}  # a line of one point shows nothing
        ax.plot(*curves[model], color=colours[model], label=model.replace("_", " "), **look, **dot)


def forecasts(run: Path, colours: dict[str, str]) -> Any | None:
    """The first three channels, each at its first and its last window."""
    if not (run / "samples.npz").exists():
        return None
    samples = dict(np.load(run / "samples.npz", allow_pickle=False))
    order, channels = np.argsort(samples["stamp_S"], kind="stable"), samples["channel_S"]
    found = [order[channels[order] == name] for name in list(dict.fromkeys(channels))[:3]]
    picks = [line[:: max(1, len(line) - 1)] for line in found]
    figure, axes = panels(len(picks), max(map(len, picks)), 0.5 + 1.6 * len(picks))
    for s, ax in ((s, ax) for line, row in zip(picks, axes, strict=True) for s, ax in zip(line, row, strict=False)):
        window(ax, colours, {name: array[s] if array.ndim else array for name, array in samples.items()})
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return figure


def window(ax: Any, colours: dict[str, str], sample: dict[str, np.ndarray]) -> None:
    """History, truth and forecasts of one sample, on dates where the step is constant; gaps where nothing was seen."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    past = np.where(sample["history_observed_ST"], sample["history_ST"], np.nan)
    future = np.where(sample["truth_observed_SH"], sample["truth_SH"], np.nan)[:SHOWN]
    past, title = past[-max(48, min(192, 2 * len(future))) :], str(sample["channel_S"])
    stamp, seconds = pd.to_datetime(str(sample["stamp_S"]), errors="coerce"), float(sample["step_seconds"])
    x = np.append(np.arange(-len(past), len(future)), -0.5)
    if seconds > 0 and not pd.isna(stamp):
        x = (stamp.tz_localize(None) + pd.to_timedelta(x * seconds, "s")).to_numpy()
        title += f", from {str(stamp)[:16]}"
        ax.xaxis.set_major_locator(locator := AutoDateLocator(minticks=3, maxticks=7))
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # the title has the year
    ax.plot(x[:-1], np.append(past, future), color="#222222", linewidth=0.9, label="truth", zorder=2.8)
    ax.axvline(x[-1], color="#888888", linewidth=0.8, linestyle="--", label="now")
    ahead = {m: (x[len(past) : -1], sample[key][:SHOWN]) for m in colours if (key := f"forecast_{m}_SH") in sample}
    lines(ax, colours, ahead)
    ax.set(title=title, xmargin=0.01)


def steps(run: Path, colours: dict[str, str]) -> Any | None:
    """Error at each step of the longest horizon, on test, or on validation where test is not scored."""
    if not (run / "steps.csv").exists():
        return None
    rows = pd.read_csv(run / "steps.csv").query("split == split.iloc[-1]").query("horizon == horizon.max()")
    figure, axes = panels(1, 2, 2.9)
    for ax, metric in zip(axes[0], ("mse", "mae"), strict=True):
        errors = rows.groupby(["step", "model"])[metric].mean().unstack()
        lines(ax, colours, {model: (errors.index, error) for model, error in errors.items()})
        ax.set(title=f"{metric.upper()} by step of the horizon", xlim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return figure


def learning(run: Path, _: dict[str, str]) -> Any | None:
    """Losses of pre-training, and what tuning does to the validation error of each horizon."""
    from matplotlib import colormaps

    pretrain, tune = (records(run / "metrics.jsonl", stage) for stage in ("pretrain", "tune"))
    names = {"loss": "training", "validation_loss": "validation", "validation_forecast": "validation, forecasting"}

    def change(of: str) -> pd.DataFrame:
        """Errors of tuning by horizon, in % from step 0."""
        errors = tune.filter(like=f"{of}_mse.").rename(columns=lambda name: f"horizon {name.split('.')[1]}")
        return 100 * (errors / errors.loc[0] - 1) if 0 in errors.index else errors.iloc[:0]

    watched = change("train")
    stages = {"Pre-training: loss": pretrain.filter(names).rename(columns=names)}
    dashed = " (dashed: of training rows)" if watched.size else ""
    stages |= {f"Tuning: validation MSE, % from zero-shot{dashed}": change("validation")}
    stages = {title: known for title, some in stages.items() if (known := some.dropna(axis=1, how="all")).size}
    if not stages:
        return None
    figure, axes = panels(1, len(stages), 4.0)
    for ax, (title, curves) in zip(axes[0], stages.items(), strict=True):
        curves = curves.iloc[
            :, np.unique(np.linspace(0, curves.shape[1] - 1, 8).astype(int))
        ]  # of many horizons, eight
        hues = colormaps["viridis"](np.linspace(0, 0.8, curves.shape[1]))
        for (name, curve), hue in zip(curves.items(), hues, strict=True):
            best = curve.idxmin()
            ax.plot(curve.dropna(), color=hue, label=f"{name}: {curve[best]:.3g} at {best:,}")
            ax.plot(best, curve[best], "o", color=hue, markersize=4.5)
            if name in watched:
                ax.plot(watched[name].dropna(), color=hue, linestyle="--", linewidth=0.9)
        ax.set(title=title, xlabel="step")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.18))  # below: curves leave no corner free
    return figure


FIGURES = {
    "Forecasts": (forecasts, f"Windows in the data's own units, {SHOWN} steps at most; gaps are missing values."),
    "Error by step": (steps, "Error at each step of the longest horizon, in scaled space."),
    "Learning curves": (learning, "Dots: where a curve is lowest. Step 0 of tuning is the zero-shot forecast."),
}
