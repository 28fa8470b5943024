"""What tunes a task's prompts: windows, what is read of them, and one program for all seeds and settings of a sweep.

All of it is there before a backbone's weights are, so that whether it will fit in memory is known before those learn.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import cache, encodings, memory, optim, problems, prompts, step, tasks, watch
from ptt_jax import mesh as meshes
from ptt_jax.architecture import shapes
from ptt_jax.encodings import Cached
from ptt_jax.log import Log
from ptt_jax.loop import Loop, keys, parts
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span

# A member of the fan is one seed (S) and one setting (G); the backbone is everyone's.
AXES: Any = step.State(step=None, params={"backbone": None, "prompt": 0}, opt_state=0)  # type: ignore[arg-type]


class Sweep:
    """The settings of a sweep: each learning rate with each weight decay, and with each share of a linear map beside
    which prompts learn; of quantile prompts one for each level."""

    def __init__(self, section: ConfigDict, levels: tuple[float, ...] = (), linear: bool = False) -> None:
        rates = tuple(section.learning_rates) or (section.learning_rate,)
        decays = tuple(section.weight_decays) or (section.weight_decay,)
        self.settings = [
            {"learning_rate": float(r), "weight_decay": float(d)} for r, d in itertools.product(rates, decays)
        ]
        if linear and section.linear_when == "beside":
            each = itertools.product(self.settings, section.linear_shares)
            self.settings = [{**setting, "linear_share": float(share)} for setting, share in each]
        if levels:
            one = {"learning_rate": section.quantile_rate, "weight_decay": section.weight_decay}
            self.settings = [{"level": q, **one} for q in levels]

    def __len__(self) -> int:
        return len(self.settings)

    def hyper_G(self) -> dict[str, Array]:
        """Returns the settings as a dict of vectors, for `step.fan`."""
        return {key: jnp.array([s[key] for s in self.settings], jnp.float32) for key in self.settings[0]}


@dataclasses.dataclass
class Read:
    """What is read of a series while prompts learn: data by each step, and at each look validation.

    look: f(params, levels) -> {horizon: MSE_SG}, of quantile prompts the pinball loss, of forecasts with absolute=True
    the MAE; watch: the same of training rows, if they are looked at. encode: of `Loop`.
    """

    data: Cached
    look: Callable[..., dict[str, np.ndarray]]
    watch: Callable[..., dict[str, np.ndarray]] | None = None
    encode: Callable[[int], Cached] | None = None

    def again(self, most: int) -> Cached:
        """Makes the data with a cache of at most so many bytes; returns them."""
        assert self.encode is not None
        self.data = self.encode(most)
        return self.data


class Job(NamedTuple):
    """What prompts learn: windows, {horizon: how many of the longest one's tokens it takes}, f(setting) -> the loss,
    f(backbone) -> what is read, what else prompts/TASK.json says, and of quantile prompts the levels.

    foresee: f(params, levels) -> the data, and what will be there beside them, as shapes, of params that are shapes;
    raises TooLarge when they, or a look, will not fit.
    """

    train: Span
    tokens: dict[int, int]
    loss: Callable[[dict[str, Array]], tasks.Loss]
    read: Callable[[Any], Read]
    about: dict[str, Any]
    levels: tuple[float, ...] = ()
    forecasts: bool = True  # and so may give a linear map a share
    foresee: Callable[..., tuple[Cached, Any]] | None = None


class Encodings:
    """What prompts for forecasts read: encodings of training rows, and of validation's in what the budget leaves."""

    def __init__(self, cfg: ConfigDict, problem: Problem, model: CrossMAE, log: Log) -> None:
        t, batch, self.log, self.asked = cfg.tune, cfg.evaluate.batch, log, cfg.tune.cache_bytes
        dtype = model.dtype if t.cache_dtype == "compute" else jnp.dtype(t.cache_dtype)
        self.train, validation = problem.learning(cfg), problem.span("validation", cfg.lookback, cfg.horizons)
        self.few, some = t.validation_rows if t.validation_rows < validation.rows else 0, t.watch_train
        self.encoder = encodings.Encoder(model, problem, self.train, batch, dtype)
        self.watcher = watch.Watcher(model, problem, validation, batch, dtype, self.few)
        self.watched = watch.Watcher(model, problem, self.train, batch, dtype, some) if some else None

    def spare(self, budget: int, data: Cached) -> int:
        """Returns the bytes for encodings of validation: a cache is of a span's first rows, not of drawn ones."""
        return 0 if self.few else budget - data.encoded_bytes

    def read(self, backbone: Any) -> Read:
        """Returns what is read, with its encodings made."""
        budget = self.encoder.afford(backbone, self.asked)
        if budget < self.asked:
            self.log.say(
                f"memory: encodings may take {memory.words(budget)} in the place of config.tune.cache_bytes = "
                f"{memory.words(self.asked)}, so that half of what is free is left"
            )
        encode = functools.partial(self.encoder, backbone)
        data = encode(budget)
        look = self.watcher.read(backbone, self.spare(budget, data))
        return Read(data, look, self.watched.read(backbone, 0) if self.watched else None, encode)

    def foresee(self, params: Any, levels: tuple[float, ...]) -> tuple[Cached, Any]:
        """Does as a `Job` says."""
        budget = self.encoder.afford(params["backbone"], self.asked)
        data = self.encoder.foresee(params["backbone"], budget)
        return data, self.watcher.foresee(params, self.spare(budget, data), levels, beside=data)


@cache.kept
def learner(
    model: CrossMAE, mesh: Mesh, span: Span, batch: int, loss: Callable[[dict[str, Array]], tasks.Loss],
    said: tuple[tuple[str, Any], ...], prompt: tuple[str, int, int, int, int],
) -> tuple[Callable[[dict[str, Any]], Any], Callable]:  # fmt: skip
    """Returns f(setting) -> its optimiser, and `step.many` of all seeds and settings; loss: of `Job`, said: of
    `optim.terms`, prompt: what `prompts.make` takes."""
    one = jax.eval_shape(lambda: prompts.make(*prompt))
    shared = prompt[2] == model.token and bool(model.linear)
    alone = {"backbone": shapes(model), "prompt": one}  # shapes: what is kept holds no array

    def transform(setting: dict[str, Any]) -> Any:
        instead = {"peak": setting["learning_rate"], "weight_decay": setting["weight_decay"]}
        tx = optim.optimiser(said, **instead)
        return optim.PROMPT.transform(optim.but_last(tx) if shared else tx, alone)

    def member(setting: dict[str, Array]) -> step.Step:
        return step.one(loss(setting), transform(setting), optim.PROMPT, mesh, batch, span.rows)

    return transform, step.many(step.fan(member, AXES))


class Plan:
    """What tunes a job's prompts, before a backbone's weights are there: seeds and settings that learn side by side."""

    def __init__(self, cfg: ConfigDict, problem: Problem, model: CrossMAE, job: Job, log: Log) -> None:
        t, mesh = cfg.tune, problem.mesh
        self.job, self.mesh = job, mesh
        width, shared = (model.token, bool(model.linear)) if job.forecasts else (model.width, False)
        self.seeds, self.sweep = range(cfg.seed, cfg.seed + t.seeds), Sweep(t, job.levels, shared)
        self.mixes = shared and t.linear_when == "after" and not job.levels  # whether a share is chosen in the end
        self.steps = optim.plan(t.epochs, t.steps, t.batch, job.train.rows, "tune")
        longest, channels = max(job.tokens.values()), len(problem.series.names_C)
        prompt = t.prompts, longest, width, channels, model.decoder_layers
        self.one = prompts.make(*prompt)
        self.alone = {"backbone": shapes(model), "prompt": self.one}
        self.transform, many = learner(model, mesh, job.train, t.batch, job.loss, optim.terms(t, self.steps), prompt)
        stage = "quantiles" if job.levels else "tune"
        knobs = f"config.tune.batch{' or config.tune.seeds' * (t.seeds > 1)}, or config.compute_dtype=bfloat16"
        chunk = memory.Program(many, mesh, stage, knobs, log.say, parts)
        key_S = jnp.stack([keys(seed, "tune")[1] for seed in self.seeds])
        order = step.orders(key_S, t.batch, job.train.rows)
        words = functools.partial(problems.words, (problem,), problem.panel, job.train)
        knob = "tune.quantile_rate" if job.levels else f"tune.learning_rate{'s' if t.learning_rates else ''}"
        self.loop = Loop(
            stage, self.steps, t.validations, chunk, Cached(problem.panel), job.train, order,
            (key_S, self.sweep.hyper_G()), log, words=words, knob=knob,
        )  # fmt: skip

    def start(self, of_seed: Sequence[prompts.Prompt] = ()) -> tuple[Any, Any]:
        """Returns the members' prompts and the state of their optimisers, on the host: each seed's prompt, or zeros
        with the setting's share of a linear map."""
        first = [jax.tree.map(np.asarray, p) for p in of_seed or [self.one] * len(self.seeds)]
        many = jax.tree.map(lambda *a: np.repeat(np.stack(a)[:, None], len(self.sweep), 1), *first)
        shares = [setting["linear_share"] for setting in self.sweep.settings if "linear_share" in setting]
        if shares and not of_seed:
            many = prompts.with_shares(many, np.array(shares)[None])
        opt_state = self.transform(self.sweep.settings[0]).init(self.alone)
        members = len(self.seeds), len(self.sweep)
        return many, jax.tree.map(lambda a: np.broadcast_to(a, (*members, *a.shape)), opt_state)

    def foresee(self) -> int:
        """Returns the bytes of each device that tuning will take beside what is there now. Raises TooLarge when it will
        not fit."""
        prompt, opt_state = self.start()
        state = step.State(jnp.int32(0), {**self.alone, "prompt": prompt}, opt_state)
        state = meshes.shapes(self.mesh, state)
        assert self.job.foresee is not None
        data, beside = self.job.foresee(state.params, self.job.levels)
        return dataclasses.replace(self.loop, data=data).foresee(state, beside)
