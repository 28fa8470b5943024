"""Metrics of anomaly scores: by hand, by the slow way, and by what must hold of any score."""

import numpy as np
import pytest

from ptt_jax.ranking import auprc, auroc, f1_best, f1_point_adjusted, vus_pr

ALL = (auroc, auprc, vus_pr, f1_best, f1_point_adjusted)


def stretches(steps: int, *begin_end: tuple[int, int]) -> np.ndarray:
    label_T = np.zeros(steps, bool)
    for begin, end in begin_end:
        label_T[begin:end] = True
    return label_T


def test_areas_and_f1_of_four_steps_by_hand():
    label, score = np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert auroc(label, score) == pytest.approx(3 / 4)  # of 4 pairs one is the wrong way round
    assert auprc(label, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert f1_best(label, score) == pytest.approx(4 / 5)  # three alarms, two of them right


def test_equal_scores_are_one_threshold():
    label, score = np.array([1, 0, 0, 1, 0]), np.array([2.0, 2.0, 1.0, 1.0, 0.0])
    assert auroc(label, score) == pytest.approx((0.5 + 1 + 1 + 0 + 0.5 + 1) / 6)
    assert auprc(label, score) == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    same = np.zeros(5)
    assert (auroc(label, same), auprc(label, same)) == pytest.approx((0.5, 2 / 5))


def test_perfect_scores_have_one_everywhere_and_reversed_ones_no_area():
    label = stretches(500, (100, 130), (300, 301), (490, 500))
    assert [f(label, label.astype(float)) for f in (auroc, auprc, f1_best, f1_point_adjusted)] == [1, 1, 1, 1]
    assert vus_pr(label, label.astype(float), window=0) == 1
    assert auroc(label, -label.astype(float)) == 0
    assert auprc(label, -label.astype(float)) == pytest.approx(label.mean())


def test_random_scores_have_half_and_the_prevalence():
    rng = np.random.default_rng(0)
    label, score = stretches(100_000, (20_000, 21_000), (70_000, 72_000)), rng.random(100_000)
    assert auroc(label, score) == pytest.approx(0.5, abs=0.02)
    assert auprc(label, score) == pytest.approx(label.mean(), rel=0.1)
    assert vus_pr(label, score, window=100, step=20) == pytest.approx(label.mean(), rel=0.1)


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_only_the_order_of_scores_counts(metric):
    rng = np.random.default_rng(1)
    label, score = stretches(400, (50, 80), (200, 203)), np.round(rng.normal(size=400), 1)
    assert metric(label, np.exp(3 * score) - 7) == pytest.approx(metric(label, score), abs=1e-12)


@pytest.mark.parametrize("metric", ALL, ids=lambda f: f.__name__)
def test_without_both_kinds_of_steps_there_is_no_number(metric):
    score = np.arange(4.0)
    assert np.isnan(metric(np.zeros(4, bool), score))
    assert np.isnan(metric(np.ones(4, bool), score))


@pytest.mark.parametrize("score", [np.zeros(3), np.array([0, 1, np.nan, 2])])
def test_scores_that_are_not_one_finite_number_a_step_are_an_error(score):
    with pytest.raises(ValueError, match="one finite number a step"):
        auprc(np.array([0, 1, 0, 1]), score)


def test_point_adjustment_makes_random_scores_look_good():
    """What Kim et al. 2022 warn of."""
    rng = np.random.default_rng(2)
    label, score = stretches(10_000, (2_000, 2_500), (7_000, 7_500)), rng.random(10_000)
    assert f1_best(label, score) < 0.2
    assert f1_point_adjusted(label, score) > 0.9


def test_point_adjustment_by_hand():
    label, score = np.array([0, 1, 1, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.1, 0.5, 0.4])
    assert f1_point_adjusted(label, score) == pytest.approx(2 * 4 / (4 + 1 + 4))  # at 0.4: both found, one false alarm
    assert f1_best(label, score) == pytest.approx(2 * 4 / (6 + 4))


def test_point_adjustment_changes_nothing_where_anomalies_are_single_steps():
    rng = np.random.default_rng(3)
    label, score = np.zeros(300, bool), rng.normal(size=300)
    label[::17] = True
    assert f1_point_adjusted(label, score) == pytest.approx(f1_best(label, score))


def test_vus_pr_without_a_buffer_is_the_average_precision_of_one_anomaly():
    rng = np.random.default_rng(4)
    label, score = stretches(1000, (400, 450)), rng.normal(size=1000)
    assert vus_pr(label, score + label, window=0) == pytest.approx(auprc(label, score + label))
    several = stretches(1000, (400, 450), (700, 710))
    assert vus_pr(several, score + several, window=0) < auprc(several, score + several)


def slow_vus(label_T: np.ndarray, score_T: np.ndarray, buffers: range) -> float:
    """The definition, step by step and threshold by threshold."""
    areas = []
    for buffer in buffers:
        soft_T, near = label_T.astype(float), [bool(x) for x in label_T]
        for t in range(len(label_T)):
            far = min(abs(t - a) for a in np.flatnonzero(label_T))
            if 0 < far <= buffer / 2:
                soft_T[t], near[t] = (1 - far / buffer) ** 0.5, True
        anomalies, inside = [], False
        for t, is_near in enumerate(near):
            if is_near and not inside:
                anomalies.append([])
            if is_near:
                anomalies[-1].append(t)
            inside = is_near
        area, before = 0.0, 0.0
        for threshold in sorted(set(score_T), reverse=True):
            alarm = [t for t in range(len(score_T)) if score_T[t] >= threshold]
            hits, found = sum(soft_T[t] for t in alarm), sum(any(t in alarm for t in a) for a in anomalies)
            recall = min(hits / ((label_T.sum() + soft_T.sum()) / 2), 1) * found / len(anomalies)
            area, before = area + (recall - before) * hits / len(alarm), recall
        areas.append(area)
    return float(np.mean(areas))


def test_vus_pr_is_its_definition():
    rng = np.random.default_rng(5)
    label, score = stretches(80, (0, 3), (30, 38), (44, 45), (77, 80)), np.round(rng.normal(size=80), 1)
    assert vus_pr(label, score + label, window=12, step=3) == pytest.approx(
        slow_vus(label, score + label, range(0, 13, 3))
    )


def test_vus_pr_forgives_an_alarm_that_is_a_little_early():
    label = stretches(1000, (500, 520))
    early, far = (stretches(1000, (at, at + 20)).astype(float) for at in (485, 300))
    assert vus_pr(label, early) > 1.5 * auprc(label, early)
    assert vus_pr(label, far) < 0.25 * vus_pr(label, early)
