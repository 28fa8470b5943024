"""Round numbers and round times along an axis, and numbers as they are written. pandas only."""

import math

import pandas as pd

NOTHING = "\u2013"  # in a number's place
Ticks = list[tuple[float, str]]  # where, and what stands there
DAY, MONTH, YEAR = 86_400, 2_600_000, 31_000_000  # seconds; of the last two a little less
TIMES = (
    ("1s", 1), ("5s", 5), ("15s", 15), ("1min", 60), ("5min", 300), ("15min", 900), ("1h", 3600), ("3h", 10800),
    ("6h", 21600), ("12h", 43200), ("1D", DAY), ("2D", 2 * DAY), ("4D", 4 * DAY), ("7D", 7 * DAY), ("14D", 14 * DAY),
    ("MS", MONTH), ("QS", 3 * MONTH), ("YS", YEAR), ("5YS", 5 * YEAR), ("10YS", 10 * YEAR), ("50YS", 50 * YEAR),
)  # fmt: skip


def ticks(low: float, high: float, count: int = 5) -> Ticks:
    """Returns round numbers between two, about `count` of them, as they are written."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= count)
    found = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(value, number(value, step)) for value in found]


def number(value: float, step: float = 0.0) -> str:
    """Returns a number for the eye, with the digits that steps of `step` need; three of them without."""
    if not math.isfinite(value):
        return NOTHING
    if not step:
        digits = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
        return f"{value:,.{min(digits, 4)}f}" if 1e-3 <= abs(value) < 1e7 or not value else f"{value:.3g}"
    if max(abs(value), step) >= 1e6 or step < 1e-5:
        return f"{value:.4g}"
    return f"{value:,.{max(-math.floor(math.log10(step) + 1e-9), 0)}f}"


def dates(first: float, last: float, now: pd.Timestamp, seconds: float) -> Ticks:
    """Returns round times between two places on an axis of steps; place 0 is `now`, a step takes so many seconds.

    Round numbers where centuries pass, which pandas may have no words for.
    """
    if (last - first) * seconds > 4.5 * TIMES[-1][1]:
        return ticks(first, last)
    try:
        begin, end = (now + pd.to_timedelta(x * seconds, "s") for x in (first, last))
    except (OverflowError, pd.errors.OutOfBoundsDatetime, pd.errors.OutOfBoundsTimedelta):
        return ticks(first, last)
    freq, size = next(((f, s) for f, s in TIMES if (last - first) * seconds / s <= 4.5), TIMES[-1])
    years = max(round(size / YEAR), 1)
    floor = (
        pd.Timestamp(begin.year // years * years, 1, 1) if size >= MONTH else begin.floor("min" if size < 60 else "D")
    )
    forms = ((60, "%H:%M:%S"), (DAY, "%H:%M"), (MONTH, ""), (YEAR, "%b %Y"), (math.inf, "%Y"))
    form = next(form for limit, form in forms if size < limit)
    out = []
    for stamp in pd.date_range(floor, end, freq=freq):
        if stamp >= begin:
            a_day = not form or (60 <= size < DAY and stamp == stamp.normalize())
            word = f"{stamp.day} {stamp:%b}" if a_day else f"{stamp:{form}}"
            out.append(((stamp - now).total_seconds() / seconds, word))
    return out
