"""Figures as SVG, plain strings for a page: lines with bands, dots, a heat map. numpy only.

A chart has a fixed view box and no colour of its own: what it draws has classes (a model's look, 'truth', 'band'), and
the page's style says how they look, by day and by night. What a chart is called and what stands on its axes may be
somebody's data, and is escaped. `data-plot` has the numbers for the page's script; without one nothing is missing but
values under the pointer.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from ptt_jax.scales import Ticks, number, ticks

WIDTH, HEIGHT = 400.0, 230.0
CELLS = 6400  # most of a heat map: of more, neighbours are averaged
SHADES = 16


class Line(NamedTuple):
    """A curve: x and y of any one length, NaN where it has a gap; look: a class of the page's style."""

    name: str
    look: str
    x: np.ndarray
    y: np.ndarray


class Band(NamedTuple):
    """What lies between two curves."""

    name: str
    look: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lines(
    title: str, words: str, curves: Sequence[Line], bands: Sequence[Band] = (), *, xticks: Ticks | None = None,
    mark: float | None = None, levels: Sequence[float] = (), zero: bool = False, dots: bool = False,
    axis: dict[str, Any] | None = None, wide: bool = False, unit: str = "",
) -> str:  # fmt: skip
    """Returns a chart of curves over bands. words: what it shows, for who cannot see it.

    xticks: None = round numbers; mark: where a line stands upright; levels: where lines lie; zero: whether y begins at
    0; dots: a dot at each curve's lowest point; axis: what the script says of x, {'word': 'step'} or, with 'first' and
    'seconds', a date; unit: under the x axis.
    """
    known = [c for c in curves if np.isfinite(c.y).any()]
    width, height = (2 * WIDTH if wide else WIDTH), HEIGHT
    x = np.concatenate([c.x for c in known] + [[0.0]] * (not known))
    y = np.concatenate(
        [c.y for c in known] + [b for band in bands for b in (band.low, band.high)] + [[*levels, *[0] * zero]]
    )
    y = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
    (left_x, right_x), (low, high) = ((float(a.min()), float(a.max())) for a in (x, y))
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (0.0 if zero and low >= 0 else low - pad), high + pad
    at_y = ticks(low, high)
    left, right, top, bottom = (
        10 + 6.4 * max(len(t) for _, t in at_y or [(0, "")]),
        width - 8,
        24.0,
        height - 22 - 12 * bool(unit),
    )

    def across(value: Any) -> Any:
        return left + (value - left_x) * (right - left) / ((right_x - left_x) or 1)

    def up(value: Any) -> Any:
        return bottom - (value - low) * (bottom - top) / (high - low)

    parts = [text(left, 12, title, "title")]
    for value, word in at_y:
        parts += [rule(left, up(value), right, up(value), "grid"), text(left - 5, up(value) + 4, word, "end")]
    for value, word in ticks(left_x, right_x, 5) if xticks is None else xticks:
        near = "end" if across(value) > right - 12 else ""
        parts += [
            rule(across(value), bottom, across(value), bottom + 4, "tick"),
            text(across(value), bottom + 15, word, near or "middle"),
        ]
    if unit:
        parts.append(text((left + right) / 2, height - 3, unit, "middle"))
    parts += [rule(left, up(value), right, up(value), "level") for value in levels]
    parts += [f'<path class="band {b.look}" d="{closed(across(b.x), up(b.low), up(b.high))}"/>' for b in bands]
    if mark is not None:
        parts.append(rule(across(mark), top, across(mark), bottom, "now"))
    parts += [f'<path class="line {c.look}" d="{path(across(c.x), up(c.y))}"/>' for c in known]
    for c in known:
        lone = np.isfinite(c.y).sum() == 1
        if dots or lone:
            best = int(np.nanargmin(c.y))
            parts.append(
                f'<circle class="dot {c.look}" cx="{short(across(c.x[best]))}" cy="{short(up(c.y[best]))}" r="3.5"/>'
            )
    parts.append(f'<line class="cursor" y1="{short(top)}" y2="{short(bottom)}"/>')
    plot = {"l": left, "r": right, "from": left_x, "to": right_x, **(axis or {})}
    plot["lines"] = [{"n": c.name, "k": c.look, "x": places(c.x), "y": rounded(c.y)} for c in known]
    plot["bands"] = [{"n": b.name, "x": places(b.x), "y": rounded(b.low), "z": rounded(b.high)} for b in bands]
    return svg(width, height, f"{title}. {words}", parts, plot)


def rows(title: str, words: str, labels: Sequence[str], values: dict[str, tuple[str, np.ndarray]]) -> str:
    """Returns a chart of dots: a row for each label, in it a dot for each of values, {name: (look, by row)}."""
    known = np.concatenate([of[np.isfinite(of)] for _, of in values.values()] or [np.zeros(0)])
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
    names = [label if len(label) <= 22 else label[:21] + "…" for label in labels]
    left, right, top, step = 12 + 6.4 * max(map(len, names), default=0), WIDTH - 14, 26.0, 18.0
    bottom = top + step * len(names)

    def across(value: float) -> float:
        return left + (value - low) * (right - left) / (high - low)

    parts = [text(0, 12, title, "title")]
    for value, word in ticks(low, high, 4):
        parts += [
            rule(across(value), top, across(value), bottom, "grid"),
            text(across(value), bottom + 14, word, "middle"),
        ]
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        y = top + step * (i + 0.5)
        parts += [text(left - 6, y + 4, name, "end", label if name != label else ""), rule(left, y, right, y, "grid")]
        for j, (model, (look, of)) in enumerate(values.items()):
            if np.isfinite(of[i]):
                said = escape(f"{label}: {model} {number(float(of[i]))}")
                at = f'cx="{short(across(of[i]))}" cy="{short(y + (j - (len(values) - 1) / 2) * 2.5)}" r="3.6"'
                parts.append(f'<circle class="dot {look}" {at}><title>{said}</title></circle>')
    return svg(WIDTH, bottom + 22, f"{title}. {words}", parts)


def bars(title: str, words: str, values: np.ndarray, look: str, unit: str) -> str:
    """Returns a histogram, of as many bins as its eye can tell."""
    values = values[np.isfinite(values)]
    count, edge = np.histogram(values, bins=min(24, max(6, len(values) // 8)), range=(0, float(values.max()) or 1.0))
    left, right, top, bottom = 40.0, WIDTH - 10, 26.0, HEIGHT - 34
    x, height = left + edge / edge[-1] * (right - left), (bottom - top) / max(count.max(), 1)
    parts = [text(0, 12, title, "title")]
    for value, word in ticks(0, int(count.max()), 3):
        y = bottom - value * height
        parts += [rule(left, y, right, y, "grid"), text(left - 5, y + 4, word, "end")]
    for n, a, b, low, high in zip(count, x, x[1:], edge, edge[1:], strict=False):
        said = escape(f"{n} from {number(low)} to {number(high)}")
        place = f'x="{short(a + 0.5)}" y="{short(bottom - n * height)}"'
        size = f'width="{short(b - a - 1)}" height="{short(n * height)}"'
        parts.append(f'<rect class="bar {look}" {place} {size}><title>{said}</title></rect>')
    for value, word in ticks(0, edge[-1], 4):
        parts.append(text(left + value / edge[-1] * (right - left), bottom + 15, word, "middle"))
    parts.append(text((left + right) / 2, HEIGHT - 3, unit, "middle"))
    return svg(WIDTH, HEIGHT, f"{title}. {words}", parts)


def heat(title: str, words: str, value_MN: np.ndarray, xticks: Ticks, yticks: Ticks, units: tuple[str, str]) -> str:
    """Returns a heat map: M rows from top to bottom, N columns; the darker, the more. Ticks count cells from 0."""
    coarse = max(1, math.ceil(math.sqrt(value_MN.size / CELLS)))
    shown_MN = mean_of(value_MN, coarse)
    queries, keys = shown_MN.shape
    left, right, top = 46.0, WIDTH - 8, 26.0
    cell = (right - left) / keys
    tall = min(max(cell, 120 / queries), 330 / queries)
    bottom = top + tall * queries
    most = float(shown_MN.max()) or 1.0
    shade_MN = np.ceil(shown_MN / most * SHADES).astype(int)
    parts = [text(0, 12, title, "title")]
    parts.append(f'<g transform="translate({short(left)} {short(top)}) scale({cell:.4f} {tall:.4f})">')
    parts.append(f'<rect class="ground" width="{keys}" height="{queries}"/>')
    for shade in range(1, SHADES + 1):
        d = "".join(f"M{n} {m}h1v1h-1z" for m, n in zip(*np.nonzero(shade_MN == shade), strict=True))
        parts.append(f'<path class="heat" fill-opacity="{shade / SHADES:.3f}" d="{d}"/>' if d else "")
    parts.append("</g>")
    for value, word in xticks:
        parts.append(text(left + (value / coarse + 0.5 / coarse) * cell, bottom + 14, word, "middle"))
    for value, word in yticks:
        parts.append(text(left - 5, top + (value / coarse + 0.5 / coarse) * tall + 4, word, "end"))
    parts.append(text((left + right) / 2, bottom + 29, units[0], "middle"))
    turn = f'transform="rotate(-90 11 {short((top + bottom) / 2)})"'
    parts.append(text(11, (top + bottom) / 2, units[1], "middle", more=turn))
    return svg(WIDTH, bottom + 34, f"{title}. {words}", parts)


def mean_of(value_MN: np.ndarray, block: int) -> np.ndarray:
    """Returns the means of blocks of so many rows and columns; those at the far edges may be smaller."""
    if block == 1:
        return value_MN
    cut = [np.arange(0, size, block) for size in value_MN.shape]
    sums = np.add.reduceat(np.add.reduceat(value_MN, cut[0], 0), cut[1], 1)
    sizes = [np.diff([*at, size]) for at, size in zip(cut, value_MN.shape, strict=True)]
    return sums / (sizes[0][:, None] * sizes[1][None])


def swatch(look: str) -> str:
    """Returns the picture of a look for a legend."""
    kind = f'<rect class="band {look}" x="0" y="1" width="26" height="10"/>' if look.startswith("level") else ""
    dot = "" if look == "truth" else f'<circle class="dot {look}" cx="13" cy="6" r="3"/>'
    drawn = kind or f'<path class="line {look}" d="M0 6H26"/>{dot}'
    return f'<svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true">{drawn}</svg>'


def path(x: np.ndarray, y: np.ndarray) -> str:
    """Returns the d of a curve, with gaps where y is NaN."""
    out, drawn = [], False
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            out.append(f"{'L' if drawn else 'M'}{short(a)} {short(b)}")
        drawn = math.isfinite(b)
    return "".join(out)


def closed(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    known = np.isfinite(low) & np.isfinite(high)
    there, back = path(x[known], high[known]), path(x[known][::-1], low[known][::-1])
    return f"{there}L{back[1:]}Z" if there else ""


def short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def places(x: np.ndarray) -> dict[str, Any]:
    """Returns x for the script: evenly spread places by their first one and their step."""
    step = np.diff(x)
    if len(step) and np.allclose(step, step[0]):
        return {"first": float(x[0]), "step": float(step[0])}
    return {"at": [float(v) for v in x]}


def rounded(y: np.ndarray) -> list[float | None]:
    return [float(f"{v:.4g}") if math.isfinite(v) else None for v in y.tolist()]


def text(x: float, y: float, words: str, kind: str, whole: str = "", more: str = "") -> str:
    """Returns words at a place; whole: what they are short for."""
    hint = f"<title>{escape(whole)}</title>" if whole else ""
    return f'<text class="{kind}" x="{short(x)}" y="{short(y)}" {more}>{hint}{escape(words)}</text>'.replace(
        " >", ">", 1
    )


def rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{short(x1)} {short(y1)}L{short(x2)} {short(y2)}"/>'


def svg(width: float, height: float, words: str, parts: Sequence[str], plot: dict[str, Any] | None = None) -> str:
    data = f' data-plot="{escape(json.dumps(plot, separators=(",", ":")))}"' if plot else ""
    box = f'viewBox="0 0 {short(width)} {short(height)}" role="img" aria-label="{escape(words)}"'
    return f'<svg class="chart" {box}{data}>{"".join(parts)}</svg>'
