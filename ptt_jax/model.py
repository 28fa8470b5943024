"""The Cross-MAE (Fu et al. 2024, for images; PT-Tuning, arXiv 2311.03768, for time series).

Letters, one for each axis, as suffixes of names:
  B windows  C channels  R rows = independent univariate windows  T lookback  H horizon  L steps of a window
  P patch length  N patches  V visible patches  M queried patches (hidden, or future)
  D width  K heads  F mlp width  I decoder blocks  Z members
  E numbers of a prompt token: D for each member, beside a linear map one more
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ptt_jax.errors import UserError
from ptt_jax.layers import (
    Block,
    Memory,
    flatten,
    instance_stats,
    keepable,
    linear,
    normalise,
    patchify,
    pick,
    product,
    promote_all_but_bias,
    sincos,
    spread,
)

# The groups of parameters, by the first part of their path.
GROUPS = ("embed", "encoder", "mask_token", "decoder", "head", "linear")
LEARNED = GROUPS[:-1]  # by gradients, each of which can be frozen or trained apart
VISIBLE_FLOOR = 0.1  # smallest scale when pre-training normalises by visible patches alone, in scaled units


class CrossMAE(nn.Module):
    """Encoder on visible patches, decoder of cross-attention, one linear head shared by all positions.

    Attributes:
      patch, width, mlp, heads, encoder_layers, decoder_layers, dropout: sizes, as in knobs.py.
      position: 'rotary' turns queries and keys in every block; 'sincos', with periods that fit the window,
        'sincos10000', with the usual base, and 'learned' are added to tokens and queries.
      decoder_attention: 'cross': queries never see each other; 'self': each block of the decoder begins with
        self-attention among its queries, so that an answer depends on what else is asked.
      hiding: the paper's masking strategies, as read here. 'feature': hidden patches are absent from the encoder, and
        the decoder's mask tokens stand for them. 'value': they enter the encoder as zeros, the mean of a normalised
        row, at their positions, and the decoder reads them too; when forecasting, so do the future patches that fill
        the longest window. What is asked of the decoder is the same.
      patches: patches of the longest window; learned positions end there, and the longest period of the others is four
        times the window.
      dtype: of activations and matrix products; parameters are float32.
      views: lookbacks whose forecasts are averaged: the whole one and evenly shorter ones; no part of what is learned.
      linear: patches of a history that a linear map beside the network reads, 0 = there is none. A prompt says in one
        more number of each token what share of its patch the map has (`linear.py`).
      members: networks of the backbone. This module is one of them: where there are several, `members.py` asks.
    """

    patch: int
    width: int
    mlp: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    patches: int
    dropout: float = 0.0
    position: str = "rotary"
    decoder_attention: str = "cross"
    hiding: str = "feature"
    dtype: DTypeLike = jnp.float32
    views: int = 1
    linear: int = 0
    members: int = 1

    def setup(self) -> None:
        if self.members > 1:
            raise UserError(
                f"a backbone of {self.members} networks is asked for forecasts by prompts, and this trains or asks one "
                f"alone; accepted: a backbone of model.members = 1"
            )
        longest = 4.0 * self.patches if self.position == "rotary" else 0.0

        def block(name: str, mutual: bool = False) -> Block:
            return Block(self.width, self.heads, self.mlp, self.dropout, longest, self.dtype, mutual, name=name)

        self.embed = nn.Dense(self.width, dtype=self.dtype, dot_general=product, name="embed")
        self.encoder = [block(f"encoder_{i}") for i in range(self.encoder_layers)]
        self.encoder_norm = nn.LayerNorm(dtype=self.dtype, name="encoder_norm")
        self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,))
        mutual = self.decoder_attention == "self"
        self.decoder = [block(f"decoder_{i}", mutual) for i in range(self.decoder_layers)]
        self.decoder_norm = nn.LayerNorm(dtype=self.dtype, name="decoder_norm")
        # The sums of a forecast stay float32: rounded to bfloat16, a value has three digits.
        to_float32 = functools.partial(product, out=jnp.float32)
        self.head = nn.Dense(
            self.patch, dtype=self.dtype, dot_general=to_float32, promote_dtype=promote_all_but_bias, name="head"
        )
        if self.position == "learned":
            self.table = self.param("embed_position", nn.initializers.normal(0.02), (self.patches, self.width))
        if self.linear:
            read, ahead = self.linear * self.patch, (self.patches - self.linear) * self.patch
            self.map_TH = self.param("linear_map", nn.initializers.zeros, (read, ahead))

    def place(self, x_RND: Array, at_RN: Array) -> Array:
        """Adds what says where a token is; nothing under rotary positions. Inputs and queries share the scheme."""
        if self.position in ("sincos", "sincos10000"):
            longest = 4.0 * self.patches if self.position == "sincos" else 0.0
            return x_RND + sincos(at_RN, self.width, longest).astype(self.dtype)
        if self.position == "learned":
            return x_RND + self.table[at_RN].astype(self.dtype)
        return x_RND

    def encode(self, x_RVP: Array, at_RV: Array, keep_RV: Array | None = None, *, train: bool = False) -> Array:
        """Returns z_RVD from normalised visible patches; patches with keep = False (all missing) are seen by none."""
        z_RVD = self.place(self.embed(x_RVP.astype(self.dtype)), at_RV)
        for block in self.encoder:
            z_RVD = block(z_RVD, at_RV, keep_RS=keep_RV, train=train)
        return self.encoder_norm(z_RVD)

    def remember(self, z_RVD: Array, at_RV: Array) -> tuple[Memory, ...]:
        """Returns all that the decoder reads of the encoded patches: keys and values of each of its blocks."""
        return tuple(block.memory(z_RVD, at_RV) for block in self.decoder)

    def decode(
        self,
        memory: tuple[Memory, ...],
        at_RM: Array,
        prompt_MD: Array | None = None,
        keep_RV: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Returns y_RMP, normalised patches at the queried positions.

        A query is mask token + prompt (element-wise, PT-Tuning) + position. Queries never see each other, but under
        decoder_attention 'self'. Where all rows ask for the same positions (at_1M), nothing depends on the row until
        the first cross-attention, unless rows have prompts of their own (prompt_RMD). A prompt_IRMD (R may be 1) has
        tokens for each block of the decoder; those of later blocks are added to what enters them.
        """
        query_RMD = jnp.broadcast_to(self.mask_token, (*at_RM.shape, self.width))
        blocks = 0
        if prompt_MD is not None:
            prompt_IRMD = prompt_MD.reshape(*[1] * (4 - prompt_MD.ndim), *prompt_MD.shape)
            query_RMD = query_RMD + prompt_IRMD[0]  # in float32: a small prompt would be rounded away in bfloat16
            blocks = len(prompt_IRMD)
        query_RMD = self.place(query_RMD.astype(self.dtype), at_RM)
        for i, (block, read) in enumerate(zip(self.decoder, memory, strict=True)):
            if 0 < i < blocks:
                query_RMD = (query_RMD + prompt_IRMD[i]).astype(self.dtype)
            query_RMD = block(query_RMD, at_RM, read, keep_RV, train=train)
        return self.head(self.decoder_norm(query_RMD))

    def reconstruct(
        self,
        x_RL: Array,
        observed_RL: Array,
        visible_RV: Array,
        hidden_RM: Array,
        *,
        norm: str,
        units: str = "normalised",
        train: bool = False,
    ) -> tuple[Array, Array, Array]:
        """Returns prediction, target and weight of the hidden patches (R, M, P); weight 0 = missing.

        norm: 'window' normalises by the statistics of the whole window (as PatchTST's pre-training does: hidden values
        leak into mean and scale), 'visible' by those of the visible patches. units: 'normalised', in which every window
        weighs alike, or 'scaled', around the window's mean, in which a window weighs as in a forecast's error.
        """
        x_RL = jnp.where(observed_RL, x_RL, 0)  # whatever stands in their place, missing values are nothing
        x_RNP, seen_RNP = patchify(x_RL, self.patch), patchify(observed_RL.astype(jnp.float32), self.patch)
        shown_RVP, shown_seen_RVP = pick(x_RNP, visible_RV), pick(seen_RNP, visible_RV)
        if norm == "window":
            mean_R1, scale_R1 = instance_stats(x_RL, observed_RL.astype(jnp.float32))
        else:
            mean_R1, scale_R1 = instance_stats(flatten(shown_RVP), flatten(shown_seen_RVP))
            # Visible patches that stand still while hidden ones move would be targets in the thousands.
            scale_R1 = jnp.maximum(scale_R1, VISIBLE_FLOOR)
        keep_RV = keepable(shown_seen_RVP)
        normal_RVP = normalise(shown_RVP, mean_R1, scale_R1) * shown_seen_RVP
        normal_RSP, at_RS, keep_RS = self.enter(normal_RVP, visible_RV, keep_RV, x_RNP.shape[1])
        z_RSD = self.encode(normal_RSP, at_RS, keep_RS, train=train)
        y_RMP = self.decode(self.remember(z_RSD, at_RS), hidden_RM, None, keep_RS, train=train)
        target_RMP, unit_R11 = normalise(pick(x_RNP, hidden_RM), mean_R1, scale_R1), scale_R1[..., None]
        if units == "scaled":
            y_RMP, target_RMP = y_RMP * unit_R11, target_RMP * unit_R11
        return y_RMP, target_RMP, pick(seen_RNP, hidden_RM)

    def enter(self, x_RVP: Array, at_RV: Array, keep_RV: Array, patches: int) -> tuple[Array, Array, Array]:
        """Returns what the encoder reads of a window's visible patches, where they are and which of them are kept: the
        visible ones; under hiding 'value' as many zeros as the window has patches, into which they are put, so that
        nothing else is ever read."""
        if self.hiding == "feature":
            return x_RVP, at_RV, keep_RV
        return spread(x_RVP, at_RV, patches, 0.0), jnp.arange(patches)[None], spread(keep_RV, at_RV, patches, True)

    def read(self, x_RT: Array, observed_RT: Array, *, train: bool = False) -> tuple[Array, Array, Array, Array]:
        """Returns z_RND of a history's patches, which of them hold anything (keep_RN), and its mean_R1 and scale_R1.

        Under hiding 'value' those of the future's zeros follow in z_RND.
        """
        x_RT, seen_RT = jnp.where(observed_RT, x_RT, 0), observed_RT.astype(jnp.float32)
        mean_R1, scale_R1 = instance_stats(x_RT, seen_RT)
        seen_RNP = patchify(seen_RT, self.patch)
        x_RNP = normalise(patchify(x_RT, self.patch), mean_R1, scale_R1) * seen_RNP  # missing: the mean, and no more
        keep_RN = keepable(seen_RNP)
        x_RSP = jnp.pad(x_RNP, ((0, 0), (0, self.zeros(x_RNP.shape[1])), (0, 0)))  # S = N, and zeros under 'value'
        z_RND = self.encode(x_RSP, jnp.arange(x_RSP.shape[1])[None], self.with_zeros(keep_RN), train=train)
        return z_RND, keep_RN, mean_R1, scale_R1

    def zeros(self, history: int) -> int:
        """Returns how many future patches the encoder reads as zeros after so many of a history: as many as fill the
        longest window, whatever the horizon, so that horizons stay prefixes of each other."""
        return max(self.patches - history, 0) if self.hiding == "value" else 0

    def with_zeros(self, keep_RN: Array) -> Array:
        return jnp.pad(keep_RN, ((0, 0), (0, self.zeros(keep_RN.shape[1]))), constant_values=True)

    def observe(self, x_RT: Array, observed_RT: Array, *, train: bool = False) -> "Encoded":
        """Returns everything of a history that a forecast needs. Nothing in it depends on a prompt."""

        def look(x_RT: Array, observed_RT: Array) -> "Encoded":
            z_RND, keep_RN, mean_R1, scale_R1 = self.read(x_RT, observed_RT, train=train)
            memory = self.remember(z_RND, jnp.arange(z_RND.shape[1])[None])
            return Encoded(memory, keep_RN, mean_R1, scale_R1)

        def shorter(T: int) -> "Encoded":
            view = look(x_RT[:, -T:], observed_RT[:, -T:])
            return view.replace(seen_R1=observed_RT[:, -T:].any(-1, keepdims=True))  # type: ignore[attr-defined, no-any-return]

        patches = x_RT.shape[1] // self.patch
        counts = {-(-patches * left // self.views) for left in range(1, self.views)} - {patches}  # fewer of few patches
        steps = [self.patch * count for count in sorted(counts, reverse=True)]
        line_RH = linear(self.map_TH, x_RT, observed_RT) if self.linear else None
        return look(x_RT, observed_RT).replace(others=tuple(map(shorter, steps)), line_RH=line_RH)  # type: ignore[attr-defined, no-any-return]

    @property
    def token(self) -> int:
        """How many numbers a prompt token has that asks for a forecast: D for each member, and beside a linear map its
        share."""
        return self.members * self.width + bool(self.linear)

    def foretell(self, encoded: "Encoded", ahead_M: Array, prompt_ME: Array | None, *, train: bool = False) -> Array:
        """Returns y_RMP in the units of the history: the patches that lie `ahead`, 0 the first one after it.

        prompt_ME None is the zero-shot forecast of the mask token alone; other shapes of it are those of `decode`.
        Where there is a linear map, E = D + 1, and the last number is its share of the patch: it mixes what the map
        says with what the network says, and does not learn. Past the patches that the map knows the network speaks
        alone.
        """
        if encoded.line_RH is None or prompt_ME is None:
            return self.speak(encoded, ahead_M, prompt_ME, train=train)
        y_RMP = self.speak(encoded, ahead_M, prompt_ME[..., :-1], train=train)
        return mixed(y_RMP, encoded.line_RH, ahead_M, prompt_ME)

    def speak(self, encoded: "Encoded", ahead_M: Array, prompt_MD: Array | None, *, train: bool = False) -> Array:
        """Returns what the network says of `foretell`'s patches. Of several views it is the mean of what each says, of
        which each has statistics of its own; a shorter one without any observed value says nothing."""
        at_1M = encoded.keep_RN.shape[1] + ahead_M[None]
        y_RMP = self.decode(encoded.memory, at_1M, prompt_MD, self.with_zeros(encoded.keep_RN), train=train)
        y_RMP = y_RMP * encoded.scale_R1[..., None] + encoded.mean_R1[..., None]
        weight_R11 = jnp.ones_like(encoded.scale_R1)[..., None]
        for view in encoded.others:
            seen_R11 = jnp.asarray(view.seen_R1, jnp.float32)[..., None]
            y_RMP = y_RMP + seen_R11 * self.speak(view, ahead_M, prompt_MD, train=train)
            weight_R11 = weight_R11 + seen_R11
        return y_RMP / weight_R11 if encoded.others else y_RMP

    def forecast(
        self, x_RT: Array, observed_RT: Array, prompt_ME: Array | None, horizon: int, *, train: bool = False
    ) -> Array:
        """Returns y_RH from a history x_RT: the reconstruction of M = ceil(H / P) hidden future patches."""
        ahead_M = jnp.arange(-(-horizon // self.patch))
        encoded = self.observe(x_RT, observed_RT, train=train)
        return flatten(self.foretell(encoded, ahead_M, prompt_ME, train=train))[:, :horizon]

    def __call__(self, x_RT: Array, observed_RT: Array) -> Array:
        """Touches every parameter once, for `init`."""
        return self.forecast(x_RT, observed_RT, None, self.patch)


@flax.struct.dataclass
class Encoded:
    """A history after the frozen encoder: what the decoder reads of it, (k_RNKh, v_RNKh) for each of its blocks, which
    patches hold anything, the statistics to undo, whether anything was seen; the same of shorter views of it; and what
    a linear map says."""

    memory: tuple[Memory, ...]
    keep_RN: Array
    mean_R1: Array
    scale_R1: Array
    others: tuple["Encoded", ...] = ()
    seen_R1: Array | None = None  # of a shorter view
    line_RH: Array | None = None  # what a linear map says of the steps ahead

    def with_memory(self, change: Callable[[Array], Array]) -> "Encoded":
        """Returns it with each array of its memory changed."""
        others = tuple(view.with_memory(change) for view in self.others)
        memory = jax.tree.map(change, self.memory)
        return self.replace(memory=memory, others=others)  # type: ignore[attr-defined, no-any-return]


def mixed(y_RMP: Array, line_RH: Array, ahead_M: Array, prompt_ME: Array) -> Array:
    """Returns what a network says and what a linear map says of the patches ahead, mixed by the map's share: the last
    number of each token."""
    line_RMP = patchify(line_RH, y_RMP.shape[-1])
    known_M = jnp.minimum(ahead_M, line_RMP.shape[1] - 1)
    first_RM = prompt_ME[0, ..., -1] if prompt_ME.ndim == 4 else prompt_ME[..., -1]  # of the first block's tokens
    share_RM = jax.lax.stop_gradient(first_RM.reshape(-1, len(ahead_M))) * (ahead_M == known_M)[None]
    return y_RMP + share_RM[..., None] * (line_RMP[:, known_M] - y_RMP)


@functools.partial(jax.jit, static_argnums=0)  # equal models share a program
def init(model: CrossMAE, key: Array) -> dict[str, Any]:
    """Returns float32 parameters as plain nested dicts; of several members with an axis of them in front, but for a
    linear map's."""
    x_1T = jnp.zeros((1, model.patch))

    def make(model: CrossMAE, key: Array) -> dict[str, Any]:
        return cast(dict[str, Any], model.init(key, x_1T, jnp.ones_like(x_1T, bool))["params"])

    if model.members == 1:
        return make(model, key)
    one = model.clone(members=1)
    many = jax.vmap(functools.partial(make, one))(jax.random.split(key, model.members))
    return many | ({"linear_map": many["linear_map"][0]} if model.linear else {})


def group(path: str) -> str:
    """Returns the group of GROUPS that a parameter path like 'encoder_0/mlp_in/kernel' belongs to."""
    return next(name for name in GROUPS if path.startswith(name))
