"""Anomaly scores of a frozen backbone: how wrong the reconstruction of a step is while its patch is hidden.

A window of N patches is asked in groups: a group's patches are hidden at once, the others are visible. Under
'reconstruction' N patches are hidden in interleaved groups, so that each is hidden once between visible neighbours and
both sides are used; under 'forecast' only the window's last patches are, so that a score uses nothing but the past.
Windows lie over the series at a stride; where they overlap, errors are averaged. What a window lacks of a series, at
its ends or because the series is shorter, counts as missing. A missing value has error 0: nothing is held against it.

    asked = question(cfg.detect, model.patch, lookback)
    detector = Detector(model, backbone, asked, cfg.detect.units, mesh)
    error_STC = detector.errors(x_TC, observed_TC, (None, prompt))        # the mask token alone, and with a prompt
    score_T = combine(error_STC[1], cfg.detect.combine)

W windows  C channels  L steps of a window  N patches  V visible, M hidden patches of a group  S prompts that are asked
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import members, prompts
from ptt_jax import mesh as meshes
from ptt_jax.errors import UserError
from ptt_jax.layers import flatten, instance_stats, keepable, normalise, patchify
from ptt_jax.model import VISIBLE_FLOOR, CrossMAE, Encoded
from ptt_jax.prompts import Prompt

ROWS = 512  # windows of a channel in a dispatch
FAR = 1e4  # scaled values beyond are cut there: a window with larger ones would have no digits left for the others


class Question(NamedTuple):
    """What is hidden of a window: `groups` of patches, one after the other. Windows lie `stride` steps apart."""

    patch: int
    patches: int
    groups: tuple[tuple[int, ...], ...]
    stride: int

    @property
    def length(self) -> int:
        return self.patch * self.patches

    @property
    def hidden_L(self) -> np.ndarray:
        """Which steps of a window some group hides."""
        return np.repeat(np.isin(np.arange(self.patches), np.concatenate(self.groups)), self.patch)

    def visible(self, hidden: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n for n in range(self.patches) if n not in hidden)

    def starts(self, begin: int, end: int) -> np.ndarray:
        """Returns start_W of windows that hide each of the steps [begin, end) at least once."""
        history = int(self.hidden_L.argmax())
        if history:  # hidden tails follow each other, and the last one may reach past the end
            return np.arange(begin, end, self.stride) - history
        last = end - self.length  # below 0 where the series is shorter than a window
        return np.append(np.arange(max(begin - self.stride, 0), last, self.stride), last)


def question(section: ConfigDict, patch: int, lookback: int) -> Question:
    """Returns what a config's section `detect` asks of a backbone. Raises UserError when that cannot be asked."""
    length, groups = section.window or lookback, section.groups
    patches = length // patch
    if length % patch or patches < 2 * groups:
        raise UserError(
            f"config.detect.window = {length} is no window of the backbone's patches of {patch} steps; accepted: "
            f"a multiple of {patch}, at least {2 * groups * patch} with config.detect.groups = {groups}"
        )
    if section.score == "forecast":
        tail = min(max(round(section.stride * patches), 1), patches - 1)
        return Question(patch, patches, (tuple(range(patches - tail, patches)),), tail * patch)
    interleaved = tuple(tuple(range(g, patches, groups)) for g in range(groups))
    return Question(patch, patches, interleaved, max(round(section.stride * patches), 1) * patch)


def cut(x_TC: np.ndarray, observed_TC: np.ndarray, start_W: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x_RL float32 and observed_RL of the windows, R = W x C rows; steps outside of the series are missing.

    Values are cut at FAR: finite, infinite ones too, and no square of them overflows.
    """
    at_WL = start_W[:, None] + np.arange(length)
    inside_WL = (at_WL >= 0) & (at_WL < len(x_TC))
    at_WL = np.clip(at_WL, 0, len(x_TC) - 1)
    observed_WLC = observed_TC[at_WL] & inside_WL[..., None]
    x_WLC = np.where(observed_WLC, np.clip(x_TC, -FAR, FAR)[at_WL], 0).astype(np.float32)
    rows = (len(start_W) * x_TC.shape[1], length)
    return x_WLC.swapaxes(1, 2).reshape(rows), observed_WLC.swapaxes(1, 2).reshape(rows)


def observe(model: CrossMAE, x_RL: Array, observed_RL: Array, asked: Question) -> tuple[Encoded, ...]:
    """Returns for each group what the frozen encoder says of the visible patches, normalised by their statistics.

    No hidden value is read, and nothing depends on a prompt. For `apply`, as its method.
    """
    x_RNP, seen_RNP = patchify(x_RL, asked.patch), patchify(observed_RL.astype(jnp.float32), asked.patch)
    out = []
    for hidden in asked.groups:
        visible_V = np.array(asked.visible(hidden))
        shown_RVP, shown_seen_RVP = x_RNP[:, visible_V], seen_RNP[:, visible_V]
        mean_R1, scale_R1 = instance_stats(flatten(shown_RVP), flatten(shown_seen_RVP))
        keep_RV, at_1V = keepable(shown_seen_RVP), jnp.asarray(visible_V)[None]
        normal_RVP = normalise(shown_RVP, mean_R1, scale_R1) * shown_seen_RVP
        read_RSP, at_1S, keep_RS = model.enter(normal_RVP, at_1V, keep_RV, asked.patches)
        z_RSD = model.encode(read_RSP, at_1S, keep_RS)
        out.append(Encoded(model.remember(z_RSD, at_1S), keep_RS, mean_R1, scale_R1))
    return tuple(out)


def answer(model: CrossMAE, encoded: Encoded, hidden: tuple[int, ...], prompt: Prompt | None, patches: int) -> Array:
    """Returns y_RMP in scaled space, a group's hidden patches: by the mask token, with the prompt of their positions,
    or alone (None). For `apply`, as its method. Queries may see each other (decoder_attention 'self'): those of a group
    are hidden together, as in pre-training. Raises UserError for a prompt that hasn't one token, or one a patch."""
    at_M = np.array(hidden)
    if prompt is not None and ("tokens_MD" not in prompt or 1 < len(prompt["tokens_MD"]) < patches):
        ((leaf, tokens),) = prompt.items()
        raise UserError(
            f"a prompt of {leaf} {tokens.shape} is not for windows of {patches} patches; accepted: one of tune.prompts "
            f"= position, a token for each patch, or shared"
        )
    prompt_MD = None if prompt is None else prompts.tokens(prompt, patches, jnp.zeros(1, int))[at_M]
    y_RMP = model.decode(encoded.memory, jnp.asarray(at_M)[None], prompt_MD, encoded.keep_RN)
    return y_RMP * encoded.scale_R1[..., None] + encoded.mean_R1[..., None]


def unit(encoded: Encoded, units: str) -> Array:
    """Returns unit_R11, what an error is divided by: nothing, or the spread of the visible patches."""
    spread_R1 = jnp.maximum(encoded.scale_R1, VISIBLE_FLOOR)
    return (jnp.ones_like(spread_R1) if units == "scaled" else spread_R1)[..., None]


class Detector(NamedTuple):
    """A frozen backbone, what it is asked, and in which units errors are."""

    model: CrossMAE
    backbone: Any
    asked: Question
    units: str
    mesh: Mesh

    def errors(
        self, x_TC: np.ndarray, observed_TC: np.ndarray, asked_by: Sequence[Prompt | None] = (None,), begin: int = 0
    ) -> np.ndarray:
        """Returns error_STC, squared, float64, of the steps from `begin` on, for each prompt (None = mask token alone).

        x_TC: scaled values, of spread 1 in training; what lies before `begin` is read as history. Every step has a
        finite error; it is 0 where a value is missing and in channels that never move.
        """
        asked, (steps, channels) = self.asked, x_TC.shape
        moving_C = moves(x_TC, observed_TC)
        error_STC = np.zeros((len(asked_by), steps - begin, channels))
        if not moving_C.any() or steps == begin:
            return error_STC
        start_W = asked.starts(begin, steps)
        x_RL, observed_RL = cut(x_TC[:, moving_C], observed_TC[:, moving_C], start_W, asked.length)
        block, parts = -(-ROWS // self.mesh.size) * self.mesh.size, []
        for first in range(0, len(x_RL), block):
            rows = np.minimum(np.arange(first, first + block), len(x_RL) - 1)  # padding: the last row again
            error_SRL = reconstruct(*self, tuple(asked_by), x_RL[rows], observed_RL[rows])
            parts.append(np.asarray(error_SRL)[:, : len(x_RL) - first])
        error_SWCL = np.concatenate(parts, 1).reshape(len(asked_by), len(start_W), -1, asked.length)
        # Windows may begin before the series and end after it, by less than their length.
        total_SCT = np.zeros((*error_SWCL.shape[::2], steps + 2 * asked.length))
        count_T = np.zeros(total_SCT.shape[-1])
        for w, start in enumerate(start_W + asked.length):
            total_SCT[..., start : start + asked.length] += error_SWCL[:, w]
            count_T[start : start + asked.length] += asked.hidden_L
        inside = slice(asked.length + begin, asked.length + steps)
        error_STC[..., moving_C] = (total_SCT[..., inside] / count_T[inside]).swapaxes(1, 2)
        return np.where(observed_TC[begin:], error_STC, 0)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def reconstruct(
    model: CrossMAE, backbone: Any, asked: Question, units: str, mesh: Mesh, asked_by: tuple[Prompt | None, ...],
    x_RL: Array, observed_RL: Array,
) -> Array:  # fmt: skip
    """Returns error_SRL, squared, for each prompt; 0 where no group hides a step."""
    x_RL, observed_RL = meshes.split(mesh, (x_RL, observed_RL))
    model, backbone = members.first(model, backbone)
    variables, x_RNP = {"params": backbone}, patchify(x_RL, asked.patch)
    encodings = model.apply(variables, x_RL, observed_RL, asked, method=observe)
    error_SRNP = jnp.zeros((len(asked_by), *x_RNP.shape))
    for hidden, encoded in zip(asked.groups, encodings, strict=True):
        at_M = np.array(hidden)
        answers = [model.apply(variables, encoded, hidden, prompt, asked.patches, method=answer) for prompt in asked_by]
        error_SRMP = jnp.square(
            (jnp.stack(cast(list[Array], answers)) - x_RNP[None, :, at_M]) / unit(encoded, units)[None]
        )
        error_SRNP = error_SRNP.at[:, :, at_M].set(error_SRMP)
    return meshes.whole(mesh, error_SRNP.reshape(len(asked_by), *x_RL.shape))


def moves(x_TC: np.ndarray, observed_TC: np.ndarray) -> np.ndarray:
    """Returns which channels have two different values."""
    low_C = np.where(observed_TC, x_TC, np.inf).min(0)
    return np.where(observed_TC, x_TC, -np.inf).max(0) > low_C


def combine(error_TC: np.ndarray, how: str) -> np.ndarray:
    """Returns score_T: mean or largest error of the channels, whatever axes are in front."""
    return error_TC.mean(-1) if how == "mean" else error_TC.max(-1)


def moving_z(x_TC: np.ndarray, observed_TC: np.ndarray, width: int, begin: int = 0) -> np.ndarray:
    """Returns |x - mean| / spread_TC of the steps from `begin` on: what a backbone must beat.

    Mean and standard deviation are of the observed values among the `width` steps before; the spread is at least
    VISIBLE_FLOOR, as the backbone's is. Missing steps, and those with nothing before them, have 0.
    """
    x_TC = np.where(observed_TC, np.clip(x_TC, -FAR, FAR), 0).astype(np.float64)

    def past(of_TC: np.ndarray) -> np.ndarray:
        """Sums over the steps before."""
        sum_TC = np.concatenate([np.zeros((1, of_TC.shape[1])), of_TC.cumsum(0)])[:-1]
        return sum_TC - np.concatenate([np.zeros((width, of_TC.shape[1])), sum_TC])[: len(sum_TC)]

    count_TC = past(observed_TC.astype(np.float64))
    mean_TC = past(x_TC) / np.maximum(count_TC, 1)
    variance_TC = np.maximum(past(x_TC**2) / np.maximum(count_TC, 1) - mean_TC**2, 0)
    z_TC = np.abs(x_TC - mean_TC) / np.maximum(np.sqrt(variance_TC), VISIBLE_FLOOR)
    return np.where(observed_TC & (count_TC > 0), z_TC, 0)[begin:]
