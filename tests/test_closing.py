"""Gaps of a table: what is asked, what answers lean on, and what that is learned from."""

import numpy as np
import pytest

from ptt_jax import bridge, closing, impute
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
    return np.sqrt(np.mean((closed_TC[gap_T, column] - truth_TC[gap_T, column]) ** 2))


def test_a_backbone_that_knows_nothing_closes_single_gaps_like_lines(predictor, smooth):
    truth_TC, torn_TC = smooth
    closed_TC = closing.close(predictor, torn_TC, SEASON)
    seen_TC = ~np.isnan(torn_TC)
    np.testing.assert_array_equal(closed_TC[seen_TC], torn_TC[seen_TC])
    assert np.isnan(closed_TC[:, 2]).all()
    assert not np.isnan(np.delete(closed_TC, 2, 1)).any()
    line_T = np.interp(np.arange(ROWS), np.flatnonzero(seen_TC[:, 0]), torn_TC[seen_TC[:, 0], 0])
    of_lines = errors(line_T[:, None], truth_TC[:, :1], torn_TC, 0)
    alone_TC = closing.close(predictor, torn_TC, SEASON, np.zeros((4, bridge.RUNGS), np.float32))
    assert errors(alone_TC, truth_TC, torn_TC, 0) > 200 * of_lines
    assert errors(closed_TC, truth_TC, torn_TC, 0) < 6 * of_lines


def test_answers_that_are_right_lean_on_little(predictor, smooth, monkeypatch):
    torn_C, rng = [0, 1, 3], np.random.default_rng(1)
    truth_TC = rng.normal(size=(ROWS, 3))
    torn_TC = np.where(np.isnan(smooth[1][:, torn_C]), np.nan, truth_TC)
    scaled_TC = (truth_TC - np.nanmean(torn_TC, 0)) / np.nanstd(torn_TC, 0)

    def reconstruct(asked, x_TG, left_TG, wanted_TG):
        known_G = [np.abs(np.where(left_T[:, None], scaled_TC - x_T[:, None], 0)).max(0).argmin()
                   for x_T, left_T in zip(x_TG.T, left_TG.T, strict=True)]  # fmt: skip
        return scaled_TC[:, known_G]

    monkeypatch.setattr(closing, "reconstruct", reconstruct)
    closed_TC = closing.close(predictor, torn_TC, SEASON)
    line_TC = closing.close(predictor, torn_TC, SEASON, np.ones((3, bridge.RUNGS), np.float32))
    for column in (0, 1):
        missed = errors(closed_TC, truth_TC, torn_TC, column)
        assert missed < 0.25 * errors(line_TC, truth_TC, torn_TC, column)


@pytest.fixture
def gappy():
    """seen_T of 2000 steps: begins at 40, ends at 1900, single gaps, and one of 30 and one of 700."""
    seen_T = np.random.default_rng(0).random(2000) < 0.9
    seen_T[:40], seen_T[1900:], seen_T[300:330], seen_T[1000:1700] = False, False, False, False
    seen_T[[40, 299, 330, 999, 1700, 1899]] = True
    return seen_T


def test_gaps_to_learn_from_are_like_those_of_the_series(gappy):
    count = gappy.sum()
    ends_T, *rest = closing.copies(gappy, 10**6, np.random.default_rng(0))
    assert closing.COPIES / 2 < len(rest) <= closing.COPIES  # some were laid where nothing is seen
    assert np.flatnonzero(ends_T)[[0, -1]].tolist() == [40, 1899]
    assert ends_T[40:80].sum() == gappy[40:80].sum()  # as many steps as are missing in front
    assert ends_T[300:1700].sum() == 0
    assert len({hidden_T.tobytes() for hidden_T in rest}) > len(rest) / 2
    lengths = []
    for hidden_T in rest:
        assert not (hidden_T & ~gappy).any()
        assert not hidden_T[[40, 1899]].any()  # between the first value and the last
        many = hidden_T.sum() > closing.MOST * count  # then it is a single gap, and the longest one is cut
        assert hidden_T.sum() <= (closing.LONGEST if many else closing.MOST) * count
        lengths += [longest_run(hidden_T, gappy)]
    assert min(lengths) < 5
    assert closing.LONGEST * count * 0.9 < max(lengths) <= closing.LONGEST * count


def longest_run(hidden_T, seen_T):
    """The longest run of steps of which every seen one is hidden, from a hidden one to a hidden one."""
    best = here = start = 0
    for at in np.flatnonzero(seen_T):
        if hidden_T[at]:
            start, here = (start, at) if here else (at, at)
            best = max(best, at - start + 1)
        else:
            here = 0
    return best


def test_of_many_gaps_some_are_enough(gappy):
    asked = [hidden_T.sum() for hidden_T in closing.copies(gappy, 50, np.random.default_rng(0))][1:]
    assert sum(asked) >= 50
    assert sum(asked[:-2]) < 50  # in pairs


def test_of_the_shortest_series_that_teaches_the_ends_stay():
    found = [*closing.copies(np.array([1, 0, 1, 1, 1], bool), 100, np.random.default_rng(0))]
    assert {tuple(np.flatnonzero(hidden_T)) for hidden_T in found} == {(2,), (3,)}


@pytest.mark.parametrize("seen", [[0, 1, 0], [1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 0, 1]])
def test_a_series_of_few_values_or_without_a_gap_teaches_nothing(seen):
    assert not [*closing.copies(np.array(seen, bool), 100, np.random.default_rng(0))]


def test_what_is_hidden_is_hidden_and_each_series_learns_from_its_own(predictor, smooth, monkeypatch):
    _, torn_TC = smooth
    seen_TC, known = ~np.isnan(torn_TC), []

    def reconstruct(asked, x_TG, left_TG, wanted_TG):
        assert x_TG.shape[1] == closing.GROUP
        assert (x_TG[~left_TG] == 0).all()
        known.append((left_TG, wanted_TG))
        return np.where(left_TG, x_TG, 0)

    monkeypatch.setattr(closing, "reconstruct", reconstruct)
    monkeypatch.setattr(bridge, "shares", lambda m_C3A: m_C3A)
    torn_C = [0, 1, 3]
    x_TC = np.where(seen_TC, torn_TC / [1, 1e6, 1, 1], 0).astype(np.float32)[:, torn_C]
    m_C3A = closing.shares(asked(predictor), x_TC, seen_TC[:, torn_C])
    hidden = {c: 0 for c in range(3)}
    for left_TG, wanted_TG in known:
        for left_T, wanted_T in zip(left_TG.T, wanted_TG.T, strict=True):
            (of,) = (c for c in range(3) if ((left_T | wanted_T) == seen_TC[:, torn_C[c]]).all())
            assert not (left_T & wanted_T).any()
            hidden[of] += wanted_T.sum()
    assert hidden[0] > 100
    assert hidden[1] > 100
    assert hidden[2] == 0
    np.testing.assert_array_equal(m_C3A[:, 2].sum(1), [*hidden.values()])
    np.testing.assert_allclose(m_C3A[0, 1].sum() / hidden[0], 25, rtol=0.1)  # a line at a level of 5, an answer of 0
    np.testing.assert_allclose(m_C3A[1, 1].sum() / hidden[1], 4, rtol=0.1)


def test_a_table_without_a_gap_asks_nothing(predictor, monkeypatch):
    monkeypatch.setattr(closing, "reconstruct", lambda *_: pytest.fail("nothing to close"))
    x_TC = np.random.default_rng(0).normal(size=(100, 2))
    x_TC[:, 1] = np.nan
    found_TC = closing.close(predictor, x_TC, SEASON)
    np.testing.assert_array_equal(found_TC, x_TC)
    assert found_TC is not x_TC


def test_answers_are_drawn_to_lines_by_the_width_of_their_gap(predictor, smooth):
    _, torn_TC = smooth
    share_CA = np.zeros((4, bridge.RUNGS), np.float32)
    alone_TC = closing.close(predictor, torn_TC, SEASON, share_CA)
    share_CA[:, 0] = 1
    found_TC = closing.close(predictor, torn_TC, SEASON, share_CA)
    seen_CT = ~np.isnan(torn_TC).T
    single_TC = ~seen_CT.T & (np.asarray(bridge.rung(seen_CT)).T == 0)
    line_T = np.interp(np.arange(ROWS), np.flatnonzero(seen_CT[0]), torn_TC[seen_CT[0], 0])
    np.testing.assert_allclose(found_TC[single_TC[:, 0], 0], line_T[single_TC[:, 0]], rtol=1e-5)
    assert single_TC[:, 0].sum() > 30
    np.testing.assert_allclose(found_TC[~single_TC], alone_TC[~single_TC], rtol=1e-5)
    share_CA[0] = 0  # of the first series alone; the third one has no value, the fourth no gap
    for order_C in ([0, 1, 2, 3], [3, 0, 2, 1]):
        other_TC = closing.close(predictor, torn_TC[:, order_C], SEASON, share_CA[order_C])[:, np.argsort(order_C)]
        np.testing.assert_allclose(other_TC[:, 0], alone_TC[:, 0], rtol=1e-5)
        np.testing.assert_allclose(other_TC[:, 1], found_TC[:, 1], rtol=1e-5)


def test_a_series_learns_the_same_wherever_it_stands(predictor, smooth):
    _, torn_TC = smooth
    found_TC = closing.close(predictor, torn_TC, SEASON)
    order_C = [3, 1, 2, 0]
    other_TC = closing.close(predictor, torn_TC[:, order_C], SEASON)[:, order_C]
    np.testing.assert_allclose(other_TC, found_TC, rtol=1e-5, atol=1e-6)


def test_a_smooth_series_beside_a_noisy_one_keeps_its_lines(predictor, smooth):
    truth_TC, torn_TC = smooth
    noise_TC = np.where(np.random.default_rng(3).random((ROWS, 2)) < 0.1, np.nan, 1e3)
    noise_TC *= np.random.default_rng(4).normal(size=noise_TC.shape)
    alone_TC = closing.close(predictor, torn_TC[:, :1], SEASON)
    beside_TC = closing.close(predictor, np.concatenate([torn_TC[:, :1], noise_TC], 1), SEASON)
    for closed_TC in (alone_TC, beside_TC):
        assert errors(closed_TC, truth_TC, torn_TC, 0) < 6e-3


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


def test_a_table_shorter_than_a_window_is_answered_at_its_own_steps(predictor):
    x_T1 = np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32)
    seen_T1 = np.random.default_rng(1).random(x_T1.shape) < 0.7
    x_T1 = np.where(seen_T1, x_T1, 0)
    x_1L, seen_1L = (np.pad(a_T1, ((18, 0), (0, 0))).T for a_T1 in (x_T1, seen_T1))
    y_1L = closing.run(predictor.model, asked(predictor).way, predictor.backbone, x_1L, seen_1L)
    found_T1 = closing.reconstruct(asked(predictor), x_T1, seen_T1, ~seen_T1)
    np.testing.assert_allclose(found_T1[:, 0], np.asarray(y_1L)[0, 18:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 5])
def test_an_answer_is_the_same_in_whatever_batch(predictor, smooth, monkeypatch, batch):
    _, torn_TC = smooth
    whole_TC = closing.close(predictor, torn_TC[:, :2], SEASON)
    monkeypatch.setattr(closing, "FEW", batch)
    monkeypatch.setattr(closing, "BATCH", batch)
    np.testing.assert_allclose(closing.close(predictor, torn_TC[:, :2], SEASON), whole_TC, rtol=1e-4, atol=1e-3)


def test_what_no_window_reaches_is_a_line(predictor):
    torn_T1 = np.r_[np.arange(100.0), np.full(200, np.nan), 400 - np.arange(100.0)][:, None]
    closed_T1 = closing.reconstruct(
        asked(predictor), np.nan_to_num(torn_T1), ~np.isnan(torn_T1), np.isnan(torn_T1),
    )  # fmt: skip
    assert not np.isnan(closed_T1).any()
    middle_T = closed_T1[160:240, 0]
    np.testing.assert_allclose(np.diff(middle_T), np.diff(middle_T)[0], rtol=1e-4)
