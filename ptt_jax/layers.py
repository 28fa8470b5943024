"""The pieces of a Cross-MAE: arrays in, arrays out.

R rows (independent univariate windows)  L steps of a window  P patch  N patches  D width  K heads  F mlp width
Q queries  S keys.  A suffix on a name gives its axes: `x_RNP`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

# A window that hardly moves is divided by this instead of its own spread (scaled units, where a channel's spread over
# the training rows is 1): the same floor on the way in and on the way out, so that the round trip is exact.
SCALE_FLOOR = 1e-3


def instance_stats(x_RL: Array, seen_RL: Array) -> tuple[Array, Array]:
    """Returns mean_R1 and scale_R1 of the values with seen = 1 (RevIN, Kim et al. 2022, without affine parameters).

    The scale is the standard deviation, at least SCALE_FLOOR; a row where nothing is seen gets mean 0.
    """
    count_R1 = jnp.maximum(seen_RL.sum(-1, keepdims=True), 1)
    mean_R1 = (x_RL * seen_RL).sum(-1, keepdims=True) / count_R1
    # Two passes: the sum of squares of a window at 1e8 has no digits left for its variance.
    variance_R1 = (((x_RL - mean_R1) * seen_RL) ** 2).sum(-1, keepdims=True) / count_R1
    return mean_R1, jnp.maximum(jnp.sqrt(variance_R1), SCALE_FLOOR)


def patchify(x_RL: Array, patch: int) -> Array:
    """Returns x_RNP: L steps as N = L / P equal pieces."""
    return x_RL.reshape(*x_RL.shape[:-1], -1, patch)


def angles(position_RN: Array, count: int, longest: float) -> Array:
    """Returns the phase (R, N, count) of `count` waves whose periods spread from 2 to `longest` patches."""
    frequency_h = 2 * jnp.pi / jnp.geomspace(2.0, longest, count)
    return position_RN[..., None].astype(jnp.float32) * frequency_h[None, None]


def rotate(x_RNKh: Array, position_RN: Array, longest: float) -> Array:
    """Returns queries or keys turned by their position (RoFormer, Su et al. 2021), in float32.

    position_RN counts patches; R may be 1 when all rows share their positions.
    """
    half = x_RNKh.shape[-1] // 2
    angle_RN1h = angles(position_RN, half, longest)[:, :, None, :]
    sin, cos = jnp.sin(angle_RN1h), jnp.cos(angle_RN1h)
    a, b = x_RNKh[..., :half].astype(jnp.float32), x_RNKh[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_RNKh.dtype)


def sincos(position_RN: Array, width: int, longest: float) -> Array:
    """Returns e_RND, sines and cosines of the position with periods that fit the window (not base 10000)."""
    angle = angles(position_RN, width // 2, longest)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Attention(nn.Module):
    """Multi-head attention of queries over keys; `longest` > 0 rotates both by their positions."""

    heads: int
    longest: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, q_RQD: Array, at_RQ: Array, z_RSD: Array, at_RS: Array, keep_RS: Array | None) -> Array:
        width = q_RQD.shape[-1]

        def project(name: str, x: Array) -> Array:
            return nn.DenseGeneral((self.heads, width // self.heads), dtype=self.dtype, name=name)(x)

        q, k, v = project("query", q_RQD), project("key", z_RSD), project("value", z_RSD)
        if self.longest:
            q, k = rotate(q, at_RQ, self.longest), rotate(k, at_RS, self.longest)
        mask = None if keep_RS is None else keep_RS[:, None, None, :]
        out_RQKh = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(out_RQKh)


class Block(nn.Module):
    """Pre-norm Transformer block. With `z_RSD` its attention is cross-attention and queries never see each other;
    without, self-attention."""

    heads: int
    mlp: int
    dropout: float
    longest: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x_RQD: Array,
        at_RQ: Array,
        z_RSD: Array | None = None,
        at_RS: Array | None = None,
        keep_RS: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        def norm(name: str, x: Array) -> Array:
            return nn.LayerNorm(dtype=self.dtype, name=name)(x)

        def drop(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        q_RQD = norm("norm_attention", x_RQD)
        keys, at = (q_RQD, at_RQ) if z_RSD is None or at_RS is None else (z_RSD, at_RS)
        attention = Attention(self.heads, self.longest, self.dtype, name="attention")
        x_RQD = x_RQD + drop(attention(q_RQD, at_RQ, keys, at, keep_RS))
        h_RQF = nn.Dense(self.mlp, dtype=self.dtype, name="mlp_in")(norm("norm_mlp", x_RQD))
        return x_RQD + drop(nn.Dense(x_RQD.shape[-1], dtype=self.dtype, name="mlp_out")(nn.gelu(h_RQF)))
