"""What both loops share: chunks of steps, pauses to look at validation, going on after a stop."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from ptt_jax import mesh as meshes
from ptt_jax.checkpoint import Store
from ptt_jax.config import UserError
from ptt_jax.log import Log
from ptt_jax.step import State
from ptt_jax.tasks import Cached

CHUNK = 50  # steps in a dispatch: long enough to hide the host, short enough to show progress
STAGES = ("pretrain", "tune", "validation")


def keys(seed: int, stage: str) -> tuple[Array, Array]:
    """Returns the keys of a stage's weights and of its steps. Stages share no random number."""
    weights_key, steps_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), STAGES.index(stage)))
    return weights_key, steps_key


class Pause(NamedTuple):
    """Where a loop stands when it pauses: mean loss since the last pause, seconds since its start, seconds left."""

    state: State
    step: int
    loss: float
    seconds: float
    left: float


@dataclasses.dataclass
class Loop:
    """`steps` steps in chunks, and `pauses` pauses evenly spread over them, the last at the end."""

    stage: str
    steps: int
    pauses: int
    chunk: Callable[..., tuple[State, Array]]
    data: Cached
    key: Array
    log: Log

    def run(self, state: State) -> Iterator[Pause]:
        """Yields every pause that lies ahead of the state.

        Raises UserError when the loss is not finite; nothing is yielded then, so nothing of it is saved.
        """
        begun, first = time.monotonic(), int(state.step)
        done = first
        pauses = min(self.pauses, self.steps)
        for pause in (self.steps * (i + 1) // pauses for i in range(pauses)):
            total, since = 0.0, done
            while done < pause:
                count = min(CHUNK, pause - done)
                state, summed = self.chunk(state, self.data, self.key, jnp.int32(count))
                value = float(summed)
                check_finite(self.stage, f"between steps {done} and {done + count} the loss", value)
                done, total = done + count, total + value
                seconds = time.monotonic() - begun
                left = seconds / (done - first) * (self.steps - done)
                self.log.progress(f"{self.stage}  step {done} of {self.steps}  {left:.0f} s left")
            if done > since:
                yield Pause(state, done, total / (done - since), seconds, left)


def check_finite(stage: str, what: str, *values: float) -> None:
    """Raises UserError when a value is not finite, before anything of that state is saved."""
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"{stage} lost its footing: {what} is not finite; checkpoints before that are kept; "
            f"accepted: a smaller config.{stage}.learning_rate, say"
        )


def resume(store: Store, trees: dict[str, Any], log: Log, stage: str, mesh: Mesh) -> tuple[dict[str, Any], dict]:
    """Returns the trees as last saved and what was noted with them; the given trees and {} from an empty store."""
    latest = store.latest()
    log.rewind(stage, -1 if latest is None else latest)
    if latest is None:
        return trees, {}
    log.say(f"{stage}: going on from step {latest}")
    saved = {item: meshes.replicate(mesh, store.restore(latest, item, like)) for item, like in trees.items()}
    return saved, store.meta(latest)


def stalled(values: list[float], patience: int) -> bool:
    """Says whether the last `patience` looks brought nothing better than those before them."""
    return len(values) > patience and min(values[-patience:]) >= min(values[:-patience])
