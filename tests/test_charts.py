"""Charts as markup: what is drawn lies where its numbers say, gaps stay gaps, axes have round numbers and dates."""

import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest

from ptt_jax import charts
from ptt_jax.charts import Band, Line
from ptt_jax.scales import dates, number, ticks


def plot(svg):
    return json.loads(unescape(re.search(r'data-plot="([^"]*)"', svg)[1]))


def drawn(svg, kind):
    """The points of the first path of a kind; a gap begins another list."""
    d = re.search(rf'class="{kind}[^"]*" d="([^"]*)"', svg)[1]
    pieces = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", piece) for piece in d.split("M")[1:]]
    return [np.array(piece, float) for piece in pieces]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]), (-3, 9, ["0", "5"]), (0.13, 0.16, ["0.14", "0.15", "0.16"]),
     (12_000, 40_000, ["20,000", "30,000", "40,000"]), (2e7, 6e7, ["4e+07", "5e+07", "6e+07"]), (5, 5, None)],
)  # fmt: skip
def test_ticks_are_round_numbers_inside(low, high, words):
    found = ticks(low, high)
    assert len(found) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value, _ in found)
    if words:
        assert [word for _, word in found][-len(words) :] == words


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (0, "0"), (-0.5, "-0.500"), (1e9, "1e+09")],
)
def test_a_number_has_three_digits(value, said):
    assert number(value) == said
    assert number(float("nan")) == "\u2013"


@pytest.mark.parametrize(
    ("seconds", "steps", "words"),
    [(3600, 48, ["2 Mar", "12:00", "3 Mar", "12:00"]), (86400, 300, ["Apr 2024", "Jul 2024", "Oct 2024"]),
     (1, 9, ["00:00:00", "00:00:05"]), (86400 * 365, 30, ["2030", "2040", "2050"]),
     (900, 700, ["2 Mar", "4 Mar", "6 Mar", "8 Mar"]), (86400 * 3650, 101, ["0", "20", "40", "60", "80", "100"])],
)  # fmt: skip
def test_dates_are_round_and_lie_where_they_are(seconds, steps, words):
    now = pd.Timestamp("2024-03-02")
    found = dates(0, steps - 1, now, seconds)
    assert [word for _, word in found] == words
    for value, _ in found:
        assert 0 <= value < steps
    assert len(found) <= 6


def test_a_curve_keeps_its_gaps_and_lies_where_its_numbers_say():
    x, y = np.arange(6), np.array([0.0, 1, np.nan, 1, 2, 4])
    svg = charts.lines("a", "b", [Line("it", "m1", x, y)], zero=True)
    first, second = drawn(svg, "line m1")
    assert (len(first), len(second)) == (2, 3)
    assert "nan" not in svg
    points, known = np.concatenate([first, second]), np.isfinite(y)
    for axis, values in ((0, x[known]), (1, y[known])):
        assert abs(np.corrcoef(points[:, axis], values)[0, 1]) > 0.9999
    assert first[0][1] > second[2][1]  # up is more
    assert plot(svg)["lines"][0] == {"n": "it", "k": "m1", "x": {"first": 0, "step": 1}, "y": [0, 1, None, 1, 2, 4]}


def test_a_band_is_closed_around_its_curve():
    x, y = np.arange(4), np.array([1.0, 2, 3, 2])
    svg = charts.lines("a", "b", [Line("it", "m1", x, y)], [Band("80 %", "level80", x, y - 1, y + 1)])
    (curve,), (around,) = drawn(svg, "line m1"), drawn(svg, "band level80")
    assert len(around) == 8
    np.testing.assert_allclose(around[:4, 0], curve[:, 0])
    np.testing.assert_allclose((around[:4, 1] + around[:3:-1, 1]) / 2, curve[:, 1], atol=0.1)
    assert (around[:4, 1] < curve[:, 1]).all()


def test_nothing_but_gaps_is_an_empty_chart():
    svg = charts.lines("a", "b", [Line("it", "m1", np.arange(3), np.full(3, np.nan))])
    assert "NaN" not in svg
    assert plot(svg)["lines"] == []
    assert "nan" not in charts.rows("a", "b", ["x"], {"it": ("m1", np.array([np.nan]))})


def test_cells_of_a_heat_map_are_the_darker_the_more_and_many_become_few():
    value_MN = np.arange(6.0).reshape(2, 3)
    svg = charts.heat("a", "b", value_MN, [(0, "x")], [(0, "y")], ("n", "m"))
    shades = {cell: float(shade) for shade, cells in re.findall(r'fill-opacity="([\d.]+)" d="([^"]*)"', svg)
              for cell in re.findall(r"M(\d \d)h1v1h-1z", cells)}  # fmt: skip
    assert shades["2 1"] == 1
    assert sorted(shades, key=lambda cell: shades[cell]) == ["1 0", "2 0", "0 1", "1 1", "2 1"]  # the lowest is bare
    large_MN = np.random.default_rng(0).random((300, 100))
    assert charts.heat("a", "b", large_MN, [], [], ("n", "m")).count("h1v1h-1z") <= charts.CELLS
    few_MN, corners = charts.mean_of(large_MN[:5, :4], 2), ((0, 0), (0, 2), (4, 2))
    for m, n in corners:
        assert few_MN[m // 2, n // 2] == pytest.approx(large_MN[:5][m : m + 2, n : n + 2].mean())


def test_words_are_escaped_wherever_they_stand():
    evil, x = '"><script>', np.arange(2.0)
    made = charts.lines(evil, evil, [Line(evil, "m1", x, x)], [Band(evil, "level80", x, x, x)], unit=evil)
    made += charts.rows(evil, evil, [evil * 5], {evil: ("m1", np.ones(1))}) + charts.bars(evil, evil, x, "m1", evil)
    made += charts.heat(evil, evil, np.ones((2, 2)), [(0, evil)], [(0, evil)], (evil, evil))
    assert "<script" not in made
    assert '""' not in made
