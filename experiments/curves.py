"""Figures of overfit.py: curves while models learn, and what is left of them against parameters and data."""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from ptt_jax.pictures import STYLE

SHADES = ("#0072B2", "#E69F00", "#009E73", "#999999")  # by width, the largest first
COLOURS = {"linear": "#009E73", "scratch": "#CC79A7", "head": "#E69F00", "full": "#0072B2", "prompt": "#D55E00"}
SMALL = {"font.size": 7.5, "axes.titlesize": 8}


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def learning(rows: pd.DataFrame, models: dict[str, str], path: Path) -> None:
    """Draws a column a model and a row a share: validation solid, training dashed, a colour a width. First seed."""
    rows = rows[rows["seed"] == rows["seed"].min()]
    shares = sorted(rows["share"].unique())
    names = [name for name in models if name in set(rows["model"])]
    low = rows["train_mse"].min()
    high = max(rows.loc[rows["step"] > 0, "validation_mse"].max(), rows["validation_mse"].iloc[0])
    with matplotlib.rc_context(STYLE | SMALL):
        figure = Figure(figsize=(8.4, 0.9 + 1.9 * len(shares)), layout="constrained")
        axes = figure.subplots(len(shares), len(names), squeeze=False, sharex=True, sharey=True)
        for i, (line, share) in enumerate(zip(axes, shares, strict=True)):
            for ax, name in zip(line, names, strict=True):
                of = rows[(rows["model"] == name) & (rows["share"] == share)]
                widths = sorted({*rows.loc[rows["model"] == name, "width"]}, key=lambda w: -(w or 10**9))
                for width, colour in zip(widths, SHADES, strict=False):
                    curve(ax, of[of["width"] == width], colour)
                if name == "linear":
                    for key, style in (("validation_mse", "-"), ("train_mse", "--")):
                        for value in rows.loc[(rows["model"] == "ridge") & (rows["share"] == share), key]:
                            ax.axhline(value, color="#222222", linewidth=0.8, linestyle=style)
                ax.set_ylim(0.9 * low, 1.05 * high)
                if i == 0:
                    ax.set_title(models[name].replace(", ", ",\n"))
                if i == len(shares) - 1:
                    ax.set_xlabel("step")
                    keys = [
                        ax.plot([], color=c, label=f"{label(name, w)}")[0] for w, c in zip(widths, SHADES, strict=False)
                    ]
                    if name == "linear":
                        keys += ax.plot([], color="#222222", linewidth=0.8, label="ridge, closed form")
                    ax.legend(handles=keys, loc="upper left", bbox_to_anchor=(-0.05, -0.28))
            line[0].set_ylabel(f"MSE, {share:.0%} of the windows")
        figure.suptitle(
            "Validation (solid) and training (dashed) error while a model learns", fontsize=9, x=0.01, ha="left"
        )
        save(figure, path)


def label(model: str, width: int) -> str:
    if model != "linear":
        return f"width {width}"
    return f"rank {width}" if width else "full rank"


def curve(ax: Any, looks: pd.DataFrame, colour: str) -> None:
    looks = looks.sort_values("step")
    ax.plot(looks["step"], looks["validation_mse"], color=colour, linewidth=1.2)
    ax.plot(looks["step"], looks["train_mse"], color=colour, linewidth=1.0, linestyle="--")
    if len(looks):
        best = looks.loc[looks["validation_mse"].idxmin()]
        ax.plot(best["step"], best["validation_mse"], "o", color=colour, markersize=3.5)


def plane(rows: pd.DataFrame, models: dict[str, str], path: Path) -> None:
    """Draws validation against training error, a line a model on its way to the last look: at equal training error, who
    validates better? Largest width, first seed, a panel a share."""
    rows = rows[rows["seed"] == rows["seed"].min()]
    rank = rows["width"].replace(0, 10**9)
    rows = rows[rank == rank.groupby(rows["model"]).transform("max")].sort_values("step")
    shares = sorted(rows["share"].unique())
    with matplotlib.rc_context(STYLE | SMALL):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        axes = figure.subplots(1, len(shares), squeeze=False)
        for ax, share in zip(axes[0], shares, strict=True):
            of = rows[rows["share"] == share]
            for name in models:
                looks = of[of["model"] == name]
                if len(looks):
                    way = looks["train_mse"], looks["validation_mse"]
                    ax.plot(*way, "o-", color=COLOURS[name], markersize=2.5, linewidth=1.0, label=models[name])
                    ax.plot(*(x.iloc[-1:] for x in way), "s", color=COLOURS[name], markersize=5.5)
            ridge = of[of["model"] == "ridge"]
            ax.plot(ridge["train_mse"], ridge["validation_mse"], "k*", markersize=8, label="ridge, closed form")
            ax.set(title=f"{share:.0%} of the windows (square: the end)", xlabel="training MSE")
        axes[0, 0].set_ylabel("validation MSE")
        full = max(axes[0], key=lambda ax: len(ax.get_legend_handles_labels()[0]))
        figure.legend(*full.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        save(figure, path)


def summary(table: pd.DataFrame, models: dict[str, str], path: Path) -> None:
    """Draws the best validation error, the gap there and what a model lost after it: by parameters, and by data."""
    table = table[table["model"] != "ridge"]
    rank = table["width"].replace(0, 10**9)
    largest = rank == rank.groupby(table["model"]).transform("max")
    sides = (("parameters", table[table["share"] == 1], "trained parameters (all training windows)"),
             ("share", table[largest], "share of the training windows (largest width, full rank)"))  # fmt: skip
    measures = {"best": "best validation MSE", "gap": "gap to training there", "rise": "validation's rise\nafter it, %"}
    with matplotlib.rc_context(STYLE | SMALL):
        figure = Figure(figsize=(8.4, 6.0), layout="constrained")
        axes = figure.subplots(len(measures), 2, squeeze=False, sharey="row", sharex="col")
        for line, (measure, words) in zip(axes, measures.items(), strict=True):
            for ax, (by, of, _) in zip(line, sides, strict=True):
                for name in models:
                    points = of[of["model"] == name].sort_values(by)
                    ax.plot(points[by], points[measure], "o-", color=COLOURS[name], markersize=4, linewidth=1.2,
                            label=models[name])  # fmt: skip
                ax.set_xscale("log")
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            line[0].set_ylabel(words)
        for ax, (by, of, words) in zip(axes[-1], sides, strict=True):
            ax.set_xlabel(words)
            if by == "share":
                shares = sorted(of["share"].unique())
                ax.set_xticks(shares, [f"{s:.0%}" for s in shares])
                ax.minorticks_off()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        save(figure, path)
