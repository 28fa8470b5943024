"""The prompts of many tasks on the device, so that rows of all of them are forecast in one compiled call."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ptt_jax import predict, prompts, train
from ptt_jax.model import CrossMAE
from ptt_jax.parcel import Parcel


class Kind(NamedTuple):
    """What tasks must share to be asked in one call. tokens: future patches of a prompt, 0 where it does not matter."""

    lookback: int
    views: int
    dtype: str
    blocks: int  # of the decoder that have tokens of their own, or 1
    tokens: int


def kind(of: Parcel, card: dict[str, Any]) -> Kind:
    """Returns a task's kind on the backbone of a card."""
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


class Stacks:
    """A backbone, and a stack for each kind with all tasks that were asked so far.

    Tasks, rows and patches are padded to powers of two, so that few programs are ever compiled.
    """

    def __init__(self, card: dict[str, Any], backbone: Any) -> None:
        self.card, self.backbone, self.patch = card, backbone, int(card["architecture"]["patch"])
        self.found: dict[Kind, Stack] = {}

    def model(self, of: Kind) -> CrossMAE:
        return train.build(self.card["architecture"], of.dtype, views=of.views)

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
            prompt = prompts.stack([task.prompt for task in every.values()], count, doubled(len(every)))
            slot = {name: (c, task) for c, (name, task) in enumerate(every.items())}
            stack = self.found[of] = Stack(slot, jax.device_put(prompt))
        return stack

    def steps(self, of: Kind, horizon: int) -> int:
        """Returns the steps that are asked of the model for a horizon, to be cut."""
        return self.patch * (of.tokens or doubled(prompts.patches(horizon, self.patch)))

    def forecast(self, task_R: Sequence[Parcel], steps_R: Sequence[int], history_RT: np.ndarray) -> np.ndarray:
        """Returns y_RH float64, what each row's task says after its history in its units; NaN after a row's steps."""
        kinds = collections.defaultdict(list)
        for r, task in enumerate(task_R):
            kinds[kind(task, self.card)].append(r)
        y_RH = np.full((len(task_R), max(steps_R, default=0)), np.nan)
        for of, at in kinds.items():
            stack = self.stack(of, {task_R[r].name: task_R[r] for r in at})
            steps = self.steps(of, max(steps_R[r] for r in at))
            ask = functools.partial(predict.run, self.model(of), steps, self.backbone, stack.prompt)
            slot_R = np.array([stack.slot[task_R[r].name][0] for r in at], np.int32)
            x_RT, seen_RT, scaler = predict.ready(history_RT[at], of.lookback)
            parts, first = [], 0
            for rows, real in predict.blocks(x_RT, seen_RT):
                own_R = np.pad(slot_R[first : first + real], (0, len(rows[0]) - real))
                parts.append(np.asarray(ask(*rows, own_R))[:real])
                first += real
            here_RH = predict.restore(np.concatenate(parts), x_RT, seen_RT, scaler)[:, : y_RH.shape[1]]
            own_RH = np.arange(here_RH.shape[1]) < np.array([steps_R[r] for r in at])[:, None]
            y_RH[at, : here_RH.shape[1]] = np.where(own_RH, here_RH, np.nan)
        return y_RH


def doubled(count: int) -> int:
    """Returns the next power of two."""
    return int(2 ** (count - 1).bit_length())
