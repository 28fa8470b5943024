"""Time stamps: from cells to stamps, from stamps to a grid with one step. numpy and pandas only."""

from pathlib import Path

import numpy as np
import pandas as pd

from ptt_jax.errors import UserError, brief

# pandas' own guessing swaps day and month row by row and changes between versions; this takes digits, in one order
STAMP = (
    r"^(?P<a>\d{1,4})(?P<sep>[-/.])(?P<b>\d{1,2})(?:[-/.](?P<c>\d{1,4}))?"
    r"(?:(?:T|\s+)(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d(?:\.\d+)?))?"
    r"\s*(?P<half>[AaPp][Mm])?\s*(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?)?$"
)
DATES = (4, 6, 8)  # digits of stamps that are whole numbers: yyyy, yyyymm, yyyymmdd ...
EPOCHS = {10: "s", 13: "ms", 16: "us", 19: "ns"}  # ... and time since 1970, in this unit
TEXT = pd.StringDtype("python")  # what .str gives then can be counted with, with and without pyarrow
SPARSE = 10  # a grid of more than this many rows for each row of the file is not the file's grid


def counted(n: int, noun: str) -> str:
    """1, 'row' -> '1 row'; 2, 'row' -> '2 rows'."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def read_stamps(column: pd.Series, path: Path | str) -> tuple[pd.DatetimeIndex, list[str]]:
    """Stamps without time zone, in nanoseconds, and notes; the column's index is the row in the file.

    Where every stamp has the same offset, the clock is kept as written and the offset dropped. Where offsets differ
    (summer time), all become UTC. Stamps with and without an offset in one column are an error.
    """
    where, notes = f"{path}, column {column.name!r}", []
    if pd.api.types.is_numeric_dtype(column):
        stamps = number_stamps(column)
    else:
        part = column.astype(TEXT).str.strip().str.extract(STAMP)
        stamps, order = text_stamps(part, where)
        if order:
            row = column.index[stamps.notna()][0] if stamps.notna().any() else column.index[0]
            notes.append(f"stamps like {str(column[row]).strip()} (row {row}) are read as {order}")
        zone = part["zone"].fillna("")[stamps.notna()]
        zones = sorted(zone.unique())
        if len(zones) > 1 and "" in zones:
            bare, zoned = zone.index[zone == ""][0], zone.index[zone != ""][0]
            raise UserError(
                f"{where}: row {bare} has no time zone and row {zoned} has {zone[zoned]!r}; give all stamps one or none"
            )
        if len(zones) > 1:
            stamps = stamps - pd.to_timedelta(zone.map({z: offset_minutes(z) for z in zones}), unit="min")
            notes.append(f"stamps have {len(zones)} offsets ({', '.join(zones)}) and were converted to UTC")
        elif zones and zones[0]:
            notes.append(f"stamps are kept as the clock with offset {zones[0]} showed them, without the offset")
    if stamps.isna().any():
        row = stamps.index[stamps.isna()][0]
        cell = "the cell is empty" if pd.isna(column[row]) else f"{brief(str(column[row]))} is no time stamp"
        raise UserError(
            f"{where}, row {row}: {cell}; accepted are stamps like 2016-07-01, 2016-07-01 13:00:00, "
            "2016-07-01T13:00Z, 31.12.2016 13:00, 20160701, or seconds since 1970, all in one form"
        )
    return pd.DatetimeIndex(stamps.to_numpy("datetime64[ns]")), notes


def text_stamps(part: pd.DataFrame, where: str) -> tuple[pd.Series, str]:
    """Date and time from the groups of STAMP, the offset not applied, NaT where they don't fit; and the order of day
    and month before the year, in words, where somebody may read it otherwise."""
    if part["a"].isna().all():
        return pd.Series(pd.NaT, part.index), ""
    order = ""
    number = {name: pd.to_numeric(part[name].fillna("0")).astype("float64") for name in ("hour", "minute", "second")}
    a, b, c = (pd.to_numeric(part[name]).astype("float64") for name in "abc")
    if part["a"].str.len().max() == 4:
        year, month, day = a, b, c.fillna(1)
    else:
        day_first = (a > 12).any() or (part["sep"] == ".").any()  # nobody writes 12.31.2016
        if not day_first and not (b > 12).any() and (a != b).any():
            raise UserError(
                f"{where}: no row shows which of the two numbers before the year is the month; "
                "write stamps as 2016-07-01 13:00"
            )
        year, month, day = (c, b, a) if day_first else (c, a, b)
        sep = part["sep"].dropna().iloc[0]
        order = "" if sep == "." or (a == b).all() else sep.join(("day", "month") if day_first else ("month", "day"))
    half = part["half"].str.lower().fillna("")
    # pandas takes any hour, and counts on: 24:00 is the end of a day, and nothing else is meant by one above 23
    end = (number["hour"] == 24) & (number["minute"] == 0) & (number["second"] == 0)
    late = ((number["hour"] > 23) & ~end) | (number["minute"] > 59) | (number["second"] >= 60)
    late |= (half != "") & ~number["hour"].between(1, 12)
    hour = number["hour"].mask((half != "") & (number["hour"] == 12), 0) + 12 * (half == "pm")
    dates = pd.DataFrame({"year": year, "month": month, "day": day, "hour": hour, "minute": number["minute"]})
    dates = dates.where(year.between(1700, 2200) & ~late)  # what nanoseconds can hold
    stamps = pd.to_datetime(dates, errors="coerce").astype("datetime64[ns]")
    return stamps + pd.to_timedelta(number["second"], unit="s").dt.round("us"), order


def number_stamps(column: pd.Series) -> pd.Series:
    """Dates, or time since 1970, by the number of digits of most; NaT for anything else."""
    whole = column[np.isfinite(column) & (column == np.floor(column))].astype("int64")
    text = whole.astype(str)
    digits = int(text.str.len().mode()[0]) if len(text) else 0
    whole, text = whole[text.str.len() == digits], text[text.str.len() == digits]
    if digits in DATES:
        stamps = pd.to_datetime(text + "0101"[: 8 - digits], format="%Y%m%d", errors="coerce")
    elif digits in EPOCHS:
        stamps = pd.to_datetime(whole, unit=EPOCHS[digits], errors="coerce")
    else:
        stamps = pd.Series(dtype="datetime64[ns]")
    return stamps.astype("datetime64[ns]").reindex(column.index)


def offset_minutes(zone: str) -> int:
    """'+05:30' -> 330; 'Z' and 'UTC' -> 0."""
    digits = zone.lstrip("+-ZUTC").replace(":", "").ljust(4, "0")
    return (-1 if zone[0] == "-" else 1) * (60 * int(digits[:2]) + int(digits[2:]))


def step_seconds(freq: str) -> float:
    """Mean length of a step, for comparing the steps of two data sets. ValueError when freq is no offset alias."""
    stamps = pd.date_range("2001-01-01", periods=61, freq=freq)  # 60 steps: whole weeks, quarters and years
    return float((stamps[-1] - stamps[0]) / pd.Timedelta(seconds=60))  # pandas 2's total_seconds ends at microseconds


def season(freq: str) -> int:
    """Steps in the main season: the hour for steps of seconds, then the day, the week, the year; 1 where none fits."""
    step = step_seconds(freq)
    hour, day, week, year = 3600, 86400, 7 * 86400, 365.25 * 86400
    period = hour if step < 60 else day if step < day else week if step < week else year
    return max(1, round(period / step))


def read_freq(freq: str, knob: str) -> pd.offsets.BaseOffset:
    """The offset that an alias stands for. UserError when `knob`, whose value it is, holds none."""
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
        if offset.n < 1:
            raise UserError(f"{knob} = {freq!r} does not lead forward; give a step like h or D")
        step_seconds(freq)
    except pd.errors.OutOfBoundsDatetime:  # pandas 2 counts in nanoseconds, later ones as coarsely as a step needs
        raise UserError(
            f"{knob} = {freq!r} leads out of the years that pandas can say, 1678 to 2261; give a shorter step"
        ) from None
    except (ValueError, OverflowError) as e:
        raise UserError(
            f"{knob} = {brief(freq)} is no step; give a pandas offset alias like h, 15min, D, W-MON or MS"
        ) from e
    return offset


def seconds(first: pd.Timestamp, last: pd.Timestamp) -> float:
    """The time between, which in nanoseconds could be too long."""
    return (last.as_unit("us") - first.as_unit("us")).total_seconds()


def infer_freq(stamps_T: pd.DatetimeIndex, step: pd.Timedelta | None = None) -> str:
    """The step as an offset alias; from a day upwards, the calendar step that fits all of the sorted stamps.

    `step` None is the commonest difference of the stamps.
    """
    # Of two stamps more than 292 years apart, int64 does not hold the difference, and uint64 does.
    gap_M = np.diff(stamps_T.as_unit("ns").asi8).view(np.uint64)
    step = pd.Timedelta(int(pd.Series(gap_M).mode()[0]), unit="ns") if step is None else step
    days, first = step / pd.Timedelta(days=1), stamps_T[0]
    month = first.month_name()[:3].upper()
    calendar = (
        (1, 1, ("B",) if seconds(first, stamps_T[-1]) > 7 * 86400 else ()),  # a few weekdays show no free weekend
        (7, 7, (f"W-{first.day_name()[:3].upper()}",)),
        (28, 31, ("MS", "ME", "BMS", "BME")),
        (90, 92, (f"QS-{month}", f"QE-{month}")),
        (365, 366, (f"YS-{month}", f"YE-{month}")),
    )
    for low, high, aliases in calendar:
        for alias in aliases if low <= days <= high else ():
            if all(map(pd.tseries.frequencies.to_offset(alias).is_on_offset, stamps_T)):
                return alias
    if days == int(days):
        return "D" if days == 1 else f"{int(days)}D"
    return pd.tseries.frequencies.to_offset(step).freqstr


def dates_between(first: pd.Timestamp, last: pd.Timestamp, offset: pd.offsets.BaseOffset) -> pd.DatetimeIndex:
    """Every stamp of a step from `first` to `last`. UserError for steps of so many years that the next one is none."""
    try:
        return pd.date_range(first, last, freq=offset).as_unit("ns")
    except pd.errors.OutOfBoundsDatetime:
        raise UserError(
            f"freq = {offset.freqstr!r}: a step from {first} leads out of the years that pandas can say, 1678 to 2261; "
            f"accepted: a shorter step"
        ) from None


def to_grid(
    stamps_T: pd.DatetimeIndex, values_TC: np.ndarray, freq: str, rows_T: pd.Index, path: Path
) -> tuple[pd.DatetimeIndex, np.ndarray, str, list[str]]:
    """One row for each step from the first stamp to the last: sorted, the last of equal stamps kept, gaps NaN.

    `freq` '' is inferred; `rows_T` are the rows in the file. Nothing is resampled: a stamp off the grid is an error.
    """
    notes = []
    if not stamps_T.is_monotonic_increasing:
        back = int(np.argmax(stamps_T[1:] < stamps_T[:-1])) + 1
        notes.append(f"rows were out of order (first at row {rows_T[back]}, {stamps_T[back]}) and were sorted")
        order = np.argsort(stamps_T.asi8, kind="stable")
        stamps_T, values_TC, rows_T = stamps_T[order], values_TC[order], rows_T[order]
    again = stamps_T.duplicated(keep="last")
    if again.any():
        example = f"{stamps_T[again][0]} (row {rows_T[again][0]})"
        if again.sum() > len(stamps_T) / 10:
            raise UserError(
                f"{path}: {again.sum()} of {len(again)} rows have the stamp of a later row, like {example}; "
                "give one row for each stamp and one column for each series (a long table must be pivoted first)"
            )
        notes.append(f"{counted(again.sum(), 'row')} with the stamp of a later row dropped, first {example}")
        stamps_T, values_TC, rows_T = stamps_T[~again], values_TC[~again], rows_T[~again]
    if len(stamps_T) < 3:
        raise UserError(f"{path} has {counted(len(stamps_T), 'stamp')}; it needs 3 or more, to see the step")
    advice = "bring the rows to one step first, or " + ("leave data.freq empty" if freq else "give it with data.freq")
    freq = freq or infer_freq(stamps_T)
    offset, step = read_freq(freq, "config.data.freq"), step_seconds(freq)
    span = f"from {stamps_T[0]} to {stamps_T[-1]}"
    length = seconds(stamps_T[0], stamps_T[-1]) / step
    if not 0 < length < SPARSE * len(stamps_T):
        raise UserError(
            f"{path}: {span} a step of {freq!r} makes {length:.0f} rows where the file has {len(stamps_T)}; {advice}"
        )
    grid_T = dates_between(stamps_T[0], stamps_T[-1], offset)
    place_T = grid_T.get_indexer(stamps_T)
    off = np.flatnonzero(place_T < 0)
    if len(off):
        raise UserError(
            f"{path}, row {rows_T[off[0]]}: {stamps_T[off[0]]} is not on the grid of step {freq!r} "
            f"({counted(len(off), 'stamp')} in all) that starts at {stamps_T[0]} (row {rows_T[0]}); {advice}"
        )
    gap = np.diff(place_T) - 1
    if gap.any():
        longest = int(gap.argmax())
        notes.append(
            f"{counted(gap.sum(), 'row')} put in as missing to close {counted((gap > 0).sum(), 'gap')} in the stamps; "
            f"the longest, {counted(gap[longest], 'row')}, after {stamps_T[longest]} (row {rows_T[longest]})"
        )
    full_TC = np.full((len(grid_T), values_TC.shape[1]), np.nan)
    full_TC[place_T] = values_TC
    return grid_T, full_TC, freq, notes
