"""How well scores rank anomalous steps above the others: numbers from a label and a score of each step. numpy only.

label_T is bool, score_T finite, the larger the more anomalous. Nothing here chooses a threshold that a user could have
known: areas are over all thresholds, and the two F1 take the best one in hindsight, as their names say. Without an
anomalous step, or without a normal one, each is nan.
"""

import numpy as np


def auroc(label_T: np.ndarray, score_T: np.ndarray) -> float:
    """Returns the area under the ROC curve: how often an anomalous step scores above a normal one, ties half."""
    curve = Curve(label_T, score_T)
    hits_K, alarms_K = curve.hits(curve.label_T)
    false_K = np.append(0.0, alarms_K - hits_K)
    return float(np.trapezoid(np.append(0.0, hits_K), false_K) / (hits_K[-1] * false_K[-1])) if curve.mixed else np.nan


def auprc(label_T: np.ndarray, score_T: np.ndarray) -> float:
    """Returns the average precision: sum over thresholds of precision times the recall that the threshold adds."""
    curve = Curve(label_T, score_T)
    hits_K, alarms_K = curve.hits(curve.label_T)
    return average(hits_K / hits_K[-1], hits_K / alarms_K) if curve.mixed else np.nan


def vus_pr(label_T: np.ndarray, score_T: np.ndarray, window: int = 100, step: int = 1) -> float:
    """Returns the volume under the precision-recall surface (VUS-PR, Paparrizos et al. 2022, VLDB 15(11)).

    It is the mean of Range-AUC-PR over buffers l = 0, step, 2 step, ... up to `window`. Under a buffer l, a step at
    distance d from the nearest anomalous one has the label (1 - d / l)^(1/2) for d <= l / 2, and 0 beyond; anomalous
    steps have 1. With alarms where the score reaches a threshold,
        precision = sum(label of alarms) / number of alarms
        recall = min(sum(label of alarms) / P, 1) * existence,  P = mean of sum(label) under l and under 0
    existence: the share of anomalies, merged where their buffers touch, in which there is any alarm. Range-AUC-PR is
    the average precision over all thresholds. With l = 0 and one anomaly it is `auprc`; with several, existence makes
    it smaller. Where buffers overlap the published code adds labels up, at most to 1, and here the nearer one counts.
    """
    curve = Curve(label_T, score_T)
    if not curve.mixed:
        return np.nan
    far_T = distance(curve.label_T)
    areas = []
    for buffer in range(0, window + 1, step):
        near_T = far_T <= buffer / 2
        soft_T = np.where(near_T, np.sqrt(1 - np.where(near_T, far_T, 0) / max(buffer, 1)), 0.0)
        hits_K, alarms_K = curve.hits(soft_T)
        recall_K = np.minimum(hits_K / ((curve.label_T.sum() + soft_T.sum()) / 2), 1) * curve.existence(near_T)
        areas.append(average(recall_K, hits_K / alarms_K))
    return float(np.mean(areas))


def f1_best(label_T: np.ndarray, score_T: np.ndarray) -> float:
    """Returns the F1 of single steps at the threshold that is best in hindsight."""
    curve = Curve(label_T, score_T)
    hits_K, alarms_K = curve.hits(curve.label_T)
    return float((2 * hits_K / (alarms_K + hits_K[-1])).max()) if curve.mixed else np.nan


def f1_point_adjusted(label_T: np.ndarray, score_T: np.ndarray) -> float:
    """Returns the best F1 after 'point adjustment': one alarm in an anomaly counts as an alarm at each of its steps.

    Inflated: the longer anomalies are, the closer random scores come to 1 (Kim et al. 2022, 'Towards a rigorous
    evaluation of time-series anomaly detection'). For comparison with papers that report nothing else.
    """
    curve = Curve(label_T, score_T)
    if not curve.mixed:
        return np.nan
    hits_K, alarms_K = curve.hits(curve.label_T)
    length_A, first_A = curve.stretches(curve.label_T)
    adjusted_K = np.bincount(first_A, weights=length_A, minlength=len(hits_K)).cumsum()
    return float((2 * adjusted_K / (adjusted_K + alarms_K - hits_K + hits_K[-1])).max())


class Curve:
    """Steps by falling score: K distinct scores are the thresholds, and rank_T says at which of them a step alarms."""

    def __init__(self, label_T: np.ndarray, score_T: np.ndarray) -> None:
        self.label_T, score_T = np.asarray(label_T, bool), np.asarray(score_T)
        if self.label_T.ndim != 1 or self.label_T.shape != score_T.shape or not np.isfinite(score_T).all():
            raise ValueError(f"label {self.label_T.shape} and score {score_T.shape} must be one finite number a step")
        _, falling_T = np.unique(score_T, return_inverse=True)
        self.rank_T = falling_T.max(initial=0) - falling_T
        self.mixed = bool(self.label_T.any() and not self.label_T.all())

    def hits(self, weight_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the sum of weights of the alarms at each threshold, and their number."""
        return np.bincount(self.rank_T, weights=weight_T).cumsum(), np.bincount(self.rank_T).cumsum()

    def stretches(self, near_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the length of each stretch of `near` steps, and the threshold at which it has its first alarm."""
        edge_T = np.diff(near_T.astype(np.int8), prepend=0, append=0)
        begin_A, end_A = np.flatnonzero(edge_T == 1), np.flatnonzero(edge_T == -1)
        rank_T = np.append(self.rank_T, len(self.rank_T))  # so that a stretch may reach the end
        return end_A - begin_A, np.minimum.reduceat(rank_T, np.stack([begin_A, end_A], 1).ravel())[::2]

    def existence(self, near_T: np.ndarray) -> np.ndarray:
        """Returns the share of stretches of `near` steps that hold an alarm, at each threshold."""
        _, first_A = self.stretches(near_T)
        return np.bincount(first_A, minlength=self.rank_T.max() + 1).cumsum() / len(first_A)


def average(recall_K: np.ndarray, precision_K: np.ndarray) -> float:
    """Returns the mean of precision over recall, which rises with K: a step function, not a trapezoid."""
    return float((np.diff(recall_K, prepend=0.0) * precision_K).sum())


def distance(label_T: np.ndarray) -> np.ndarray:
    """Returns how many steps away the nearest anomalous step is."""
    at_T, anomalous_A = np.arange(len(label_T)), np.flatnonzero(label_T)
    next_T = np.searchsorted(anomalous_A, at_T)
    after_T = np.abs(anomalous_A[np.minimum(next_T, len(anomalous_A) - 1)] - at_T)
    return np.minimum(after_T, np.abs(at_T - anomalous_A[np.maximum(next_T - 1, 0)]))
