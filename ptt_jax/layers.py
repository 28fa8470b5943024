"""The pieces of a Cross-MAE: arrays in, arrays out.

R rows (independent univariate windows)  L steps of a window  P patch  N patches  D width  K heads  F mlp width
Q queries  S keys  V, M visible and queried patches.  A suffix on a name gives its axes: `x_RNP`.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ptt_jax.bits import coins

# A window that hardly moves is divided by this instead of its own spread (scaled units, where a channel's spread over
# the training rows is 1): the same floor on the way in and on the way out, so that the round trip is exact.
SCALE_FLOOR = 1e-3

MASKED = -1e30  # added to a logit that no query may see

Memory = tuple[Array, Array]  # keys and values (R, S, K, h) of what a block reads


def instance_stats(x_RL: Array, seen_RL: Array) -> tuple[Array, Array]:
    """Returns mean_R1 and scale_R1 of the values with seen = 1 (RevIN, Kim et al. 2022, without affine parameters).

    The scale is the standard deviation, at least SCALE_FLOOR; a row where nothing is seen gets mean 0.
    """
    x_RL = jnp.where(seen_RL > 0, x_RL, 0)  # a product would let NaN and infinity through
    count_R1 = jnp.maximum(seen_RL.sum(-1, keepdims=True), 1)
    mean_R1 = x_RL.sum(-1, keepdims=True) / count_R1
    # Two passes: the sum of squares of a window at 1e8 has no digits left for its variance.
    variance_R1 = (((x_RL - mean_R1) * seen_RL) ** 2).sum(-1, keepdims=True) / count_R1
    return mean_R1, jnp.maximum(jnp.sqrt(variance_R1), SCALE_FLOOR)


def centre(x_RT: Array, observed_RT: Array) -> tuple[Array, Array]:
    """Returns a history around its own mean, 0 where missing, and mean_R1."""
    mean_R1, _ = instance_stats(x_RT, observed_RT.astype(jnp.float32))
    return jnp.where(observed_RT, x_RT - mean_R1, 0), mean_R1


def linear(weights_TH: Array, x_RT: Array, observed_RT: Array) -> Array:
    """Returns y_RH: one linear map for all channels, around the mean of what it reads, a history's last steps; where a
    history is shorter or misses values, that mean stands for them.

    Trend and season of DLinear (Zeng et al. 2023) are linear in the history too: the class of functions is the same.
    """
    missing = max(len(weights_TH) - x_RT.shape[1], 0)
    x_RT, observed_RT = (jnp.pad(a[:, -len(weights_TH) :], ((0, 0), (missing, 0))) for a in (x_RT, observed_RT))
    x_RT, mean_R1 = centre(x_RT, observed_RT)
    # Weights of a small ridge cancel, which takes more digits than an accelerator's matrix units keep by default.
    return jnp.matmul(x_RT, weights_TH, precision=jax.lax.Precision.HIGHEST) + mean_R1


def patchify(x_RL: Array, patch: int) -> Array:
    """Returns x_RNP: L steps as N = L / P equal pieces."""
    return x_RL.reshape(*x_RL.shape[:-1], -1, patch)


def normalise(x_RNP: Array, mean_R1: Array, scale_R1: Array) -> Array:
    return (x_RNP - mean_R1[..., None]) / scale_R1[..., None]


def flatten(x_RNP: Array) -> Array:
    return x_RNP.reshape(x_RNP.shape[0], -1)


def pick(x_RNP: Array, at_RM: Array) -> Array:
    """Returns x_RMP, the patches at the given positions of each row."""
    return jnp.take_along_axis(x_RNP, at_RM[..., None], axis=1)


def spread(a_RVP: Array, at_RV: Array, patches: int, fill: Any) -> Array:
    """Returns a_RNP (or a_RN of an a_RV): `fill`, and at the given positions of each row (or at_1V) what is given."""
    rows = len(a_RVP)
    empty_RNP = jnp.full((rows, patches, *a_RVP.shape[2:]), fill, a_RVP.dtype)
    return empty_RNP.at[jnp.arange(rows)[:, None], at_RV].set(a_RVP)


def keepable(seen_RVP: Array) -> Array:
    """Returns keep_RV: patches with any observed value; all of them in a row without one, since softmax needs a key."""
    keep_RV = seen_RVP.any(-1)
    return keep_RV | ~keep_RV.any(-1, keepdims=True)


def angles(position_RN: Array, count: int, longest: float) -> Array:
    """Returns the phase (R, N, count) of `count` waves whose periods spread from 2 to `longest` patches; with longest 0
    those of base 10000, 2 pi to nearly 20000 pi (Vaswani et al. 2017)."""
    usual = not longest
    frequency_h = 1e4 ** (-jnp.arange(count) / count) if usual else 2 * jnp.pi / jnp.geomspace(2.0, longest, count)
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
    """Returns e_RND, sines and cosines of the position; their periods are those of `angles`."""
    angle = angles(position_RN, width // 2, longest)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def product(x: Array, kernel: Array, dims: tuple, precision: Any = None, out: DTypeLike | None = None) -> Array:
    """Returns the product of a layer: the last axes of x with the first axes of the kernel, rows and patches as one
    axis. For linen's `dot_general`, whose gradient of the kernel otherwise takes XLA:CPU twice the time."""
    (axes, first), batch = dims
    assert (*first,) == (*range(len(axes)),), dims  # what linen's dense layers ask for
    assert batch == ((), ()), dims
    inner = math.prod(kernel.shape[: len(axes)])
    y = jnp.dot(x.reshape(-1, inner), kernel.reshape(inner, -1), precision=precision, preferred_element_type=out)
    return y.reshape(*x.shape[: x.ndim - len(axes)], *kernel.shape[len(axes) :])


def promote_all_but_bias(*arrays: Array | None, dtype: Any = None, inexact: bool = True) -> list[Array | None]:
    """Returns inputs, kernel and bias as a linen layer computes with them; what is added to float32 sums stays so."""
    *factors, bias = arrays
    return [*nn.dtypes.promote_dtype(*factors, dtype=dtype, inexact=inexact), bias]


def attend(q_RQKh: Array, k_RSKh: Array, v_RSKh: Array, keep_RS: Array | None) -> Array:
    """Returns the softmax-weighted mean of the values, (R, Q, K, h); keys with keep = False weigh nothing.

    Logits, softmax and sums are float32. The sum divides the result and not each weight, which leaves the backward pass
    without a reduction over the weights. Queries of one row (q_1QKh) are asked of every row: the keys of all rows are
    then one matrix for each head.
    """
    shared = q_RQKh.shape[0] == 1  # and not len(): an exported program has any number of rows
    pairs = "QKh,RSKh->RKQS" if shared else "RQKh,RSKh->RKQS"
    q = q_RQKh[0] if shared else q_RQKh
    logits_RKQS = jnp.einsum(pairs, q, k_RSKh, preferred_element_type=jnp.float32)
    if keep_RS is not None:
        logits_RKQS = logits_RKQS + jnp.where(keep_RS, 0.0, MASKED)[:, None, None, :]
    top_RKQ1 = jax.lax.stop_gradient(logits_RKQS.max(-1, keepdims=True))
    weight_RKQS = jnp.exp(logits_RKQS - top_RKQ1)
    sum_RQK1 = weight_RKQS.sum(-1).swapaxes(1, 2)[..., None]
    weighted = jnp.einsum(
        "RKQS,RSKh->RQKh", weight_RKQS.astype(v_RSKh.dtype), v_RSKh, preferred_element_type=jnp.float32
    )
    return (weighted / sum_RQK1).astype(v_RSKh.dtype)


class Attention(nn.Module):
    """Multi-head attention of queries over keys; `longest` > 0 rotates both by their positions."""

    width: int
    heads: int
    longest: float
    dtype: DTypeLike

    def setup(self) -> None:
        def project(name: str) -> nn.DenseGeneral:
            shape = (self.heads, self.width // self.heads)
            return nn.DenseGeneral(shape, dtype=self.dtype, dot_general=product, name=name)

        self.query, self.key, self.value = project("query"), project("key"), project("value")
        self.out = nn.DenseGeneral(self.width, (-2, -1), dtype=self.dtype, dot_general=product, name="out")

    def project_keys(self, z_RSD: Array, at_RS: Array) -> Memory:
        """Returns keys and values. They depend on what is read alone, not on who reads it."""
        k_RSKh, v_RSKh = self.key(z_RSD), self.value(z_RSD)
        return (rotate(k_RSKh, at_RS, self.longest) if self.longest else k_RSKh), v_RSKh

    def attend(self, x_RQD: Array, at_RQ: Array, k_RSKh: Array, v_RSKh: Array, keep_RS: Array | None) -> Array:
        """Returns what the queries read; keys with keep = False are seen by none."""
        q_RQKh = self.query(x_RQD) * (self.width // self.heads) ** -0.5
        if self.longest:
            q_RQKh = rotate(q_RQKh, at_RQ, self.longest)
        return self.out(attend(q_RQKh, k_RSKh, v_RSKh, keep_RS))


class Block(nn.Module):
    """Pre-norm Transformer block. Given a memory its attention is cross-attention and queries never see each other;
    without one, self-attention. A `mutual` one is an ordinary decoder's: its queries see each other before the memory.
    """

    width: int
    heads: int
    mlp: int
    dropout: float
    longest: float
    dtype: DTypeLike
    mutual: bool = False

    def setup(self) -> None:
        if self.mutual:
            self.norm_self = nn.LayerNorm(dtype=self.dtype, name="norm_self")
            self.self_attention = Attention(self.width, self.heads, self.longest, self.dtype, name="self_attention")
        self.norm_attention = nn.LayerNorm(dtype=self.dtype, name="norm_attention")
        self.attention = Attention(self.width, self.heads, self.longest, self.dtype, name="attention")
        self.norm_mlp = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")
        self.mlp_in = nn.Dense(self.mlp, dtype=self.dtype, dot_general=product, name="mlp_in")
        self.mlp_out = nn.Dense(self.width, dtype=self.dtype, dot_general=product, name="mlp_out")

    def memory(self, z_RSD: Array, at_RS: Array) -> Memory:
        """Returns what `__call__` reads of z_RSD: this block's keys and values."""
        return self.attention.project_keys(z_RSD, at_RS)

    def __call__(
        self,
        x_RQD: Array,
        at_RQ: Array,
        memory: Memory | None = None,
        keep_RS: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        if self.mutual:
            q_RQD = self.norm_self(x_RQD)
            k_RQKh, v_RQKh = self.self_attention.project_keys(q_RQD, at_RQ)
            x_RQD = x_RQD + self.drop(self.self_attention.attend(q_RQD, at_RQ, k_RQKh, v_RQKh, None), train)
        q_RQD = self.norm_attention(x_RQD)
        k_RSKh, v_RSKh = self.memory(q_RQD, at_RQ) if memory is None else memory
        read_RQD = self.attention.attend(q_RQD, at_RQ, k_RSKh, v_RSKh, keep_RS)
        x_RQD = x_RQD + self.drop(read_RQD, train)
        out_RQD = self.mlp_out(nn.gelu(self.mlp_in(self.norm_mlp(x_RQD))))
        return x_RQD + self.drop(out_RQD, train)

    def drop(self, x: Array, train: bool) -> Array:
        """Returns x with a share `dropout` of its elements zero and the others larger by as much."""
        if not train or not self.dropout:
            return x
        keep = coins(self.make_rng("dropout"), x.shape, 1 - self.dropout)
        return jnp.where(keep, x / (1 - self.dropout), 0)
