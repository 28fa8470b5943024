"""Tune prompts on a frozen backbone: all horizons, seeds and settings of a small sweep in one run; then, where
quantiles are asked for, prompts of each level from there on, on the same encodings."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import checkpoint, encodings, evaluate, memory, optim, problems, processes, prompts, step, tasks
from ptt_jax import mesh as meshes
from ptt_jax import store as stores
from ptt_jax.encodings import Cached
from ptt_jax.history import History, finite, logged
from ptt_jax.log import Log
from ptt_jax.loop import Loop, Pause, check_finite, keys, parts, resume
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.seal import write_json
from ptt_jax.store import Store
from ptt_jax.train import build, chain, shapes
from ptt_jax.windows import Span

# A member of the fan is one seed (S) and one setting (G); the backbone is everyone's.
AXES: Any = step.State(step=None, params={"backbone": None, "prompt": 0}, opt_state=0)  # type: ignore[arg-type]


class Sweep:
    """The settings of a sweep: each learning rate with each weight decay; of quantile prompts one for each level."""

    def __init__(self, section: ConfigDict, levels: tuple[float, ...] = ()) -> None:
        rates = tuple(section.learning_rates) or (section.learning_rate,)
        decays = tuple(section.weight_decays) or (section.weight_decay,)
        self.settings = [
            {"learning_rate": float(r), "weight_decay": float(d)} for r, d in itertools.product(rates, decays)
        ]
        if levels:
            one = {"learning_rate": section.quantile_rate, "weight_decay": section.weight_decay}
            self.settings = [{"level": q, **one} for q in levels]

    def __len__(self) -> int:
        return len(self.settings)

    def hyper_G(self) -> dict[str, Array]:
        """Returns the settings as a dict of vectors, for `step.fan`."""
        return {key: jnp.array([s[key] for s in self.settings], jnp.float32) for key in self.settings[0]}


class Job(NamedTuple):
    """What prompts learn: windows, {horizon: how many of the longest one's tokens it takes}, f(setting) -> the loss,
    what it reads, f(params) -> {horizon: validation MSE_SG}, what else prompts/TASK.json says, the same f of training
    rows if they are looked at; of quantile prompts the levels, f then being of the pinball loss, and each seed's prompt
    that they start from in the place of zero."""

    train: Span
    tokens: dict[int, int]
    loss: Callable[[dict[str, Array]], tasks.Loss]
    data: Cached
    look: Callable[[Any], dict[str, np.ndarray]]
    about: dict[str, Any]
    watch: Callable[[Any], dict[str, np.ndarray]] | None = None
    levels: tuple[float, ...] = ()
    start: list[prompts.Prompt] | None = None
    encode: Callable[[int], Cached] | None = None  # of `Loop`


def tune(cfg: ConfigDict, run: Path, problem: Problem, log: Log, profile: str = "") -> str:
    """Tunes prompts to forecast, all horizons in one run, and those of `tune.quantiles` after them, on the same
    encodings, unless that was done; returns the task's name."""
    t, task = cfg.tune, prompts.name(problem.series.name, cfg.horizons)
    made: list[Job] = []

    def job(model: CrossMAE, backbone: Any) -> Job:
        dtype = model.dtype if t.cache_dtype == "compute" else jnp.dtype(t.cache_dtype)
        train, validation = problem.learning(cfg), problem.span("validation", cfg.lookback, cfg.horizons)
        encode = functools.partial(encodings.encode_all, model, backbone, problem, train, cfg.evaluate.batch)
        budget = encodings.afford(model, backbone, problem, train, t.cache_bytes, dtype)
        if budget < t.cache_bytes:
            log.say(
                f"memory: encodings may take {memory.words(budget)} in the place of config.tune.cache_bytes = "
                f"{memory.words(t.cache_bytes)}, so that half of what is free is left"
            )
        data = encode(budget, dtype)
        few = t.validation_rows if t.validation_rows < validation.rows else 0
        spare = 0 if few else budget - data.encoded_bytes  # a cache is of a span's first rows, not of drawn ones
        look = evaluate.watcher(model, problem, validation, cfg.evaluate.batch, backbone, spare, dtype, few)
        tokens = {h: prompts.patches(h, model.patch) for h in cfg.horizons}
        if model.decoder_attention == "self":  # all are asked together, so that each horizon needs the tokens of all
            tokens = dict.fromkeys(tokens, max(tokens.values()))
        some = t.watch_train
        watch = evaluate.watcher(model, problem, train, cfg.evaluate.batch, backbone, 0, dtype, some) if some else None
        loss = tasks.forecasting(model, train, penalty=t.loss)

        def again(most: int) -> Cached:
            made[0] = made[0]._replace(data=encode(most, dtype))  # of quantiles, too
            return made[0].data

        made.append(Job(train, tokens, lambda _: loss, data, look, {}, watch, encode=again))
        return made[0]

    def quantiles(model: CrossMAE, backbone: Any) -> Job:
        of: Any = made[0] if made else job(model, backbone)
        of_seed = checkpoint.load_prompts(run, task, checkpoint.find_backbone(run)["content_hash"])[cfg.horizons[-1]]

        def loss(setting: dict[str, Array]) -> tasks.Loss:
            return tasks.forecasting(model, of.train, penalty=tasks.pinball(setting["level"]))

        about = {"levels": list(t.quantiles)}
        look = lambda params: of.look(params, t.quantiles)  # noqa: E731
        return of._replace(loss=loss, look=look, about=about, watch=None, levels=t.quantiles, start=of_seed)

    learn(cfg, run, problem, log, task, job, profile)
    if t.quantiles:
        learn(cfg, run, problem, log, prompts.quantiles(task), quantiles)
    return task


@checkpoint.or_nothing
def learn(
    cfg: ConfigDict,
    run: Path,
    problem: Problem,
    log: Log,
    task: str,
    make: Callable[[CrossMAE, Any], Job],
    profile: str = "",
) -> str:
    """Tunes a task's prompts on the run's backbone, unless that was done; returns the task's name.

    make(model, backbone): the job. Each horizon keeps the tokens of the step that was best for it on validation, step 0
    (the mask token alone, or what they start from) among them; of a sweep it takes the setting that was best on
    validation over all seeds, of quantile prompts every level.
    """
    if processes.once((run / "prompts" / f"{task}.json").exists):
        log.say(f"tune: done before ({run / 'prompts' / task}.json)")
        return task
    t = cfg.tune
    with processes.together():
        card = checkpoint.find_backbone(run)
        model = build(card["architecture"], cfg.compute_dtype, views=cfg.views)
        backbone = checkpoint.load_backbone(card, shapes(model))
    backbone = meshes.replicate(problem.mesh, backbone)
    job = make(model, backbone)
    train, data, look = job.train, job.data, job.look
    steps = optim.plan(t.epochs, t.steps, t.batch, train.rows, "tune")
    stage = "quantiles" if job.levels else "tune"
    knob = "tune.quantile_rate" if job.levels else f"tune.learning_rate{'s' if t.learning_rates else ''}"
    seeds, sweep = range(cfg.seed, cfg.seed + t.seeds), Sweep(t, job.levels)
    members = f", {t.seeds} seeds x {len(sweep)} settings" if t.seeds * len(sweep) > 1 else ""

    one = prompts.make(
        t.prompts, max(job.tokens.values()), model.width, len(problem.series.names_C), model.decoder_layers
    )
    first = [jax.tree.map(np.asarray, p) for p in job.start or [one] * t.seeds]
    many = jax.tree.map(lambda *a: np.repeat(np.stack(a)[:, None], len(sweep), 1), *first)
    params = {"backbone": backbone, "prompt": meshes.replicate(problem.mesh, many)}
    alone = {"backbone": backbone, "prompt": one}

    def transform(hyper: Any) -> Any:
        instead = {key: value for key, value in hyper.items() if key != "level"}
        return optim.PROMPT.transform(chain(t, steps, **instead), alone)

    def member(hyper: dict[str, Array]) -> step.Step:
        return step.one(job.loss(hyper), transform(hyper), optim.PROMPT, problem.mesh, t.batch, train.rows)

    opt_state = transform(sweep.settings[0]).init(alone)
    opt_state = jax.tree.map(lambda a: np.broadcast_to(a, (t.seeds, len(sweep), *a.shape)), opt_state)
    knobs = f"config.tune.batch{' or config.tune.seeds' * (t.seeds > 1)}, or config.compute_dtype=bfloat16"
    chunk = memory.Program(step.many(step.fan(member, AXES)), problem.mesh, stage, knobs, log.say, parts)

    best = {str(h): jax.tree.map(np.array, prompts.cut(many, count)) for h, count in job.tokens.items()}
    whose = checkpoint.identity(cfg, ("tune.",), task, card["content_hash"], problem.series.fingerprint)
    store = Store(run / "prompts" / task, ("prompt", "state"), of=whose)
    trees = {"prompt": best, "state": {"prompt": params["prompt"], "opt_state": opt_state}}
    trees, meta = resume(store, trees, log, stage, problem.mesh)
    best, saved = jax.device_get(trees["prompt"]), trees["state"]
    history, spent = History.load(t.patience, meta.get("history", [])), meta.get("seconds", 0.0)
    at = jnp.int32(meta.get("step", 0))
    begin = step.State(at, {**params, "prompt": saved["prompt"]}, saved["opt_state"])
    begin = meshes.replicate(problem.mesh, begin)
    share = min(data.stored, train.rows) / train.rows
    log.say(
        f"{stage}: {prompts.size(one):,} prompt parameters{members}, {train.rows:,} rows, {steps:,} steps of "
        f"{t.batch}, {share:.0%} of the rows encoded once ({data.encoded_bytes / 2**20:.0f} MiB)"
    )

    def save(pause: Pause) -> None:
        meta.update(history=history.save(), seconds=spent + pause.seconds, carried=pause.carried, log=log.mark())
        state = {"prompt": pause.state.params["prompt"], "opt_state": pause.state.opt_state}
        store.save(pause.step, {"prompt": best, "state": state}, meta)

    def keep(pause: Pause) -> None:
        """Looks at validation, keeps what is best for each horizon, says so, saves."""
        said = processes.agree({h: v.tolist() for h, v in look(pause.state.params).items()})
        values = {h: np.array(v) for h, v in said.items()}
        for v in values.values():
            check_finite(stage, f"validation after step {pause.step}", *finite(v).min(1), knob=knob)
        now = jax.device_get(pause.state.params["prompt"])
        for h, better_SG in history.better(values).items():

            def choose(new: np.ndarray, old: np.ndarray, better_SG: np.ndarray = better_SG) -> np.ndarray:
                return np.where(better_SG.reshape(*better_SG.shape, *[1] * (old.ndim - 2)), new, old)

            best[h] = jax.tree.map(choose, prompts.cut(now, job.tokens[int(h)]), best[h])
        history.looks.append((pause.step, values))
        if job.levels:
            shown = {"validation_pinball": {h: float(finite(v).mean()) for h, v in values.items()}}
        else:
            shown = {"validation_mse": {h: float(finite(v).min(1).mean()) for h, v in values.items()}}
        if job.watch:
            shown["train_mse"] = logged(job.watch(pause.state.params), values)
        log.pause(stage, pause, steps, t.batch / train.rows, spent + pause.seconds, shown)
        save(pause)

    if not history.looks:
        keep(Pause(begin, 0, float("nan"), 0.0, 0.0))
    key_S = jnp.stack([keys(seed, "tune")[1] for seed in seeds])
    inputs = key_S, sweep.hyper_G()

    @jax.jit
    def order(steps_J: Array) -> Array:
        seeds = jax.vmap(lambda at, key: step.order(key, at, t.batch, train.rows), in_axes=(None, 0))
        return jax.vmap(seeds, in_axes=(0, None))(steps_J, key_S)

    if not history.settled():
        words = functools.partial(problems.words, (problem,), problem.panel, train)
        loop = Loop(
            stage, steps, t.validations, chunk, data, train, order, inputs, log, profile, words, knob, job.encode,
            meta.get("carried"),
        )  # fmt: skip
        for pause in loop.run(begin):
            if pause.carried:
                save(pause)
                continue
            keep(pause)
            if history.settled():
                log.say(f"{stage}: no horizon better in {t.patience} looks at validation, stopped")
                break
    store.finish()
    setting = {} if job.levels else {h: history.setting(h) for h in best}  # every level is one
    each = {h: [history.steps(h, g) for g in range(len(sweep))] for h in best}
    about = {
        "format": stores.FORMAT, "task": task, "step": history.looks[-1][0], "seeds": list(seeds),
        "chosen": each if job.levels else {h: each[h][g] for h, g in setting.items()},
        "setting": {h: {"index": g, **sweep.settings[g]} for h, g in setting.items()},
        "shapes": {h: list(jax.tree.leaves(p)[0].shape) for h, p in best.items()}, "leaf": next(iter(one)),
        "content_hash": stores.content_hash(best),
        "backbone": card["content_hash"], "backbone_run": card["run"],
        "tuned_parameters": prompts.size(one) * max(len(job.levels), 1), "seconds": round(meta["seconds"], 1),
        "groups": optim.table(alone, optim.PROMPT), **job.about,
    }  # fmt: skip
    processes.once(lambda: write_json(run / "prompts" / f"{task}.json", about))
    return task
