"""How a channel is standardised: by training rows, or by a history. numpy only."""

import dataclasses

import numpy as np

from ptt_jax.data import Series


@dataclasses.dataclass(frozen=True, eq=False)
class Scaler:
    """Standardises each channel: (values - mean) / scale, in float64, to float32 and back."""

    mean_C: np.ndarray  # float64
    scale_C: np.ndarray  # float64, above 0

    def transform(self, values_TC: np.ndarray, observed_TC: np.ndarray | None = None) -> np.ndarray:
        """To scaled units; 0, the mean, where not observed_TC, if it is given."""
        x_TC = ((values_TC - self.mean_C) / self.scale_C).astype(np.float32)
        return x_TC if observed_TC is None else np.where(observed_TC, x_TC, np.float32(0))

    def inverse(self, values: np.ndarray, axis: int = -1) -> np.ndarray:
        """Back to original units, float32; `axis` of `values` holds the channels."""
        shape = [1] * np.ndim(values)
        shape[axis] = -1
        return (values * self.scale_C.reshape(shape) + self.mean_C.reshape(shape)).astype(np.float32)


def fit_scaler(series: Series) -> Scaler:
    """Mean and standard deviation of observed train rows; a constant channel gets scale 1."""
    train = slice(*series.splits["train"])
    return standardise(series.values_TC[train], series.observed_TC[train])


def standardise(values_TC: np.ndarray, observed_TC: np.ndarray) -> Scaler:
    """Mean and standard deviation of each channel's observed values, as float32; a constant channel gets scale 1."""
    values_TC = values_TC.astype(np.float32).astype(np.float64)
    count_C = np.maximum(observed_TC.sum(0), 1)
    mean_C = np.where(observed_TC, values_TC, 0).sum(0) / count_C
    scale_C = np.sqrt(np.where(observed_TC, (values_TC - mean_C) ** 2, 0).sum(0) / count_C)
    # float64 adds equal float32 values without rounding, so that a constant channel has scale 0 exactly
    return Scaler(mean_C, np.where(scale_C == 0, 1.0, scale_C))


def exact(values_TC: np.ndarray, observed_TC: np.ndarray, still: float = 1.0) -> Scaler:
    """Returns `standardise` of float64 values: around a rough centre, so that float32 keeps the digits that move.

    still: the scale of a channel that stands still.
    """
    first_C = np.take_along_axis(values_TC, observed_TC.argmax(0)[None], 0)[0]
    centre_C = np.where(observed_TC.any(0), first_C, 0.0)
    reach_C = np.abs(np.where(observed_TC, values_TC - centre_C, 0)).max(0, initial=0)
    moves_C = reach_C > 0
    reach_C = np.where(moves_C, reach_C, 1.0)
    rough = standardise((values_TC - centre_C) / reach_C, observed_TC)
    scale_C = np.where(moves_C, rough.scale_C * reach_C, still)
    return Scaler(rough.mean_C * reach_C + centre_C, scale_C)
