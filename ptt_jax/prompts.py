"""Prompt tokens: all that a task learns.

A prompt is a tree {'tokens_MD': float32}, M = one token for each future patch, or 1 shared by all of them.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

Prompt = dict[str, Any]


def patches(horizon: int, patch: int) -> int:
    """Returns M = ceil(H / P), the future patches that cover a horizon."""
    return -(-horizon // patch)


def make(kind: str, count: int, width: int) -> Prompt:
    """Returns a prompt of zeros, so that step 0 of tuning is exactly the zero-shot forecast.

    kind: 'position' for `count` tokens, 'shared' for one.
    """
    return {"tokens_MD": jnp.zeros((count if kind == "position" else 1, width), jnp.float32)}


def tokens(prompt: Prompt, count: int) -> Array:
    """Returns prompt_MD for the first `count` future patches: a slice, since queries never see each other."""
    tokens_MD = prompt["tokens_MD"]
    return jnp.broadcast_to(tokens_MD, (count, tokens_MD.shape[1])) if len(tokens_MD) == 1 else tokens_MD[:count]


def cut(prompt: Prompt, count: int) -> Prompt:
    """Returns the prompt of a shorter horizon."""
    return {"tokens_MD": prompt["tokens_MD"][:count]}


def size(prompt: Prompt) -> int:
    """Returns how many numbers were tuned."""
    return int(prompt["tokens_MD"].size)


def name(data: str, horizons: tuple[int, ...]) -> str:
    """Returns the task's name, a folder: 'ETTh1-96-192-336-720', or 'ETTh1-1-to-100-by-100' when they are many."""
    few = [f"{horizons[0]}-to-{horizons[-1]}-by-{len(horizons)}"] if len(horizons) > 8 else map(str, horizons)
    return "-".join([data, *few])
