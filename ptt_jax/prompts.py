"""Prompt tokens: all that a task learns.

A prompt is a tree of one float32 leaf: {'tokens_MD'}, M = one token for each future patch, or 1 shared by all of them;
or {'tokens_CMD'}, one for each channel and future patch; or {'tokens_IMD'}, one for each block of the decoder and
future patch. Several tasks that are asked at once are one {'tokens_CIMD'}, a task in the place of a channel.

On a backbone with a linear map a token has one number more, the last: the map's share of its patch
(`CrossMAE.foretell`), which tuning leaves as it is.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Prompt = dict[str, Any]


def patches(horizon: int, patch: int) -> int:
    """Returns M = ceil(H / P), the future patches that cover a horizon."""
    return -(-horizon // patch)


def make(kind: str, count: int, width: int, channels: int = 1, blocks: int = 1) -> Prompt:
    """Returns a prompt of zeros, so that step 0 of tuning is exactly the zero-shot forecast, unless a linear map is
    given a share of it. width: numbers of a token.

    kind: 'position' for `count` tokens, 'shared' for one, 'channel' for `count` of each channel, 'layer' for `count` of
    each block of the decoder (where zero is zero-shot to the bit in float32; under bfloat16 XLA may round one fewer
    time where there is something to add).
    """
    if kind == "layer":
        return {"tokens_IMD": jnp.zeros((blocks, count, width), jnp.float32)}
    if kind == "channel":
        return {"tokens_CMD": jnp.zeros((channels, count, width), jnp.float32)}
    return {"tokens_MD": jnp.zeros((count if kind == "position" else 1, width), jnp.float32)}


def tokens(prompt: Prompt, count: int, channel_R: Array) -> Array:
    """Returns prompt_MD for the first `count` future patches: a slice, since queries never see each other; of a prompt
    for each channel prompt_RMD, the rows' own; of one for each block prompt_IRMD with R = 1; of a stack both."""
    if "tokens_CIMD" in prompt:
        return jnp.moveaxis(prompt["tokens_CIMD"][channel_R, :, :count], 1, 0)
    if "tokens_IMD" in prompt:
        return prompt["tokens_IMD"][:, None, :count]
    if "tokens_CMD" in prompt:
        return prompt["tokens_CMD"][channel_R, :count]
    tokens_MD = prompt["tokens_MD"]
    return jnp.broadcast_to(tokens_MD, (count, tokens_MD.shape[1])) if len(tokens_MD) == 1 else tokens_MD[:count]


def cut(prompt: Prompt, count: int) -> Prompt:
    """Returns the prompt of a shorter horizon; axes in front of its own, of seeds and settings, stay."""
    return jax.tree.map(lambda tokens_MD: tokens_MD[..., :count, :], prompt)


def choose(better_SG: np.ndarray, new: Prompt, old: Prompt) -> Prompt:
    """Returns members' prompts, on the host: the new ones where they are better, else the old."""

    def of(new: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(better_SG.reshape(*better_SG.shape, *[1] * (old.ndim - 2)), new, old)

    return jax.tree.map(of, new, old)


def with_shares(many: Prompt, share_SG: np.ndarray) -> Prompt:
    """Returns members' prompts, on the host, in which a member's share of the linear map is the last number of each of
    its tokens; axes of share_SG may be 1."""

    def give(tokens_SGME: np.ndarray) -> np.ndarray:  # any axes between G and M
        tokens_SGME = np.array(tokens_SGME)
        tokens_SGME[..., -1] = share_SG.reshape(*share_SG.shape, *[1] * (tokens_SGME.ndim - 3))
        return tokens_SGME

    return jax.tree.map(give, many)


def shares_of(many: Prompt, setting: int) -> list[float]:
    """Returns the share of the linear map that each seed's prompt of a setting has."""
    (tokens_SGME,) = jax.tree.leaves(many)
    return [float(share) for share in tokens_SGME[:, setting, ..., -1].reshape(len(tokens_SGME), -1)[:, 0]]


def stack(each: Sequence[Prompt], count: int, capacity: int) -> Prompt:
    """Returns the prompts of several tasks as one of {'tokens_CIMD'}, on the host, with room for `capacity` tasks.

    What a task lacks of `count` patches is zero. All are of one kind, 'layer' or not; a shared token is repeated."""
    rows = []
    for prompt in each:
        (tokens,) = prompt.values()
        tokens_IMD = np.asarray(tokens).reshape(-1, *tokens.shape[-2:])
        if "tokens_MD" in prompt and len(tokens) == 1:
            tokens_IMD = np.repeat(tokens_IMD, count, axis=1)
        rows.append(np.pad(tokens_IMD, ((0, 0), (0, count - tokens_IMD.shape[1]), (0, 0))))
    tokens_CIMD = np.stack(rows)
    return {"tokens_CIMD": np.pad(tokens_CIMD, ((0, capacity - len(rows)), (0, 0), (0, 0), (0, 0)))}


def size(prompt: Prompt) -> int:
    """Returns how many numbers a task has of its own."""
    return sum(int(tokens.size) for tokens in jax.tree.leaves(prompt))


def quantiles(task: str) -> str:
    """Returns the name of the quantile prompts of a task."""
    return f"{task}-quantiles"


def name(data: str, horizons: tuple[int, ...]) -> str:
    """Returns the task's name, a folder: 'ETTh1-96-192-336-720', or 'ETTh1-1-to-100-by-100' when they are many."""
    few = [f"{horizons[0]}-to-{horizons[-1]}-by-{len(horizons)}"] if len(horizons) > 8 else map(str, horizons)
    return "-".join([data, *few])
