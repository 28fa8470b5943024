"""The table of own data with gaps: what is hidden, what closes gaps without a model, what is measured. None is run."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_experiments import script

ROWS, CHANNELS, HORIZON = 2000, 3, 24


@pytest.fixture
def torn():
    return script("torn")


@pytest.fixture
def values_TC():
    values_TC = np.random.default_rng(0).normal(size=(ROWS, CHANNELS))
    values_TC[300:700, 1] = np.nan
    return values_TC


def test_a_tenth_of_each_kind_is_hidden_of_what_is_there(torn, values_TC):
    hidden, known_TC = torn.tear(values_TC, HORIZON), ~np.isnan(values_TC)
    assert not (hidden["points"] & hidden["blocks"]).any()
    for hidden_TC in hidden.values():
        assert not (hidden_TC & ~known_TC).any()
        share_C = hidden_TC.sum(0) / known_TC.sum(0)
        np.testing.assert_allclose(share_C, torn.SHARE, atol=0.02)
        assert abs(hidden_TC.sum() / known_TC.sum() - torn.SHARE) < 0.005
    edge = np.flatnonzero(np.diff(np.concatenate([[0], hidden["blocks"][:, 0].astype(int), [0]])))
    lengths = edge[1::2] - edge[::2]
    assert (lengths < HORIZON // 4).sum() <= 1  # the last one is cut
    assert lengths.max() > HORIZON  # blocks may touch
    short = torn.tear(values_TC[:200], HORIZON)["blocks"]
    assert short.sum(0).tolist() == [20, 20, 20]
    again = torn.tear(values_TC, HORIZON)
    assert all((hidden[kind] == again[kind]).all() for kind in hidden)


def test_what_closes_gaps_without_a_model(torn):
    torn_T1 = np.array([[0.0, 10, np.nan, np.nan, np.nan, 50, 60, np.nan]]).T
    closed = torn.close(torn_T1, 2)
    np.testing.assert_allclose(closed["line"][:, 0], [0, 10, 20, 30, 40, 50, 60, 60])
    # 0 and 10 two steps before; two steps after the fourth one; two before the last
    np.testing.assert_allclose(closed["season"][:, 0], [0, 10, 0, 10, 60, 50, 60, 50])


@pytest.fixture
def measured(torn, tmp_path, monkeypatch):
    """A file with gaps of its own, closed by a Forecaster that answers with 5 and, without lines, 3."""
    t_T = np.arange(ROWS)
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=ROWS, freq="h"), "a": np.sin(t_T / 9), "b": 1e3 + t_T})
    frame.loc[100:140, "a"] = np.nan
    frame.to_csv(tmp_path / "mine.csv", index=False)
    asked = []

    class Constant:
        def __init__(self, horizon):
            cfg = SimpleNamespace(model=SimpleNamespace(patch=12))
            self.fitted = SimpleNamespace(season=24, cfg=cfg, predictor=None)

        def fit(self, frame):
            asked.append(frame)
            return self

        def impute(self, frame):
            return frame.fillna({"a": 5.0, "b": 1e3})

    monkeypatch.setenv("PTT_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torn, "SETS", {"mine": ("mine.csv", HORIZON)})
    monkeypatch.setattr(torn, "Forecaster", Constant)
    monkeypatch.setattr(torn.closing, "close", lambda _, values_TC, *rest: np.where(np.isnan(values_TC), 3, values_TC))
    return torn.measure("mine"), asked, frame


def test_errors_are_of_hidden_values_in_units_of_each_series_spread(torn, measured):
    rows, (learned,), frame = measured
    truth_TC = frame[["a", "b"]].to_numpy()
    hidden = torn.tear(truth_TC, HORIZON)
    gap_TC = learned[["a", "b"]].isna().to_numpy()
    np.testing.assert_array_equal(gap_TC, hidden["points"] | hidden["blocks"] | np.isnan(truth_TC))
    spread_C = np.nanstd(learned[["a", "b"]].to_numpy(), axis=0)
    assert [row["kind"] for row in rows] == ["points", "blocks"]
    for row in rows:
        at_TC = hidden[row["kind"]]
        assert row["hidden"] == at_TC.sum()
        error_A = ((np.array([5.0, 1e3]) - truth_TC) / spread_C)[at_TC]
        assert row["impute_mse"] == pytest.approx(np.mean(error_A**2), rel=1e-6)
        assert row["impute_mae"] == pytest.approx(np.mean(np.abs(error_A)), rel=1e-6)
        assert row["alone_mae"] == pytest.approx(np.mean(np.abs((3 - truth_TC) / spread_C)[at_TC]), rel=1e-6)
    assert rows[0]["line_mse"] < 0.1 * rows[0]["season_mse"]  # at points of a slow wave and a slope


def test_the_table_has_a_line_for_each_kind_and_the_best_in_bold(torn, measured):
    rows, *_ = measured
    text = torn.table(pd.DataFrame(rows))
    points, blocks = text.splitlines()[2:]
    assert points.startswith(f"| mine | points | **{rows[0]['line_mse']:.4f} / {rows[0]['line_mae']:.3f}** | ")
    assert blocks.startswith("| mine | blocks | ")
    assert text.count("**") == 4
