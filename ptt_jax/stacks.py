"""The prompts of many tasks on the device, so that rows of all of them are forecast in one compiled call."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ptt_jax import architecture, predict, prompts
from ptt_jax.model import CrossMAE
from ptt_jax.parcel import Parcel


class Kind(NamedTuple):
    """What tasks must share to be asked in one call. tokens: future patches of a prompt, 0 where it does not matter."""

    lookback: int
    views: int
    dtype: str
    blocks: int  # of the decoder that have tokens of their own, or 1
    tokens: int
    levels: tuple[float, ...] = ()  # of quantile prompts that are asked, too


def kind(of: Parcel, card: dict[str, Any]) -> Kind:
    """Returns a task's kind on the backbone of a card, when its forecast alone is asked for."""
    ((leaf, tokens),) = of.prompt.items()
    mutual = card["architecture"].get("decoder_attention") == "self"  # then what is asked changes the answer
    return Kind(
        of.cfg.lookback, of.cfg.views, of.cfg.compute_dtype, len(tokens) if leaf == "tokens_IMD" else 1,
        prompts.patches(of.horizon, card["architecture"]["patch"]) if mutual else 0,
    )  # fmt: skip


class Stack(NamedTuple):
    """Prompts of a kind, and where each task's lies."""

    slot: dict[str, tuple[int, Parcel]]
    prompt: prompts.Prompt  # tokens_CIMD
    quantiles: prompts.Prompt | None  # the same with an axis for levels in front


class Stacks:
    """A backbone, and a stack for each kind with all tasks that were asked so far.

    Tasks, rows and patches are padded to powers of two, so that few programs are ever compiled.
    """

    def __init__(self, card: dict[str, Any], backbone: Any) -> None:
        self.card, self.backbone, self.patch = card, backbone, int(card["architecture"]["patch"])
        self.found: dict[Kind, Stack] = {}

    def model(self, of: Kind) -> CrossMAE:
        return architecture.build(self.card["architecture"], of.dtype, views=of.views)

    def drop(self, name: str) -> None:
        """Forgets a task."""
        for stack in self.found.values():
            stack.slot.pop(name, None)

    def stack(self, of: Kind, tasks: Mapping[str, Parcel]) -> Stack:
        """Returns a kind's stack with these tasks in it, made anew when one is new, or another than it was."""
        stack = self.found.get(of)
        if stack is None or any(stack.slot.get(name, (0, None))[1] is not task for name, task in tasks.items()):
            every = {name: task for name, (_, task) in stack.slot.items()} if stack else {}
            every |= tasks
            count = of.tokens or doubled(max(prompts.patches(task.horizon, self.patch) for task in every.values()))
            trees = [[task.prompt for task in every.values()]]
            for q in range(len(of.levels)):
                trees.append([{k: v[q] for k, v in (task.quantiles or {}).items()} for task in every.values()])
            first, *rest = [prompts.stack(each, count, doubled(len(every))) for each in trees]
            told = jax.tree.map(lambda *each: np.stack(each), *rest) if rest else None
            slot = {name: (c, task) for c, (name, task) in enumerate(every.items())}
            stack = self.found[of] = Stack(slot, *jax.device_put((first, told)))
        return stack

    def steps(self, of: Kind, horizon: int) -> int:
        """Returns the steps that are asked of the model for a horizon, to be cut."""
        return self.patch * (of.tokens or doubled(prompts.patches(horizon, self.patch)))

    def forecast(self, task_R: Sequence[Parcel], steps_R: Sequence[int], history_RT: np.ndarray) -> np.ndarray:
        """Returns y_RH float64, what each row's task says after its history in its units; NaN after a row's steps."""
        return self.answer([kind(task, self.card) for task in task_R], task_R, steps_R, history_RT)[0]

    def told(
        self, task_R: Sequence[Parcel], steps_R: Sequence[int], history_RT: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns y_RH as `forecast` does, and away_LRH (`predict.Predictor.told`) of as many levels as a task of the
        rows has; NaN where a row's own has fewer."""
        kind_R = [kind(task, self.card)._replace(levels=task.levels) for task in task_R]
        return self.answer(kind_R, task_R, steps_R, history_RT)

    def answer(
        self, kind_R: Sequence[Kind], task_R: Sequence[Parcel], steps_R: Sequence[int], history_RT: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns y_RH and away_LRH, a call for each kind of row (and `predict.ROWS` of these)."""
        rows_of = collections.defaultdict(list)
        for r, of in enumerate(kind_R):
            rows_of[of].append(r)
        y_RH = np.full((len(task_R), max(steps_R, default=0)), np.nan)
        most = max((len({*of.levels, 0.5}) for of in rows_of if of.levels), default=0)
        away_LRH = np.full((most, *y_RH.shape), np.nan)
        for of, at in rows_of.items():
            stack = self.stack(of, {task_R[r].name: task_R[r] for r in at})
            steps = self.steps(of, max(steps_R[r] for r in at))
            slot_R = np.array([stack.slot[task_R[r].name][0] for r in at], np.int32)
            x_RT, seen_RT, scaler = predict.ready(history_RT[at], of.lookback)
            parts, first = [], 0
            how = functools.partial(predict.run_levels if of.levels else predict.run, self.model(of), steps)
            asked = (stack.prompt, stack.quantiles) if of.levels else (stack.prompt,)
            for rows, real in predict.blocks(x_RT, seen_RT):
                own_R = np.pad(slot_R[first : first + real], (0, len(rows[0]) - real))
                parts.append(np.asarray(how(self.backbone, *asked, *rows, own_R))[..., :real, :])
                first += real
            here, width = np.concatenate(parts, -2), min(steps, y_RH.shape[1])
            own_RH = np.arange(width) < np.array([steps_R[r] for r in at])[:, None]
            if of.levels:
                here_RH, here_LRH = predict.restore_levels(here, of.levels, x_RT, seen_RT, scaler)
                away_LRH[: len(here_LRH), at, :width] = np.where(own_RH, here_LRH[..., :width], np.nan)
            else:
                here_RH = predict.restore(here, x_RT, seen_RT, scaler)
            y_RH[at, :width] = np.where(own_RH, here_RH[:, :width], np.nan)
        return y_RH, away_LRH


def doubled(count: int) -> int:
    """Returns the next power of two."""
    return int(2 ** (count - 1).bit_length())
