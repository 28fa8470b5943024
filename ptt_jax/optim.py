"""What is trained and how: durations, schedules, named groups of parameters, optax.multi_transform over them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from ml_collections import ConfigDict

from ptt_jax.errors import UserError
from ptt_jax.model import GROUPS, LEARNED, group

Tree = Any


def plan(epochs: float, steps: int, batch: int, rows: int, stage: str) -> int:
    """Returns the number of optimisation steps: `steps`, or as many as `epochs` passes over the rows need (0 of 0)."""
    steps = steps or (max(round(epochs * rows / batch), 1) if epochs else 0)
    if steps * batch >= 2**32:
        raise UserError(f"config.{stage} asks for {steps} steps of {batch} rows; accepted: less than 2^32 rows in all")
    return steps


def chain(
    *, peak: float | Array, warmup: float, steps: int, weight_decay: float | Array, clip: float, average: float = 0.0
) -> optax.GradientTransformation:
    """Returns clip and AdamW under `schedule`. Decay touches matrices and prompts alone.

    peak and weight_decay may be traced: a sweep maps over them. average: of `averaging`, 0 = none.

    Clip and decay are in here, and not around multi_transform, where they would mix in or move frozen weights.
    """
    rate = schedule(peak, warmup, steps)
    adamw = optax.adamw(rate, weight_decay=weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(clip), adamw, *([averaging(average)] if average else []))


def terms(section: ConfigDict, steps: int, **more: Any) -> tuple[tuple[str, Any], ...]:
    """Returns what `chain` takes of a stage's config section, as items, which can be hashed."""
    names = {"peak": "learning_rate", "warmup": "warmup", "weight_decay": "weight_decay", "clip": "clip"}
    return ("steps", steps), *((name, section[key]) for name, key in names.items()), *more.items()


def optimiser(said: tuple[tuple[str, Any], ...], **instead: Any) -> optax.GradientTransformation:
    """Returns the `chain` of those `terms`, with some of what they say, maybe traced, in its stead."""
    return chain(**{**dict(said), **instead})


class Average(NamedTuple):
    """Steps that it has seen, and the moving average of the parameters."""

    seen: Array
    average: Tree


def averaging(decay: float) -> optax.GradientTransformation:
    """Returns a transformation that changes no update and keeps the parameters' moving average (Polyak) in its state.

    The decay of step t is at most (1 + t) / (10 + t), so that the random weights at the start are soon forgotten.
    """

    def init(params: Tree) -> Average:
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))  # a step donates both

    def update(updates: Tree, state: Average, params: Tree | None = None) -> tuple[Tree, Average]:
        keep = jnp.minimum(decay, (1 + state.seen) / (10 + state.seen))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, state.average, after)
        return updates, Average(state.seen + 1, average)

    return optax.GradientTransformation(init, update)


def but_last(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `tx` without what it does to the last number of each token, a linear map's share: no gradient moves it,
    and weight decay would."""
    still = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u.at[..., -1].set(0), updates))
    return optax.chain(tx, still)


def averaged(opt_state: Tree) -> Tree:
    """Returns the moving average of the parameters in the state of a `chain` with one."""
    return optax.tree.get(opt_state, "average")


def schedule(peak: float | Array, warmup: float, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a rise to `peak` over a share of the steps, then a cosine towards 0."""
    rise = max(round(warmup * steps), 1)
    share = optax.warmup_cosine_decay_schedule(1 / rise, 1.0, rise, max(steps, rise + 1))
    return lambda step: peak * share(step)


def decayed(params: Tree) -> Tree:
    """Returns which leaves weight decay pulls at: by name, since an attention bias has two axes, too."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ("kernel", "tokens_MD", "tokens_CMD", "tokens_IMD"), params
    )


class Groups(NamedTuple):
    """The groups of a parameter tree, and which of them learn.

    The tree is {'backbone': ...}, mostly with 'prompt' or with 'probe' (`baselines.probe`) beside it; groups are
    `model.GROUPS` and those two.
    """

    tuned: tuple[str, ...]

    def labels(self, params: Tree) -> Tree:
        """Returns the tree with 'tuned' or 'frozen' for each leaf."""

        def label(path: tuple, leaf: Any) -> str:
            root, *rest = (entry.key for entry in path)
            return "tuned" if (group("/".join(rest)) if root == "backbone" else root) in self.tuned else "frozen"

        return jax.tree_util.tree_map_with_path(label, params)

    def check(self, params: Tree) -> None:
        """Raises ValueError when a name is no group or nothing would learn: a typo must not freeze everything."""
        names = (*GROUPS, "prompt", "probe")
        unknown = set(self.tuned) - {*names}
        if unknown or "tuned" not in jax.tree.leaves(self.labels(params)):
            raise ValueError(f"tuned groups {self.tuned} match no parameter; groups are {names}")

    def transform(self, tuned: optax.GradientTransformation, params: Tree) -> optax.GradientTransformation:
        """Returns multi_transform: `tuned` for the groups that learn, set_to_zero for the others."""
        self.check(params)
        return optax.multi_transform({"tuned": tuned, "frozen": optax.set_to_zero()}, self.labels(params))

    def part(self, params: Tree) -> tuple[Tree, Tree]:
        """Returns (tuned, frozen): the same tree twice, with None where a leaf is in the other one.

        Gradients are taken with respect to the first, so that the frozen backward pass is never built.
        """
        labels = self.labels(params)
        tuned = jax.tree.map(lambda p, name: p if name == "tuned" else None, params, labels)
        frozen = jax.tree.map(lambda p, name: p if name == "frozen" else None, params, labels)
        return tuned, frozen


ALL = Groups(LEARNED)
PROMPT = Groups(("prompt",))
PROBE = Groups(("probe",))
HEAD = Groups(("embed", "encoder", "probe"))


def join(tuned: Tree, frozen: Tree) -> Tree:
    """Returns the whole tree from the two of `Groups.part`."""
    return jax.tree.map(lambda a, b: b if a is None else a, tuned, frozen, is_leaf=lambda x: x is None)


def step(
    tx: optax.GradientTransformation, grads: Tree, opt_state: Tree, tuned: Tree, frozen: Tree
) -> tuple[Tree, Tree]:
    """Returns the tuned leaves after one step, and the optimiser's state. Frozen leaves are not even added zero to
    (-0.0 + 0.0 is +0.0): their zeros are constants that XLA removes."""
    params = join(tuned, frozen)
    updates, opt_state = tx.update(join(grads, jax.tree.map(jnp.zeros_like, frozen)), opt_state, params)
    updates = jax.tree.map(lambda t, u: None if t is None else u, tuned, updates, is_leaf=lambda x: x is None)
    return optax.apply_updates(tuned, updates), opt_state


def table(params: Tree, groups: Groups) -> dict[str, dict[str, int]]:
    """Returns {group: {'parameters': n, 'tuned': n or 0}}."""
    counts: dict[str, dict[str, int]] = {}
    labels = jax.tree.leaves(groups.labels(params))
    for (path, leaf), label in zip(jax.tree_util.tree_leaves_with_path(params), labels, strict=True):
        root, *rest = (entry.key for entry in path)
        row = counts.setdefault(group("/".join(rest)) if root == "backbone" else root, {"parameters": 0, "tuned": 0})
        row["parameters"] += leaf.size
        row["tuned"] += leaf.size if label == "tuned" else 0
    return counts
