"""What the bench runs: each phase as the step that training calls, and the arrays that it takes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import (
    architecture,
    baselines,
    encodings,
    finetune,
    optim,
    plan,
    problems,
    prompts,
    step,
    tasks,
    train,
    windows,
)
from ptt_jax import mesh as meshes
from ptt_jax.encodings import Cached
from ptt_jax.model import Encoded, init
from ptt_jax.optim import Groups
from ptt_jax.step import Seen, State, Step
from ptt_jax.windows import Panel, Span

STEPS = 100_000  # of the schedules: a bench never sees their end
WHOLE = Groups((*optim.ALL.tuned, "prompt"))


class Material(NamedTuple):
    """What phases share, as arrays or as shapes: a series, a backbone, and the encodings of all rows, or none."""

    panel: Panel
    backbone: Any
    encoded: Encoded | None


class Phase(NamedTuple):
    """make(material) -> the state and the other inputs of `step`.

    counted: the compiler counts a loop's body once, so FLOPs of a step with a loop of its own are no figure.
    epoch: a warm epoch of it is timed, too. unread(material) -> what a step gathers a few rows of.
    """

    name: str
    horizons: tuple[int, ...]
    subject: "Subject"
    step: Step
    make: Callable[[Material], tuple[State, tuple]]
    counted: bool = True
    epoch: bool = False
    unread: Callable[[Material], Any] = lambda m: m.panel


@dataclasses.dataclass
class Subject:
    """A config's model on a series of so many steps and channels, all of it training rows."""

    cfg: ConfigDict
    horizons: tuple[int, ...]
    batch: int
    channels: int
    length: int
    cached: bool

    def __post_init__(self) -> None:
        self.card = architecture.of(self.cfg)
        self.model = architecture.build(self.card, self.cfg.compute_dtype, views=self.cfg.views)
        self.mesh = meshes.make(1)
        self.rows = self.span(self.horizons).rows

    def span(self, horizons: tuple[int, ...]) -> Span:
        return windows.span((0, self.length), self.cfg.lookback, horizons, self.channels, "train")

    def material(self) -> Material:
        """Returns a random walk, a random backbone, and its encodings as tuning would cache them."""
        rng = np.random.default_rng(0)
        walk_CT = rng.normal(size=(self.channels, self.length)).astype(np.float32).cumsum(1)
        panel = Panel(jnp.asarray(walk_CT / walk_CT.std()), jnp.ones(walk_CT.shape, bool))
        backbone = init(self.model, jax.random.key(0))
        panel, backbone = meshes.replicate(self.mesh, (panel, backbone))
        if not self.cached:
            return Material(panel, backbone, None)
        # `encode_all` takes a problem for its panel and its mesh alone.
        problem = problems.Problem(None, None, panel, self.mesh)  # type: ignore[arg-type]
        span, batch = self.span(self.horizons), self.cfg.evaluate.batch
        data = encodings.encode_all(self.model, backbone, problem, span, batch, 2**62, self.model.dtype)
        return Material(panel, backbone, data.encoded)

    @functools.cached_property
    def shapes(self) -> Material:
        """Returns the material as shapes: enough to compile a phase."""
        shape = self.channels, self.length
        panel = Panel(jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.bool))
        backbone, span = architecture.shapes(self.model), self.span(self.horizons)
        if not self.cached:
            return Material(panel, backbone, None)
        blocks = -(-span.rows // min(self.cfg.evaluate.batch, span.rows))
        rows = -(-span.rows // blocks) * blocks  # `encodings.encode_all` makes them equal

        def one(panel: Panel, backbone: Any) -> Encoded:
            return encodings.encode(self.model, backbone, Cached(panel), span, jnp.zeros(1, jnp.int32))

        def all_rows(leaf: Any) -> Any:
            return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

        return Material(panel, backbone, jax.tree.map(all_rows, jax.eval_shape(one, panel, backbone)))

    def pretraining(self) -> Phase:
        p, (lookback, ahead) = self.cfg.pretrain, train.window(self.cfg)
        model = architecture.build(self.card, self.cfg.compute_dtype, self.cfg.model.dropout)
        span = windows.span((0, self.length), lookback, ahead, self.channels, "train")
        loss = tasks.reconstruction(model, span, **train.hiding(p), **train.augmentation(p), train=True)
        return self.learning("pretrain", ahead, loss, optim.ALL, p, {}, span.rows)

    def tuning(self, name: str, horizons: tuple[int, ...], data: Callable[[Material], Cached]) -> Phase:
        """Returns tuning as `tune.tune` does it: one seed and one setting of the fan."""
        t, span, sweep = self.cfg.tune, self.span(horizons), plan.Sweep(self.cfg.tune)
        loss, one = tasks.forecasting(self.model, span, penalty=t.loss), self.prompt(horizons)
        alone = {"backbone": architecture.shapes(self.model), "prompt": one}

        def transform(hyper: Any) -> Any:
            instead = {"peak": hyper["learning_rate"], "weight_decay": hyper["weight_decay"]}
            return optim.PROMPT.transform(optim.optimiser(optim.terms(t, STEPS), **instead), alone)

        def member(hyper: dict[str, Array]) -> Step:
            return step.one(loss, transform(hyper), optim.PROMPT, self.mesh, self.batch, span.rows)

        def make(m: Material) -> tuple[State, tuple]:
            own = {"prompt": one, "opt_state": transform(sweep.settings[0]).init(alone | {"backbone": m.backbone})}
            own = jax.tree.map(lambda a: jnp.broadcast_to(a, (1, len(sweep), *a.shape)), own)
            params = {"backbone": m.backbone, "prompt": own["prompt"]}
            inputs = data(m), jax.random.key(0)[None], sweep.hyper_G()
            return State(jnp.zeros((), jnp.int32), params, own["opt_state"]), inputs

        return Phase(name, horizons, self, step.fan(member, plan.AXES), make, unread=data)

    def learning(
        self, name: str, horizons: tuple[int, ...], loss: tasks.Loss, groups: Groups, section: ConfigDict,
        beside: dict[str, Any], rows: int, data: Callable[[Material], Cached] = lambda m: Cached(m.panel),
    ) -> Phase:  # fmt: skip
        """Returns a phase that trains groups of the backbone and of what stands beside it."""
        tree = {"backbone": architecture.shapes(self.model), **beside}
        tx = groups.transform(optim.optimiser(optim.terms(section, STEPS)), tree)

        def make(m: Material) -> tuple[State, tuple]:
            return step.start({"backbone": m.backbone, **beside}, tx), (data(m), jax.random.key(0))

        return Phase(name, horizons, self, step.one(loss, tx, groups, self.mesh, self.batch, rows), make, unread=data)

    def full(self, horizons: tuple[int, ...]) -> Phase:
        span = self.span(horizons)
        loss = tasks.forecasting(self.model, span, penalty=self.cfg.tune.loss)
        beside = {"prompt": self.prompt(horizons)}
        return self.learning("full fine-tuning", horizons, loss, WHOLE, self.cfg.tune, beside, span.rows)

    def thawing(self, name: str, horizons: tuple[int, ...], data: Callable[[Material], Cached]) -> Phase:
        """Returns tuning of the prompt with the parts of the backbone that the config thaws."""
        t, span = self.cfg.tune, self.span(horizons)
        model = architecture.build(self.card, self.cfg.compute_dtype, self.cfg.model.dropout, self.cfg.views)
        loss = baselines.thawing(model, span, penalty=t.loss, thawed=finetune.thawed(t))
        beside = {"prompt": self.prompt(horizons)}
        return self.learning(name, horizons, loss, finetune.groups_of(t), t, beside, span.rows, data)

    def probing(self, name: str, horizons: tuple[int, ...], groups: Groups) -> Phase:
        span = self.span(horizons)
        loss = baselines.probing(self.model, span, penalty=self.cfg.tune.loss)
        beside = {"probe": baselines.make_probe(self.model, span.lookback, horizons[-1])}
        return self.learning(name, horizons, loss, groups, self.cfg.tune, beside, span.rows)

    def forecasting(self, horizons: tuple[int, ...]) -> Phase:
        """Returns the forecast of a batch of rows, the next batch at the next step."""
        span = self.span(horizons)

        def forecast(state: State, data: Cached) -> tuple[State, Seen]:
            row_R = (state.step * self.batch + jnp.arange(self.batch)) % span.rows
            encoded = encodings.encode(self.model, state.params["backbone"], data, span, meshes.split(self.mesh, row_R))
            y_RH = tasks.forecast(self.model, state.params, encoded, horizons[-1], row_R % self.channels)
            size_R = jnp.abs(y_RH).mean(1)
            return State(state.step + 1, state.params, None), Seen(size_R.mean(), ~jnp.isfinite(size_R))

        def make(m: Material) -> tuple[State, tuple]:
            params = {"backbone": m.backbone, "prompt": self.prompt(horizons)}
            return State(jnp.zeros((), jnp.int32), params, None), (Cached(m.panel),)

        return Phase("forecast", horizons, self, forecast, make)

    def prompt(self, horizons: tuple[int, ...]) -> prompts.Prompt:
        count = prompts.patches(horizons[-1], self.model.patch)
        return prompts.make(self.cfg.tune.prompts, count, self.model.token, self.channels, self.model.decoder_layers)


def fresh(m: Material) -> Cached:
    return Cached(m.panel)


def whole(m: Material) -> Cached:
    return Cached(m.panel, m.encoded, complete=True)


def half(m: Material) -> Cached:
    return Cached(m.panel, jax.tree.map(lambda a: a[: len(a) // 2], m.encoded))


def every(s: Subject, quick: bool = False) -> list[Phase]:
    """Returns all phases: at the first horizon and at all of them, and full fine-tuning at each by itself.

    quick: those that tell most, since most of a short run is compilation. Several networks learn by prompts alone.
    """
    alone = s.model.members == 1
    sets = list(dict.fromkeys([s.horizons[:1], s.horizons]))
    out = [s.pretraining()._replace(epoch=True)]
    for horizons in sets[:1] if quick else sets:
        out += [s.tuning("tune, cached", horizons, whole)._replace(epoch=horizons == sets[0])]
        out += [s.tuning("tune, uncached", horizons, fresh)]
        out += [s.full(horizons), s.probing("linear probe, new head", horizons, optim.PROBE)] if alone else []
        out += [s.forecasting(horizons)]
        out += [s.probing("full fine-tuning, new head", horizons, optim.HEAD)] if alone and not quick else []
    if quick:
        return out
    out += [s.tuning("tune, half of the rows cached", s.horizons, half)._replace(counted=False)]
    return out + [s.full((h,)) for h in s.horizons if (h,) not in sets and alone]


def few(s: Subject) -> list[Phase]:
    """Returns the phases whose cost a row must not depend on the number of channels."""
    return [s.pretraining(), s.tuning("tune, uncached", s.horizons, fresh), s.forecasting(s.horizons)]
