"""What both loops share: chunks of steps, and pauses to look at validation."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ptt_jax import memory, preemption, processes
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.preemption import Preempted
from ptt_jax.step import State, Sums
from ptt_jax.windows import Span

CHUNK = 50  # most steps in a dispatch: long enough to hide the host, short enough to show progress
STAGES = ("pretrain", "tune", "validation")


def keys(seed: int, stage: str) -> tuple[Array, Array]:
    """Returns the keys of a stage's weights and of its steps. Stages share no random number."""
    weights_key, steps_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), STAGES.index(stage)))
    return weights_key, steps_key


class Pause(NamedTuple):
    """Where a loop stands when it pauses: mean loss since the last pause, seconds since its start, seconds left.

    carried: None; where the process was told to end between two pauses, what is saved for the next one: validation is
    not due, and the loop ends.
    """

    state: State
    step: int
    loss: float
    seconds: float
    left: float
    carried: dict[str, Any] | None = None


@dataclasses.dataclass
class Loop:
    """`steps` steps in chunks, and `pauses` pauses evenly spread over them, the last at the end.

    chunk: of `step.many`, with the data and the inputs that it takes. order: f(steps_J) -> the rows of `span` that they
    read, row_JR or, for seeds with rows of their own, row_JSR. profile: a folder for a trace of one warm chunk. words:
    f(row_R) -> where these rows lie, for a sentence. knob: of the config, what to turn when the loss is not finite.
    encode: f(bytes) -> the data with a cache of encodings of at most so many, for when a step does not fit beside it.
    carried: of the Pause that it goes on from.
    """

    stage: str
    steps: int
    pauses: int
    chunk: memory.Program
    data: Cached
    span: Span
    order: Callable[[Array], Array]
    inputs: tuple
    log: Log
    profile: str = ""
    words: Callable[[np.ndarray], str] = str
    knob: str = ""
    encode: Callable[[int], Cached] | None = None
    carried: dict[str, Any] | None = None

    def chunks(self, first: int) -> list[list[tuple[int, int]]]:
        """Returns (begin, end) of the dispatches up to each pause that lies ahead, as equal as may be: one program
        serves all, and streamed data is cut for its longest. Those of a loop that goes on are those of the whole one.
        """
        most = self.data.panel.fits(self.span, self.like(1).size)
        most = min(CHUNK, most or CHUNK)
        pauses, since, out = min(self.pauses, self.steps), 0, []
        for pause in (self.steps * (i + 1) // pauses for i in range(pauses)):
            count = -(-(pause - since) // most)
            ends = [since + (pause - since) * i // count for i in range(count + 1)]
            ahead = [(max(begin, first), end) for begin, end in itertools.pairwise(ends) if end > first]
            out += [ahead] if ahead else []
            since = pause
        return out

    def like(self, steps: int) -> jax.ShapeDtypeStruct:
        """Returns the shape of the rows that so many steps read."""
        return jax.eval_shape(self.order, jnp.arange(steps))

    @property
    def longest(self) -> int:
        """The most steps of a dispatch, of a loop from the start."""
        return max((end - begin for until in self.chunks(0) for begin, end in until), default=0)

    def foresee(self, state: State, beside: Any = None) -> int:
        """Returns the bytes of each device that a chunk will take, of a state, and of data, that may be shapes; beside
        the trees that are given, too. Raises TooLarge when it will not fit, even without a cache of encodings."""
        if not self.steps:
            return 0
        fed = self.data.panel.like(self.span, self.like(self.longest).shape)
        try:
            return self.chunk.foresee(state, jnp.int32(0), self.data.on(fed), *self.inputs, beside=beside)
        except memory.TooLarge:
            if not self.data.stored:
                raise
        return dataclasses.replace(self, data=self.data.bare()).foresee(state, beside)

    def run(self, state: State) -> Iterator[Pause]:
        """Yields every pause that lies ahead of the state; and one more where the process is told to end between them.

        Raises UserError when the loss is not finite; nothing is yielded then, so nothing of it is saved. Raises
        Preempted when the process was told to end, after what was learned has been yielded.
        """
        begun, first = time.monotonic(), int(state.step)
        chunks = self.chunks(first)
        begins = [begin for until in chunks for begin, _ in until]
        longest = self.longest
        since, total = (self.carried["since"], self.carried["sum"]) if self.carried else (first, 0.0)

        def rows(dispatch: int) -> Array:
            return self.order(begins[dispatch] + jnp.arange(longest))

        if begins:
            self.log.progress(f"{self.stage}  step {first} of {self.steps}  compiling")
        with preemption.deferred(), contextlib.closing(self.data.panel.feed(self.span, rows, len(begins))) as feed:
            for until in chunks:
                waiting: list[tuple[int, Sums, Callable[[], bool]]] = []
                pause, told = until[-1][1], False
                for begin, done in until:
                    wish = processes.anyone(preemption.told)
                    state, summed = self.dispatch(state, done - begin, next(feed), warm=begin > first)
                    waiting.append((done - begin, summed, wish))
                    told = told or (jax.process_count() == 1 and wish())
                    # The last chunk's sums are fetched while this one runs: the device never waits for the host.
                    while len(waiting) > (done < pause and not told):
                        _, summed, wish = waiting.pop(0)
                        total, told = total + self.fetch(summed), told or wish()
                        at = done - (waiting[0][0] if waiting else 0)
                        seconds = time.monotonic() - begun
                        left = seconds / (at - first) * (self.steps - at)
                        self.log.progress(f"{self.stage}  step {at} of {self.steps}  {left:.0f} s left")
                    if told and done < pause:
                        yield Pause(state, done, float("nan"), seconds, left, {"since": since, "sum": total})
                        raise Preempted
                yield Pause(state, pause, total / (pause - since), seconds, left)
                if processes.any_of(preemption.told()):
                    raise Preempted
                since, total = pause, 0.0
        if self.profile:
            self.log.say(f"{self.stage}: no trace, since no chunk of steps came after the one that compiles")

    def dispatch(self, state: State, count: int, panel: Any, *, warm: bool) -> tuple[State, Sums]:
        """Starts a chunk; traces the first warm one, if asked to."""
        if not warm:
            return self.first(state, count, panel)
        arguments = jnp.int32(count), self.data.on(panel), *self.inputs
        if not self.profile:
            return self.chunk(state, *arguments)
        folder, self.profile = f"{self.profile}/{self.stage}", ""
        jax.block_until_ready(state)
        with jax.profiler.trace(folder):
            out = jax.block_until_ready(self.chunk(state, *arguments))
        self.log.say(f"{self.stage}: a trace of {count} steps is in {folder}")
        return out

    def first(self, state: State, count: int, panel: Any) -> tuple[State, Sums]:
        """Starts the first chunk. What does not fit beside a cache of encodings makes that smaller, and says so; raises
        TooLarge when it does not fit without one."""
        while True:
            try:
                return self.chunk(state, jnp.int32(count), self.data.on(panel), *self.inputs)
            except memory.TooLarge as e:
                if not self.data.stored or self.encode is None:
                    raise
                most, short = self.data.encoded_bytes, e.short
            for array in jax.tree.leaves(self.data.encoded):
                array.delete()  # before others are made, whoever else knows it
            self.data = self.encode(max(most - short, 0))
            self.log.say(
                f"memory: {self.stage} does not fit beside {memory.words(most)} of encodings; "
                f"{memory.words(self.data.encoded_bytes)} are kept, the other rows are encoded at each step"
            )

    def fetch(self, summed: Sums) -> float:
        """Returns a chunk's summed loss, of a sweep the mean over seeds of each seed's best setting.

        A setting of a sweep may diverge; all settings of a seed may not. Raises UserError then, which names the step at
        which the last of them did, and the rows that it read.
        """
        losses_SG = np.atleast_2d(np.asarray(summed.loss, np.float64))
        best_S = np.where(np.isfinite(losses_SG), losses_SG, np.inf).min(1)
        if np.isfinite(best_S).all():
            return float(best_S.mean())
        first_SG = np.atleast_2d(np.asarray(summed.first))
        lost_S = np.where(np.isfinite(best_S), np.iinfo(np.int32).max, first_SG.max(1))
        seed = int(lost_S.argmin())
        bad_R = processes.whole(summed.bad_R).reshape(*first_SG.shape, -1)[seed, first_SG[seed].argmax()]
        step = int(lost_S[seed])
        row_R = processes.whole(self.order(jnp.arange(step, step + 1))).reshape(-1, len(bad_R))
        row_R = row_R[seed if len(row_R) > 1 else 0]
        every = bad_R.all() or not bad_R.any()  # finite each, and not their sum
        where = "in all" if every else f"in {bad_R.sum()} of the"
        raise lost(
            self.stage, f"the loss of step {step}, {where} {len(bad_R)} rows of its batch "
            f"({self.words(row_R if every else row_R[bad_R])})", self.knob or f"{self.stage}.learning_rate",
        )  # fmt: skip


def parts(state: State, count: Array, data: Cached, *inputs: Any) -> dict[str, int]:
    """Returns what a chunk's arguments are, in words, and their bytes, for `memory.Program`."""
    weights = memory.nbytes(state)
    return {"weights and optimiser": weights, "series": memory.nbytes(data.panel), "encodings": data.encoded_bytes}


def lost(stage: str, what: str, knob: str) -> UserError:
    """Returns the error of a stage in which something is not finite."""
    return UserError(
        f"{stage} lost its footing: {what} is not finite; checkpoints before that are kept; accepted: a smaller "
        f"config.{knob}, say"
    )


def check_finite(stage: str, what: str, *values: float, knob: str = "") -> None:
    """Raises UserError when a value is not finite, before anything of that state is saved. knob: of the config, what to
    turn, if it is not the stage's learning rate."""
    if not all(map(math.isfinite, values)):
        raise lost(stage, what, knob or f"{stage}.learning_rate")


def stalled(values: list[float], patience: int) -> bool:
    """Says whether the last `patience` looks brought nothing better than those before them."""
    return len(values) > patience and min(values[-patience:]) >= min(values[:-patience])
