"""Tune a prompt for anomaly scores on training parts: reconstruct their hidden patches, no label, the backbone frozen.

The stage is short (encodings are made once, and a few hundred steps of prompts follow), so it keeps no checkpoint to go
on from: prompts/TASK is written when it is done, in the form that `checkpoint.load_prompts` reads.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import cache, checkpoint, detect, members, optim, prompts, step, tasks
from ptt_jax import mesh as meshes
from ptt_jax import store as stores
from ptt_jax.architecture import shapes
from ptt_jax.detect import Detector
from ptt_jax.errors import UserError
from ptt_jax.loop import check_finite, keys, stalled
from ptt_jax.model import CrossMAE, Encoded
from ptt_jax.prompts import Prompt
from ptt_jax.seal import read_json, write_json
from ptt_jax.store import Store

MOST_ROWS = 4096  # windows of a channel that a prompt learns from, evenly spread
KINDS = ("position", "shared")  # of prompts
HELD_BACK = 0.2  # share of each training part, its end, that decides which look is best

Part = tuple[np.ndarray, np.ndarray]  # x_TC in scaled space and observed_TC, the training rows of a series


@flax.struct.dataclass
class Lessons:
    """Windows for each group of a question: what the encoder says of the visible patches, the hidden ones x_RMP, and
    which of their values count. In the place of a panel: every step reads the same."""

    encoded: tuple[Encoded, ...]
    hidden: tuple[Array, ...]
    counts: tuple[Array, ...]

    def at(self, block: Array | int) -> "Lessons":
        return self

    @property
    def rows(self) -> int:
        return len(self.hidden[0])


class Tuned(NamedTuple):
    """A prompt, and what the held-back rows said of it: (step, loss) of each look, the chosen step, and which loss."""

    prompt: Prompt
    looks: list[tuple[int, float]]
    chosen: int
    penalty: str


def lessons(detector: Detector, parts: Sequence[Part]) -> tuple[Lessons, Lessons]:
    """Returns what prompts learn from and what chooses among them, of one or many training parts.

    Windows of the first may not reach into the end of a part that is held back; those of the second read what is before
    it as history. Channels that stand still teach nothing. Raises UserError when nothing is left.
    """
    asked, learn, choose = detector.asked, [], []
    moving = [(x_TC[:, m], seen_TC[:, m]) for x_TC, seen_TC in parts for m in [detect.moves(x_TC, seen_TC)]]
    stride = max(-(-sum(x_TC.size for x_TC, _ in moving) // MOST_ROWS), asked.patch)
    for x_TC, seen_TC in moving:
        if x_TC.size:
            border = max(round((1 - HELD_BACK) * len(x_TC)), 1)
            learn.append(rows(x_TC[:border], seen_TC[:border], asked._replace(stride=stride), 0))
            choose.append(rows(x_TC, seen_TC, asked, border))
    if not learn:
        raise UserError(
            "no channel of the training rows moves, so that a prompt has nothing to learn; accepted: others"
        )
    made = [encode(detector, *map(np.concatenate, zip(*side, strict=True))) for side in (learn, choose)]
    return made[0], made[1]


def rows(x_TC: np.ndarray, seen_TC: np.ndarray, asked: detect.Question, begin: int) -> tuple[np.ndarray, ...]:
    """Returns x_RL, observed_RL, and which observed values lie from `begin` on."""
    start_W = asked.starts(begin, len(x_TC))
    x_RL, observed_RL = detect.cut(x_TC, seen_TC, start_W, asked.length)
    late_RL = np.repeat(start_W[:, None] + np.arange(asked.length) >= begin, x_TC.shape[1], axis=0)
    return x_RL, observed_RL, observed_RL & late_RL


def encode(detector: Detector, x_RL: np.ndarray, observed_RL: np.ndarray, counts_RL: np.ndarray) -> Lessons:
    """Returns the rows after the frozen encoder, at most MOST_ROWS, evenly spread."""
    model, backbone, asked, _, mesh = detector
    keep = np.unique(np.linspace(0, len(x_RL) - 1, min(len(x_RL), MOST_ROWS)).astype(int))
    shape = (len(keep), asked.patches, asked.patch)
    x_RNP, counts_RNP = x_RL[keep].reshape(shape), counts_RL[keep].reshape(shape)
    blocks = []
    for first in range(0, len(keep), detect.ROWS):
        block = keep[np.minimum(np.arange(first, first + detect.ROWS), len(keep) - 1)]
        blocks.append(observe(model, asked, backbone, x_RL[block], observed_RL[block]))
    encoded = jax.tree.map(lambda *of: jnp.concatenate(of)[: len(keep)], *blocks)
    groups = [np.array(hidden) for hidden in asked.groups]
    made = Lessons(encoded, tuple(x_RNP[:, g] for g in groups), tuple(counts_RNP[:, g] for g in groups))
    return meshes.replicate(mesh, made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def observe(
    model: CrossMAE, asked: detect.Question, backbone: Any, x_RL: Array, observed_RL: Array
) -> tuple[Encoded, ...]:
    model, backbone = members.first(model, backbone)
    return cast(tuple[Encoded, ...], model.apply({"params": backbone}, x_RL, observed_RL, asked, method=detect.observe))


def loss_of(model: CrossMAE, asked: detect.Question, units: str, penalty: str) -> tasks.Loss:
    """Returns the error of hidden patches in a detector's units, so that the loss is the score."""

    def loss(params: Any, data: Lessons, row_R: Array, key: Array) -> tuple[Array, Array]:
        sum_R, count_R = jnp.zeros(len(row_R)), jnp.zeros(len(row_R))
        one, network = members.first(model, params["backbone"])
        for hidden, *group in zip(asked.groups, data.encoded, data.hidden, data.counts, strict=True):
            encoded, x_RMP, counts_RMP = jax.tree.map(lambda a: a[row_R], group)
            question = encoded, hidden, params["prompt"], asked.patches
            y_RMP = one.apply({"params": network}, *question, method=detect.answer)
            error_RMP = tasks.PENALTY[penalty]((y_RMP - x_RMP) / detect.unit(encoded, units))
            sum_R += jnp.where(counts_RMP, error_RMP, 0).sum((1, 2))
            count_R += counts_RMP.sum((1, 2))
        return sum_R, count_R

    return loss


@cache.kept
def learner(
    model: CrossMAE, mesh: Mesh, asked: detect.Question, units: str, batch: int, rows: int, kind: str, penalty: str,
    said: tuple[tuple[str, Any], ...],
) -> tuple[Any, Callable, Callable]:  # fmt: skip
    """Returns the optimiser, its `step.many`, and f(params, lessons) -> sum and count of their losses; kind: of the
    prompt, said: of `optim.terms`."""
    prompt = jax.eval_shape(lambda: prompts.make(kind, asked.patches, model.width))
    tx = optim.PROMPT.transform(optim.optimiser(said), {"backbone": shapes(model), "prompt": prompt})
    loss = loss_of(model, asked, units, penalty)

    @jax.jit
    def sums(params: Any, of: Lessons) -> tuple[Array, Array]:
        sum_R, count_R = loss(params, of, jnp.arange(of.rows), jax.random.key(0))
        return sum_R.sum(), count_R.sum()

    return tx, step.many(step.one(loss, tx, optim.PROMPT, mesh, batch, rows)), sums


def tune(detector: Detector, learn: Lessons, choose: Lessons, section: ConfigDict, seed: int) -> Tuned:
    """Returns the prompt of the look that the held-back rows like best, no prompt (zeros, step 0) among them.

    section: a config's `tune`. Raises UserError when its prompts are neither of kind 'position' nor 'shared': one
    prompt serves series of different channels, at the positions of a group's patches.
    """
    if section.prompts not in KINDS:
        raise UserError(
            f"config.tune.prompts = {section.prompts} is not for anomaly scores; accepted: {' or '.join(KINDS)}"
        )
    model, backbone, asked, units, mesh = detector
    prompt = prompts.make(section.prompts, asked.patches, model.width)
    params = meshes.replicate(mesh, {"backbone": backbone, "prompt": prompt})
    batch = -(-min(section.batch, learn.rows) // mesh.size) * mesh.size
    steps = optim.plan(section.epochs, section.steps, batch, learn.rows, "tune")
    tx, chunk, sums = learner(
        model, mesh, asked, units, batch, learn.rows, section.prompts, section.loss, optim.terms(section, steps)
    )
    state, key = step.start(jax.tree.map(jnp.copy, params), tx), keys(seed, "tune")[1]
    looks: list[tuple[int, float]] = []
    best, chosen = prompt, 0
    for at in (steps * i // section.validations for i in range(section.validations + 1)):
        if at > int(state.step):
            state, summed = chunk(state, jnp.int32(at - int(state.step)), learn, key)
            check_finite("tune", f"the loss of step {int(summed.first)}", float(summed.loss))
        total, count = sums(state.params, choose)
        value = float(total) / max(float(count), 1)
        check_finite("tune", f"validation after step {at}", value)
        if looks and value < min(past for _, past in looks):
            best, chosen = jax.device_get(state.params["prompt"]), at
        looks.append((at, value))
        if stalled([v for _, v in looks], section.patience):
            break
    return Tuned(best, looks, chosen, section.loss)


def save(run: Path, task: str, tuned: Tuned, detector: Detector, card: dict[str, Any], seed: int) -> None:
    """Writes prompts/TASK, named by the backbone's hash; card: of `checkpoint.find_backbone`."""
    length = str(detector.asked.length)
    kept = {length: jax.tree.map(lambda tokens_MD: np.asarray(tokens_MD)[None, None], tuned.prompt)}
    store = Store(run / "prompts" / task, ("prompt", "state"))
    store.save(tuned.chosen, {"prompt": kept, "state": kept}, {"looks": tuned.looks})
    store.close()
    about = {
        "format": stores.FORMAT, "task": task, "step": tuned.chosen, "seeds": [seed], "looks": tuned.looks,
        "chosen": {length: [tuned.chosen]}, "setting": {length: {"index": 0}},
        "shapes": {length: list(jax.tree.leaves(kept)[0].shape)}, "content_hash": stores.content_hash(kept),
        "backbone": card["content_hash"], "backbone_run": card["run"], "tuned_parameters": prompts.size(tuned.prompt),
        "asked": detector.asked._asdict(), "units": detector.units, "penalty": tuned.penalty,
    }  # fmt: skip
    write_json(run / "prompts" / f"{task}.json", about)


def load(run: Path, task: str, detector: Detector, card: dict[str, Any], penalty: str) -> Prompt:
    """Returns a prompt of `save`. Raises UserError when it is of another backbone, was asked something else, or was
    tuned for errors in other units or by another loss."""
    ((length, (prompt,)),) = checkpoint.load_prompts(run, task, card["content_hash"]).items()
    about = read_json(run / "prompts" / f"{task}.json")
    if about.get("asked") != json.loads(json.dumps(detector.asked._asdict())):
        raise UserError(
            f"the prompt {run / 'prompts' / task} was asked something else than config.detect asks "
            f"(windows of {length} steps, and {task}.json says more); accepted: the same config.detect, or a new prompt"
        )
    for key, knob, now in (("units", "detect.units", detector.units), ("penalty", "tune.loss", penalty)):
        if (was := about.get(key, "not said")) != now:
            raise UserError(
                f"the prompt {run / 'prompts' / task} was tuned with config.{knob} = {was}, not {now}; "
                f"accepted: the same, or a new prompt"
            )
    return prompt
