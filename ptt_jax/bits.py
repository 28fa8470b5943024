"""Random bits that follow from a key and a position by a few integer operations, wherever they are made."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def mix(x: Array) -> Array:
    """Returns 32 well-mixed bits (the finaliser of MurmurHash3, Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def coins(key: Array, shape: tuple[int, ...], share: float) -> Array:
    """Returns bool, True for about `share` of the positions, each by itself.

    A coin is a function of (key, position) alone: made anew in the backward pass instead of stored, and on each device
    for its own rows. Threefry is the stronger one and costs several times as much; keys and masks are made of it.
    """
    one, two = jax.random.bits(key, (2,), jnp.uint32)
    position = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    # Twice: after one round, keys with like high bits would throw the same coins in another order.
    return mix(mix(position ^ one) ^ two) < jnp.uint32(min(round(share * 2**32), 2**32 - 1))
