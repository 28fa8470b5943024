"""Figures of tokens.py: queries on two axes, attention of future patches over history, prompts against errors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from tokens import SIDES, by_lag, components

from ptt_jax.pictures import STYLE

if TYPE_CHECKING:
    from tokens import Seen

SMALL = {"font.size": 7.5, "axes.titlesize": 8}
POINTS = 3000
BLUE, RED, GREY = "#0072B2", "#D55E00", "#999999"


def draw(seen: "Seen", folder: Path) -> None:
    """Writes DATA-sSEED-encodings.png, -norms.png, and -attention.png and -lags.png of each block."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"encodings": encodings(seen), "norms": norms(seen)}
    blocks = len(seen.weights[0])
    for block in range(blocks):
        number = f"-{block + 1}" if blocks > 1 else ""
        figures |= {f"attention{number}": attention(seen, block), f"lags{number}": lags(seen, block)}
    for name, figure in figures.items():
        figure.savefig(folder / f"{seen.data}-s{seen.seed}-{name}.png", dpi=130)


def panels(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def encodings(seen: "Seen") -> Figure:
    """A row a stage; without and with prompts, coloured by future position and by the season's phase."""
    stages = [*zip(*seen.states, strict=True)]
    shape = seen.states[0][-1].shape[:2]
    shown = np.random.default_rng(0).permutation(shape[0] * shape[1])[:POINTS]
    with matplotlib.rc_context(STYLE | SMALL):
        figure, axes = panels(len(stages), 4, 0.7 + 2.0 * len(stages), sharex="row", sharey="row")
        for stage, (line, states) in enumerate(zip(axes, stages, strict=True)):
            wide = [np.broadcast_to(s, (*shape, s.shape[-1])) for s in states]
            points, explained = components(wide)
            for i, ax in enumerate(line):
                words, hues = (("future patch", "viridis"), (seen.phase, "hsv"))[i // 2]
                colours, side = seen.label[words], i % 2
                alone = len(states[side]) == 1 and words != "future patch"  # a query is alike for all rows: of no hour
                look = {"color": GREY} if alone else {"c": colours.ravel()[shown], "cmap": hues}
                picked = ax.scatter(*points[side][shown].T, s=3 if stage else 14, linewidths=0, **look)
                if stage == len(stages) - 1 and side:
                    figure.colorbar(
                        picked, ax=axes[:, i - 1 : i + 1], location="bottom", label=words, shrink=0.6, aspect=40
                    )
                if stage == 0:
                    ax.set_title(f"{SIDES[side]} prompts")
                ax.set_xticklabels([])
                ax.set_yticklabels([])
            when = f"after block {stage}" if stage else "before the decoder"
            line[0].set_ylabel(f"{when}\n{explained[0]:.0%} + {explained[1]:.0%} of the variance")
        return figure


def attention(seen: "Seen", block: int) -> Figure:
    """Means over rows: a column a head, without prompts, with them, and their difference."""
    sides = [weights[block].mean(0) for weights in seen.weights]
    rows = [*sides, sides[1] - sides[0]]
    heads, queries, keys = sides[0].shape
    most, moved = max(s.max() for s in sides), max(np.abs(rows[2]).max(), 1e-9)
    with matplotlib.rc_context(STYLE | SMALL | {"axes.grid": False}):
        figure, axes = panels(3, heads, 6.4, sharex=True, sharey=True)
        for i, (line, weight_KMN) in enumerate(zip(axes, rows, strict=True)):
            look = {"cmap": "RdBu_r", "norm": TwoSlopeNorm(0, -moved, moved)} if i == 2 else {"vmin": 0, "vmax": most}
            for k, ax in enumerate(line):
                extent = (-keys - 0.5, -0.5, queries + 0.5, 0.5)
                image = ax.imshow(weight_KMN[k], aspect="auto", interpolation="nearest", extent=extent, **look)
                if i == 0:
                    ax.set_title(f"head {k + 1}")
                if i == 2:
                    ax.set_xlabel("history patch, from now")
            what = ("mask token alone", "with prompts", "difference")[i]
            line[0].set_ylabel(f"{what}\nfuture patch")
            figure.colorbar(image, ax=line, label="attention" if i < 2 else "change of attention", aspect=15)
        return figure


def lags(seen: "Seen", block: int) -> Figure:
    """Attention by distance, a panel a head, beside the periods of rotary positions."""
    sides = [by_lag(weights[block]) for weights in seen.weights]
    heads, longest = sides[0].shape
    with matplotlib.rc_context(STYLE | SMALL):
        figure, axes = panels(1, heads, 2.5, sharex=True, sharey=True)
        for k, ax in enumerate(axes[0]):
            for of_KS, colour, label in zip(sides, (BLUE, RED), ("mask token alone", "with prompts"), strict=True):
                ax.plot(np.arange(1, longest + 1), of_KS[k], color=colour, linewidth=1.0, label=label)
            for i, period in enumerate(p for p in seen.periods if p < longest):
                name = None if i else "periods of rotary positions"
                ax.axvline(period, color=GREY, linewidth=0.8, linestyle=":", label=name, zorder=1)
            ax.set(title=f"head {k + 1}", xlabel="patches before the query", yscale="log")
        axes[0, 0].set_ylabel("attention, 1 = to all alike")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return figure


def norms(seen: "Seen") -> Figure:
    """Norms of prompt tokens and what they change of the error, by future patch, and one against the other."""
    at_M = np.arange(1, len(seen.norm_M) + 1)
    gain_M = 100 * (seen.mse_M[1] / seen.mse_M[0] - 1)
    with matplotlib.rc_context(STYLE | SMALL):
        figure, axes = panels(1, 3, 2.6)
        left, middle, right = axes[0]
        left.plot(at_M, seen.norm_M, "o-", color=RED, markersize=3, label="prompt token")
        left.axhline(seen.mask_norm, color=GREY, linewidth=0.9, label="mask token")
        left.set(title="Norm of what is added", xlabel="future patch", ylim=(0, None))
        left.legend()
        for mse_M, colour, label in zip(seen.mse_M, (BLUE, RED), ("mask token alone", "with prompts"), strict=True):
            middle.plot(at_M, mse_M, color=colour, label=label)
        middle.set(title="Validation MSE", xlabel="future patch")
        middle.legend()
        picked = right.scatter(seen.norm_M, gain_M, c=at_M, cmap="viridis", s=14)
        right.axhline(0, color=GREY, linewidth=0.9)
        right.set(title="Change of MSE by prompts, %", xlabel="norm of the prompt token")
        figure.colorbar(picked, ax=right, label="future patch")
        return figure
