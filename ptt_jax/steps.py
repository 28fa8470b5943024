"""Time in whole numbers: every stamp has a count, a step is `size` of it, and counts become stamps again.

Hours and shorter steps count nanoseconds: they go on evenly while clocks are changed. Days count nanoseconds of the
local clock. Business days, weeks, months and years count the dates of their calendar as if each were a day. Periods
and whole numbers are their own count. numpy and pandas only.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.clock import SPARSE, counted, dates_between, infer_freq, read_freq
from ptt_jax.errors import UserError

DAY = 86_400_000_000_000  # nanoseconds
SHORT = 1000  # a series of up to so many rows may be as sparse as it likes


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """One step of time, shared by several series, each with a phase of its own."""

    freq: str  # pandas offset alias; '' for whole numbers
    size: int  # what a step adds to a count
    dtype: Any  # of the stamps: datetime with its unit and zone, period, or an integer
    wall: bool = False  # counts are of the local clock
    dates: pd.DatetimeIndex | None = None  # the calendar, if it is none of even days, over the stamps that were read

    def count(self, stamps_N: pd.Index) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stamps' counts, int64, and which of them the calendar does not have."""
        if not self.wall:
            return raw(stamps_N), np.zeros(len(stamps_N), bool)
        clock_N = local(stamps_N)
        if self.dates is None:
            return clock_N.asi8, np.zeros(len(clock_N), bool)
        date_N = clock_N.normalize()
        place_N = self.dates.get_indexer(date_N)
        return place_N * DAY + (clock_N.asi8 - date_N.asi8), place_N < 0

    def place(self, stamps_N: pd.Index) -> np.ndarray | None:
        """Returns counts of stamps that need not be on the calendar: more than those before, less than those after
        them. None where they are another kind of time: periods, numbers, with a zone or without."""
        kinds = [(type(i), str(getattr(i.dtype, "freq", "")), getattr(i, "tz", None) is None) for i in
                 (stamps_N, self.stamps(np.zeros(1, np.int64)))]  # fmt: skip
        if kinds[0] != kinds[1]:
            return None
        if getattr(stamps_N, "tz", None) is not None:
            stamps_N = stamps_N.tz_convert(self.dtype.tz)
        if self.dates is None:
            return self.count(stamps_N)[0]
        clock_N = local(stamps_N)
        date_N = clock_N.normalize()
        place_N = self.dates.searchsorted(date_N, side="right") - 1
        on_N = (place_N >= 0) & (self.dates[place_N] == date_N)
        return place_N * DAY + np.where(on_N, clock_N.asi8 - date_N.asi8, DAY - 1)

    def stamps(self, count_N: np.ndarray) -> pd.Index:
        """Returns the stamps of counts, of the dtype that was read; those of a calendar not before its first date."""
        if isinstance(self.dtype, pd.PeriodDtype):
            return pd.PeriodIndex.from_ordinals(count_N, freq=self.dtype.freq)
        if not self.freq:
            return pd.Index(count_N, dtype=self.dtype)
        if self.dates is not None:
            place_N, rest_N = np.divmod(count_N, DAY)
            periods = max(int(place_N.max(initial=0)) + 1, len(self.dates))
            dates = pd.date_range(self.dates[0], periods=periods, freq=self.dates.freq).as_unit("ns")
            count_N = dates.asi8[place_N] + rest_N
        found_N, zone = pd.DatetimeIndex(count_N.astype("datetime64[ns]")), getattr(self.dtype, "tz", None)
        if zone is not None and self.wall:
            # an hour that the clock skips begins when it ends; of one that comes twice, the first is meant
            found_N = found_N.tz_localize(zone, ambiguous=np.ones(len(found_N), bool), nonexistent="shift_forward")
        elif zone is not None:
            found_N = found_N.tz_localize("UTC").tz_convert(zone)
        return found_N.as_unit(np.datetime_data(self.dtype)[0] if zone is None else self.dtype.unit)


def raw(stamps_N: pd.Index) -> np.ndarray:
    """Returns int64 that sort as the stamps do: nanoseconds since 1970, ordinals of periods, or the whole numbers."""
    if isinstance(stamps_N, pd.DatetimeIndex):
        return stamps_N.as_unit("ns").asi8
    return stamps_N.asi8 if isinstance(stamps_N, pd.PeriodIndex) else stamps_N.to_numpy("int64")


def local(stamps_N: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Returns the stamps as their own clock shows them, without the zone."""
    return stamps_N.tz_localize(None).as_unit("ns")


def find_steps(stamps_N: pd.Index, follows_N: np.ndarray, freq: str) -> Steps:
    """Returns the step of stamps that are sorted within each series; `freq` '' takes their commonest difference.

    `follows_N` marks the stamps whose difference from the stamp before them tells something. Raises UserError where
    `freq` does not fit the kind of the stamps, or is '' and nothing tells the step.
    """
    if isinstance(stamps_N.dtype, pd.PeriodDtype):
        own = stamps_N.dtype.freq
        if freq and read_freq(freq, "freq") != own:
            raise UserError(f"freq = {freq!r}, but the periods step by {own.freqstr!r}; leave freq empty")
        return Steps(own.freqstr, own.n, stamps_N.dtype)
    number = not isinstance(stamps_N, pd.DatetimeIndex)
    if number and freq and not (freq.isdecimal() and int(freq)):
        raise UserError(
            f"freq = {freq!r}, but the time is whole numbers; give a whole number like '1' or leave it empty"
        )
    if not freq and not follows_N.any():
        raise UserError("no series has 3 stamps, which it takes to see the step; give it with freq, like 'h' or 'D'")
    gap_M = apart(raw(stamps_N))[follows_N]
    if number:
        return Steps("", int(freq) if freq else commonest(gap_M), stamps_N.dtype)
    clock_N = local(stamps_N)
    if not freq:
        # a day on which clocks change is a day, though not of 24 hours
        gap_M = np.where(gap_M > DAY // 2, apart(clock_N.asi8)[follows_N], gap_M)
        step = commonest(gap_M)
        different = pd.DatetimeIndex(np.unique(clock_N.normalize() if step >= DAY else clock_N[:1]))
        freq = infer_freq(different, pd.Timedelta(step, unit="ns"))
    offset = read_freq(freq, "freq")
    if isinstance(offset, pd.offsets.Day):
        return Steps(freq, offset.n * DAY, stamps_N.dtype, wall=True)
    if isinstance(offset, pd.offsets.Tick):
        if offset.nanos % pd.Timedelta(1, unit=stamps_N.unit).value:
            raise UserError(
                f"freq = {freq!r} is no whole number of {stamps_N.unit}, in which the frame's stamps are; accepted: "
                f"longer steps, or a time column of finer ones, like astype('datetime64[ns]')"
            )
        return Steps(freq, offset.nanos, stamps_N.dtype)
    first, last = clock_N.min().normalize(), clock_N.max().normalize()
    few = dates_between(first, min(last, first + pd.Timedelta(days=31)), offset.base)  # hours of centuries take long
    if (few != few.normalize()).any():
        raise UserError(f"freq = {freq!r} counts hours of some days only; accepted: even steps like 'h', or dates")
    dates = dates_between(first, last, offset.base)
    return Steps(freq, offset.n * DAY, stamps_N.dtype, wall=True, dates=dates)


def apart(count_N: np.ndarray) -> np.ndarray:
    """Returns by how much a count is larger than the one before it, uint64: of two that are more than 292 years apart,
    int64 does not hold the difference."""
    return np.diff(count_N, prepend=0).view(np.uint64)


def commonest(gap_M: np.ndarray) -> int:
    """Returns the commonest number, of equally common ones the smallest."""
    values, times = np.unique(gap_M, return_counts=True)
    return int(values[times.argmax()])


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Where rows of several series stand; N rows, S series, which all end in the last of T rows."""

    steps: Steps
    row_N: np.ndarray  # of T
    kept_N: np.ndarray  # False: a later row has the same stamp
    count_S: np.ndarray  # of the last stamps
    length_S: np.ndarray  # steps from a series' first stamp to its last, both included; T is the longest
    notes: tuple[str, ...]


def lay_out(stamps_N: pd.Index, series_N: np.ndarray, names_S: Sequence[str], freq: str) -> Grid:
    """Returns the grid of one step on which the stamps of each series stand; `freq` '' takes the commonest step.

    Nothing is resampled. Raises UserError for a stamp off the grid, for two series that do not share a step, and where
    a tenth of the rows or more repeat a stamp or a series would be nearly empty.
    """
    notes = []
    order = np.lexsort((raw(stamps_N), series_N))  # stable: of equal stamps, the later row comes last
    series_M, raw_M = series_N[order], raw(stamps_N)[order]
    same_M = np.diff(series_M, prepend=-1) == 0  # as the row before
    back = np.flatnonzero(same_M & (np.diff(order, prepend=-1) < 0))
    if len(back):
        example = f"{names_S[series_M[back[0]]]}, {stamps_N[order[back[0]]]}"
        notes.append(f"rows were out of order (first {example}) and were sorted")
    again_M = np.append(same_M[1:] & (np.diff(raw_M) == 0), False)
    kept_N = np.ones(len(order), bool)
    kept_N[order[again_M]] = False
    if again_M.any():
        first = order[again_M.argmax()]
        example = f"{names_S[series_N[first]]} at {stamps_N[first]} (row {first})"
        if again_M.sum() > len(order) / 10:
            raise UserError(
                f"{again_M.sum()} of {len(order)} rows have the stamp of a later row, like {example}; give one row for "
                "each stamp of a series, and in a long frame name the column that tells the series with id_column"
            )
        notes.append(f"{counted(again_M.sum(), 'row')} with the stamp of a later row dropped, first {example}")
    sorted_K = order[~again_M]
    stamps_K, series_K = stamps_N[sorted_K], series_N[sorted_K]
    rows_S = np.bincount(series_K)
    begin_S = np.cumsum(rows_S) - rows_S
    follows_K = np.diff(series_K, prepend=-1) == 0
    steps = find_steps(stamps_K, follows_K & (rows_S >= 3)[series_K], freq)
    count_K, off_K = steps.count(stamps_K)
    start_K = count_K[begin_S][series_K]
    since_K = (count_K - start_K).view(np.uint64)  # as in `apart`
    place_K, rest_K = (a.astype(np.int64) for a in np.divmod(since_K, np.uint64(steps.size)))
    late = np.flatnonzero((rest_K != 0) & ~off_K)
    if len(late) and steps.wall:  # not where the clock skipped the hour of the stamp
        meant = steps.stamps(start_K[late] + place_K[late] * steps.size)
        rest_K[late] = np.where(raw(meant) == raw(stamps_K[late]), 0, rest_K[late])
    off_K |= rest_K != 0
    gap_K = np.where(follows_K, np.diff(place_K, prepend=0), 0)
    length_S = place_K[begin_S + rows_S - 1] + 1
    smallest_S = np.minimum.reduceat(np.where(follows_K, gap_K, SPARSE * len(order)), begin_S)
    fits_S = ~np.logical_or.reduceat(off_K, begin_S)
    coarse_S = fits_S & (rows_S >= 3) & (smallest_S > 1)
    bad = np.flatnonzero(~fits_S | (coarse_S & (not freq)))
    advice = "bring the rows to one step first, or " + ("leave freq empty" if freq else "give the step with freq")
    if len(bad):
        s, k = bad[0], begin_S[bad[0]] + int(off_K[begin_S[bad[0]] : begin_S[bad[0]] + rows_S[bad[0]]].argmax())
        good = np.flatnonzero(fits_S & ~coarse_S & (rows_S >= 3))
        step = repr(steps.freq or steps.size)
        if len(good) and not freq:
            pair = stamps_K[begin_S[s] : begin_S[s] + 2]
            raise UserError(
                f"{names_S[good[0]]} has the step {step} and {names_S[s]} another (from {pair[0]} to {pair[-1]}); all "
                f"series need one step: {advice}"
            )
        if fits_S[s]:
            raise UserError(f"no two stamps of {names_S[s]} are one step of {step} apart; {advice}")
        raise UserError(
            f"{names_S[s]}: {stamps_K[k]} is not on the grid of step {step} ({counted(off_K.sum(), 'stamp')} in all) "
            f"that starts at {stamps_K[begin_S[s]]}; {advice}"
        )
    sparse = np.flatnonzero(length_S > np.maximum(SPARSE * rows_S, SHORT))
    if len(sparse):
        s = sparse[0]
        raise UserError(
            f"{names_S[s]}: from {stamps_K[begin_S[s]]} to {stamps_K[begin_S[s] + rows_S[s] - 1]} a step of "
            f"{steps.freq or steps.size!r} makes {length_S[s]} rows where the frame has {rows_S[s]}; {advice}"
        )
    missing_K = np.maximum(gap_K - 1, 0)
    if missing_K.any():
        k = int(missing_K.argmax())
        gaps = counted((missing_K > 0).sum(), "gap")
        notes.append(
            f"{counted(missing_K.sum(), 'row')} taken as missing to close {gaps} in the stamps; the longest, "
            f"{counted(missing_K[k], 'row')}, in {names_S[series_K[k]]} after {stamps_K[k - 1]}"
        )
    row_N = np.empty(len(order), np.int64)
    # a dropped row stands where the one that is kept instead of it does: the next that is kept
    row_N[order] = (length_S.max() - length_S[series_K] + place_K)[np.cumsum(~again_M) - ~again_M]
    count_S = count_K[begin_S] + (length_S - 1) * steps.size
    return Grid(steps, row_N, kept_N, count_S, length_S, tuple(notes))
