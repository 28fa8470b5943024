"""What validation said while prompts, or weights, learned: which look is best, and who has stopped."""

import dataclasses

import numpy as np

from ptt_jax.loop import stalled


def finite(x: np.ndarray) -> np.ndarray:
    """Returns x with inf where it is nan or infinite, so that it is never the smallest."""
    return np.where(np.isfinite(x), x, np.inf)


def logged(train: dict[str, np.ndarray], validation: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns {horizon: training rows' MSE} of each seed's best setting by validation; without what is not finite."""
    best = {h: finite(v).argmin(1)[:, None] for h, v in validation.items()}
    means = {h: float(np.take_along_axis(v, best[h], 1).mean()) for h, v in train.items()}
    return {h: mse for h, mse in means.items() if np.isfinite(mse)}


@dataclasses.dataclass
class History:
    """What validation said at each look, {horizon: MSE_SG}, nan for a member that diverged.

    A member is what it would be alone: looks after the one at which it had stopped by itself count for nothing.
    """

    patience: int
    looks: list[tuple[int, dict[str, np.ndarray]]]

    @classmethod
    def load(cls, patience: int, saved: list) -> "History":
        looks = [(at, {h: np.array(v, np.float64) for h, v in values.items()}) for at, values in saved]
        return cls(patience, looks)

    def save(self) -> list:
        """Returns it as lists for JSON, which has no nan."""
        return [
            [at, {h: [[x if np.isfinite(x) else None for x in row] for row in v.tolist()] for h, v in values.items()}]
            for at, values in self.looks
        ]

    def running_SG(self) -> np.ndarray:
        """Returns which members would go on alone: a horizon of theirs got better in the last `patience` looks."""
        stacks = [np.stack([finite(values[h]) for _, values in self.looks]) for h in self.looks[0][1]]
        running_SG = np.ones(stacks[0].shape[1:], bool)
        for s, g in np.ndindex(running_SG.shape):
            running_SG[s, g] = not any(
                all(stalled(list(stack[:end, s, g]), self.patience) for stack in stacks)
                for end in range(1, len(self.looks) + 1)
            )
        return running_SG

    def stack(self, horizon: str) -> np.ndarray:
        """Returns mse_ASG over the looks (A), infinite where a member diverged or had stopped before."""
        out = [finite(self.looks[0][1][horizon])]
        for a, (_, values) in enumerate(self.looks[1:], 1):
            running_SG = History(self.patience, self.looks[:a]).running_SG()
            out.append(np.where(running_SG, finite(values[horizon]), np.inf))
        return np.stack(out)

    def better(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns {horizon: better_SG}: where `values` are below every look so far, of members that still run."""
        if not self.looks:
            return {h: np.ones(v.shape, bool) for h, v in values.items()}
        return {h: self.running_SG() & (v < self.stack(h).min(0)) for h, v in values.items()}

    def setting(self, horizon: str) -> int:
        """Returns the setting that serves a horizon best: by the mean over seeds of each seed's best look."""
        return int(self.stack(horizon).min(0).mean(0).argmin())

    def steps(self, horizon: str, setting: int) -> list[int]:
        """Returns the step of each seed's best look, the first of equals."""
        return [self.looks[a][0] for a in self.stack(horizon)[:, :, setting].argmin(0)]

    def settled(self) -> bool:
        """Says whether every member has stopped."""
        return not self.running_SG().any()
