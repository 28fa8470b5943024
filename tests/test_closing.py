"""Gaps of a table: what is asked, what answers lean on, and what that is learned from."""

import numpy as np
import pytest

from ptt_jax import bridge, closing, gaps, impute
from ptt_jax.predict import Predictor

ROWS, SEASON = 600, 24


@pytest.fixture
def predictor(model, params):
    """Random weights, whose reconstruction is worth nothing."""
    return Predictor(model, params, None, 48, 12)


def asked(predictor):
    return closing.Asked(predictor.model, predictor.backbone, impute.Way("season", 6.0, SEASON), 48)


@pytest.fixture
def smooth():
    """values_TC of two slow waves, truth and with gaps: single values in the first one, a block and an end besides in
    the second, which begins late; the third has no value, the fourth all."""
    t_T, rng = np.arange(ROWS), np.random.default_rng(0)
    truth_TC = np.stack([5 + np.sin(t_T / 30), 2e6 + 100 * np.cos(t_T / 20), t_T, np.sin(t_T / 9)], 1)
    torn_TC = truth_TC.copy()
    torn_TC[rng.random(ROWS) < 0.1, 0] = np.nan
    torn_TC[[*range(40), *range(300, 330), *range(590, 600)], 1] = np.nan
    torn_TC[:, 2] = np.nan
    return truth_TC, torn_TC


def errors(closed_TC, truth_TC, torn_TC, column):
    gap_T = np.isnan(torn_TC[:, column])
    return np.sqrt(np.mean((closed_TC - truth_TC)[gap_T, column] ** 2))


def test_a_backbone_that_knows_nothing_closes_single_gaps_like_lines(predictor, smooth):
    truth_TC, torn_TC = smooth
    closed_TC = closing.close(predictor, torn_TC, SEASON)
    seen_TC = ~np.isnan(torn_TC)
    np.testing.assert_array_equal(closed_TC[seen_TC], torn_TC[seen_TC])
    assert np.isnan(closed_TC[:, 2]).all()
    assert not np.isnan(np.delete(closed_TC, 2, 1)).any()
    line_T = np.interp(np.arange(ROWS), np.flatnonzero(seen_TC[:, 0]), torn_TC[seen_TC[:, 0], 0])
    of_lines = errors(line_T[:, None], truth_TC[:, :1], torn_TC, 0)
    assert errors(closed_TC, truth_TC, torn_TC, 0) < 1.5 * of_lines
    alone_TC = closing.close(predictor, torn_TC, SEASON, np.zeros(bridge.RUNGS, np.float32))
    assert errors(alone_TC, truth_TC, torn_TC, 0) > 5 * of_lines


def test_answers_that_are_right_lean_on_nothing(predictor, smooth, monkeypatch):
    _, torn_TC = smooth
    rng = np.random.default_rng(1)
    truth_TC = rng.normal(size=(ROWS, 4))
    torn_TC = np.where(np.isnan(torn_TC), np.nan, truth_TC)
    mean_C, scale_C = np.nan_to_num(np.nanmean(torn_TC[:, [0, 1, 3]], 0)), np.nanstd(torn_TC[:, [0, 1, 3]], 0)
    scaled_TC = (truth_TC[:, [0, 1, 3]] - mean_C) / scale_C
    monkeypatch.setattr(closing, "reconstruct", lambda *_: scaled_TC)
    closed_TC = closing.close(predictor, torn_TC[:, [0, 1, 3]], SEASON)
    np.testing.assert_allclose(closed_TC, truth_TC[:, [0, 1, 3]], rtol=1e-3, atol=1e-3)


def runs(of_T):
    """The lengths of the runs of True."""
    edge = np.flatnonzero(np.diff(np.concatenate([[0], of_T.astype(int), [0]])))
    return (edge[1::2] - edge[::2]).tolist()


def test_shares_are_learned_from_gaps_like_the_tables_own(predictor, smooth, monkeypatch):
    _, torn_TC = smooth
    seen_TC, known = ~np.isnan(torn_TC), []

    def reconstruct(asked, x_TC, left_TC, wanted_TC):
        assert (x_TC[~left_TC] == 0).all()  # what is hidden is hidden
        known.append((left_TC, wanted_TC))
        return np.zeros(x_TC.shape)

    monkeypatch.setattr(closing, "reconstruct", reconstruct)
    closing.shares(asked(predictor), np.where(seen_TC, torn_TC, 0).astype(np.float32), seen_TC)
    assert len(known) == closing.MOVES  # a small table
    for left_TC, wanted_TC in known:
        np.testing.assert_array_equal(wanted_TC, seen_TC & ~left_TC)
        assert wanted_TC.sum() <= 1.5 * closing.MOST * seen_TC.sum()
        assert not wanted_TC[:, 3].any()  # it has no gap
    assert len({wanted_TC.tobytes() for _, wanted_TC in known}) == len(known)
    lengths = [length for _, wanted_TC in known for length in runs(wanted_TC[:, 1])]
    assert max(lengths) == 30  # neither the end of it nor what is before its beginning, 40 steps
    assert {length for _, wanted_TC in known for length in runs(wanted_TC[:, 0])} >= {1, 2}


def test_gaps_that_are_no_gaps_teach_nothing(predictor, monkeypatch):
    x_TC = np.random.default_rng(0).normal(size=(100, 2))
    x_TC[:30, 0], x_TC[90:, 1] = np.nan, np.nan
    seen_TC = ~np.isnan(x_TC)
    monkeypatch.setattr(closing, "reconstruct", lambda *_: pytest.fail("nothing to learn from"))
    assert not closing.shares(asked(predictor), np.nan_to_num(x_TC), seen_TC).any()


def test_a_series_is_not_hidden_whole(predictor, monkeypatch):
    x_TC, asks = np.random.default_rng(0).normal(size=(100, 40)), []
    seen_TC = np.ones(x_TC.shape, bool)
    seen_TC[:, 0] = False
    seen_TC[[0, 60], 0] = True  # its gap hides both when it moves by 41 to 59 steps
    monkeypatch.setattr(closing, "reconstruct", lambda *a: asks.append(a[2:]) or np.zeros(x_TC.shape))
    closing.shares(asked(predictor), x_TC, seen_TC)
    assert any(not left_TC[:, 0].any() for left_TC, _ in asks)
    assert any(wanted_TC[:, 0].any() for _, wanted_TC in asks)
    assert all(left_TC[:, 0].any() for left_TC, wanted_TC in asks if wanted_TC[:, 0].any())


def test_windows_that_overlap_weigh_by_how_deep_a_step_lies_in_them(predictor):
    rng = np.random.default_rng(0)
    x_TC = rng.normal(size=(130, 3)).astype(np.float32)
    seen_TC = rng.random(x_TC.shape) < 0.7
    seen_TC[:, 2] = True
    total_TC, weight_TC = np.zeros(x_TC.shape), np.zeros(x_TC.shape)
    for begin in (0, 24, 48, 72, 82):
        x_RL, seen_RL = (of[begin : begin + 48].T for of in (np.where(seen_TC, x_TC, 0), seen_TC))
        y_RL = closing.run(predictor.model, asked(predictor).way, predictor.backbone, x_RL, seen_RL)
        for step in range(48):
            weight = min(step, 47 - step) + 1
            total_TC[begin + step] += weight * np.asarray(y_RL)[:, step]
            weight_TC[begin + step] += weight
    found_TC = closing.reconstruct(asked(predictor), np.where(seen_TC, x_TC, 0), seen_TC, ~seen_TC)
    np.testing.assert_allclose(found_TC, np.where(seen_TC, x_TC, total_TC / weight_TC), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_an_answer_is_the_same_in_whatever_batch(predictor, smooth, monkeypatch, batch):
    _, torn_TC = smooth
    whole_TC = closing.close(predictor, torn_TC[:, :2], SEASON)
    monkeypatch.setattr(closing, "BATCH", batch)
    np.testing.assert_allclose(closing.close(predictor, torn_TC[:, :2], SEASON), whole_TC, rtol=1e-4, atol=1e-3)


def test_of_many_gaps_some_are_enough(predictor, monkeypatch):
    x_TC = np.random.default_rng(0).normal(size=(5000, 9))
    seen_TC, asks = np.random.default_rng(1).random(x_TC.shape) < 0.4, []
    monkeypatch.setattr(closing, "ENOUGH", 1500)
    monkeypatch.setattr(closing, "reconstruct", lambda *a: asks.append(a[-1].sum()) or np.zeros(x_TC.shape))
    closing.shares(asked(predictor), x_TC, seen_TC)
    assert 1500 <= sum(asks) < 3000
    assert len(asks) < closing.MOVES


def test_what_no_window_reaches_is_a_line(predictor):
    torn_T1 = np.r_[np.arange(100.0), np.full(200, np.nan), 400 - np.arange(100.0)][:, None]
    closed_T1 = closing.reconstruct(
        asked(predictor), np.nan_to_num(torn_T1), ~np.isnan(torn_T1), np.isnan(torn_T1),
    )  # fmt: skip
    assert not np.isnan(closed_T1).any()
    middle_T = closed_T1[160:240, 0]
    np.testing.assert_allclose(np.diff(middle_T), np.diff(middle_T)[0], rtol=1e-4)


def test_the_line_of_what_was_hidden_knows_nothing_of_it():
    x_RL = np.random.default_rng(0).normal(size=(3, 60)).astype(np.float32)
    seen_RL = np.random.default_rng(1).random(x_RL.shape) < 0.5
    y_RL = np.zeros_like(x_RL)
    line_RL = gaps.interpolate(np.where(seen_RL, x_RL, 0), seen_RL)
    expected = bridge.moments(x_RL, y_RL, line_RL, bridge.rung(seen_RL), ~seen_RL)
    np.testing.assert_allclose(closing.moments(x_RL, y_RL, seen_RL, ~seen_RL), expected, rtol=1e-5)
