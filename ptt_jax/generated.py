"""A series made from a seed: hourly, in several channels, between a load curve and a weather station. numpy only."""

import numpy as np

DAY, WEEK, YEAR = 24, 168, 8766  # hours
MISSING = 0.01  # of all values, half of them scattered, half in blocks of some hours


def generate(rows: int, channels: int, seed: int) -> np.ndarray:
    """values_TC (rows, channels), float64, in made-up units; NaN where missing.

    Each channel is a level plus
      the day: three harmonics with phases of the channel's own, lower at the weekend, and smaller in one half of the
               year than in the other;
      the week: two harmonics;
      a slow trend: a line and half a year's swing;
      weather: AR(1) noise with a memory of days, shared between the channels in different doses;
      AR(1) noise with a memory of hours, and a little white noise, both of the channel's own.
    Sizes are chosen so that about half of the variance can be known from the calendar; the noise with memory can be
    foreseen for some hours, the rest cannot.
    """
    rng = np.random.default_rng(seed)
    hour_T1 = np.arange(rows, dtype=np.float64)[:, None]

    def wave_TC(period: float, amplitude: float) -> np.ndarray:
        """One harmonic; amplitude and phase differ from channel to channel."""
        amplitude_C = amplitude * rng.uniform(0.7, 1.3, channels)
        return amplitude_C * np.sin(2 * np.pi * (hour_T1 / period + rng.random(channels)))

    weekend_T1 = (hour_T1 // DAY) % 7 >= 5  # the series starts on a Monday
    day_TC = wave_TC(DAY, 1.0) + wave_TC(DAY / 2, 0.45) + wave_TC(DAY / 3, 0.2)
    day_TC *= 1 - weekend_T1 * rng.uniform(0.1, 0.5, channels)
    day_TC *= 1 + wave_TC(YEAR, 0.25)
    week_TC = wave_TC(WEEK, 0.25) + wave_TC(WEEK / 2, 0.15)
    trend_TC = wave_TC(YEAR / 2, 0.3) + rng.normal(0, 0.3, channels) * hour_T1 / YEAR
    weather_T1 = red_noise(rng, rows, 1, memory=48)
    own_TC = red_noise(rng, rows, channels, memory=6)
    values_TC = day_TC + week_TC + trend_TC + 0.15 * rng.standard_normal((rows, channels))
    values_TC += rng.uniform(0.2, 0.6, channels) * weather_T1 + 0.3 * own_TC
    values_TC = rng.uniform(5, 50, channels) + rng.uniform(1, 10, channels) * values_TC

    values_TC[missing(rng, rows, channels)] = np.nan
    return values_TC


def red_noise(rng: np.random.Generator, rows: int, channels: int, memory: float) -> np.ndarray:
    """(rows, channels): AR(1) noise of variance 1 whose autocorrelation falls to 1/e after `memory` hours."""
    keep = np.exp(-1 / memory)
    noise_TC = rng.standard_normal((rows, channels))
    noise_TC[1:] *= np.sqrt(1 - keep**2)  # keeps the variance at 1 from the first row on
    for t in range(1, rows):
        noise_TC[t] += keep * noise_TC[t - 1]
    return noise_TC


def missing(rng: np.random.Generator, rows: int, channels: int) -> np.ndarray:
    """bool (rows, channels), True = missing."""
    missing_TC = rng.random((rows, channels)) < MISSING / 2
    left = round(MISSING / 2 * rows * channels)
    while left > 0:
        length = min(left, int(rng.integers(3, 25)))
        begin = rng.integers(rows)
        missing_TC[begin : begin + length, rng.integers(channels)] = True
        left -= length
    return missing_TC
