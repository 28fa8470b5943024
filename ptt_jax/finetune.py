"""What prompts are compared with: a new head on the frozen encoder, on one that learns, all of the Cross-MAE, or
prompts while parts of the backbone learn, too.

One model learns all horizons, from the longest one's forecast; each horizon keeps the weights of the step that was best
for it on validation, as it keeps its prompt. Optimiser, schedule and looks are those of tuning; what learns besides a
head has dropout. Rates and lengths are the config's, and want choosing for each mode.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import (
    baselines,
    cache,
    checkpoint,
    encodings,
    memory,
    optim,
    problems,
    processes,
    prompts,
    rundir,
    step,
    tasks,
    watch,
)
from ptt_jax import mesh as meshes
from ptt_jax import store as stores
from ptt_jax.architecture import build, shapes
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.history import History, logged
from ptt_jax.knobs import PARTS
from ptt_jax.log import Log
from ptt_jax.loop import Loop, Pause, check_finite, keys, parts
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.seal import write_json
from ptt_jax.store import Store
from ptt_jax.windows import Span

Params = Any
GROUPS = {"probe": optim.PROBE, "head": optim.HEAD, "full": optim.ALL}
# What of {'backbone', 'probe', 'prompt'} a mode changes, and so keeps.
KEPT = {"probe": ("probe",), "head": ("backbone", "probe"), "full": ("backbone",), "thaw": ("backbone", "prompt")}
UNREAD = {"mask_token", "head"}  # parts on which nothing depends that the cache holds


def thawed(section: ConfigDict) -> tuple[str, ...]:
    """Returns the parts of the backbone that a config's section thaws."""
    return PARTS if section.thaw == "all" else tuple(filter(None, section.thaw.split(",")))


def groups_of(section: ConfigDict) -> optim.Groups:
    """Returns what learns under a config's section."""
    return optim.Groups((*thawed(section), "prompt")) if section.mode == "thaw" else GROUPS[section.mode]


def loss(mode: str, model: CrossMAE, span: Span, penalty: str, thawed: tuple[str, ...] = ()) -> tasks.Loss:
    """Returns the training loss of a mode. A frozen encoder does not drop: what it says is what it will say."""
    if mode == "full":
        return baselines.retraining(model, span, penalty=penalty)
    if mode == "thaw":
        return baselines.thawing(model, span, penalty=penalty, thawed=thawed)
    return baselines.probing(model, span, penalty=penalty, train=mode == "head")


def start(
    mode: str, model: CrossMAE, backbone: Params, kind: str, lookback: int, horizon: int, channels: int
) -> Params:
    """Returns the parameters at step 0: the backbone, and a new head or a prompt of zeros of that kind."""
    if mode == "full":
        return {"backbone": backbone}
    if mode == "thaw":
        count = prompts.patches(horizon, model.patch)
        one = prompts.make(kind, count, model.token, channels, model.decoder_layers)
        return {"backbone": backbone, "prompt": one}
    return {"backbone": backbone, "probe": baselines.make_probe(model, lookback, horizon)}


@cache.kept
def learner(
    mode: str, model: CrossMAE, mesh: Mesh, span: Span, batch: int, penalty: str, groups: optim.Groups,
    parts: tuple[str, ...], kind: str, said: tuple[tuple[str, Any], ...],
) -> tuple[Any, Callable]:  # fmt: skip
    """Returns the optimiser of a mode and its `step.many`; parts: that thaw, kind: of the prompt, said: of
    `optim.terms`."""
    backbone, rest = shapes(model), (kind, span.lookback, span.horizons[-1], span.channels)
    params = jax.eval_shape(lambda: start(mode, model, backbone, *rest)) if mode != "full" else {"backbone": backbone}
    tx = groups.transform(optim.optimiser(said), params)
    return tx, step.many(step.one(loss(mode, model, span, penalty, parts), tx, groups, mesh, batch, span.rows))


def name(cfg: ConfigDict, data: str) -> str:
    """Returns the task's name, a folder under `finetuned`: 'probe-ETTh1-96-192-336-720'."""
    return f"{cfg.tune.mode}-{prompts.name(data, cfg.horizons)}"


class Plan:
    """What trains as `tune.mode` says, before a backbone's weights are there."""

    def __init__(self, cfg: ConfigDict, problem: Problem, model: CrossMAE, log: Log) -> None:
        t, mesh = cfg.tune, problem.mesh
        self.cfg, self.problem, self.model, self.groups = cfg, problem, model, groups_of(t)
        train, self.validation = problem.learning(cfg), problem.span("validation", cfg.lookback, cfg.horizons)
        steps = optim.plan(t.epochs, t.steps, t.batch, train.rows, "tune")
        self.tx, many = learner(
            t.mode, model, mesh, train, t.batch, t.loss, self.groups, thawed(t), t.prompts, optim.terms(t, steps)
        )
        knobs = "config.tune.batch, or config.compute_dtype=bfloat16"
        chunk = memory.Program(many, mesh, "tune", knobs, log.say, parts)
        _, key = keys(cfg.seed, "tune")
        order = step.orders(key, t.batch, train.rows)
        words = functools.partial(problems.words, (problem,), problem.panel, train)
        self.loop = Loop(
            "tune", steps, t.validations, chunk, Cached(problem.panel), train, order, (key,), log, words=words
        )
        self.measure = watch.measure(model, problem, self.validation, cfg.evaluate.batch)
        self.encoder = None
        if t.mode == "thaw" and {*thawed(t)} <= UNREAD:
            dtype = model.dtype if t.cache_dtype == "compute" else jnp.dtype(t.cache_dtype)
            self.encoder = encodings.Encoder(model, problem, train, cfg.evaluate.batch, dtype)

    def params(self, backbone: Params) -> Params:
        """Returns the parameters at step 0, of a backbone that may be shapes."""
        cfg, channels = self.cfg, len(self.problem.series.names_C)
        kind, longest = cfg.tune.prompts, cfg.horizons[-1]
        return start(cfg.tune.mode, self.model, backbone, kind, cfg.lookback, longest, channels)

    def foresee(self) -> int:
        """Returns the bytes of each device that training will take beside what is there now. Raises TooLarge when it,
        or a look at validation, will not fit."""
        backbone, loop = shapes(self.model), self.loop
        state = jax.eval_shape(lambda backbone: step.start(self.params(backbone), self.tx), backbone)
        state = meshes.shapes(self.problem.mesh, state)
        if self.encoder:
            frozen = meshes.shapes(self.problem.mesh, backbone)
            data = self.encoder.foresee(frozen, self.encoder.afford(frozen, self.cfg.tune.cache_bytes))
            loop = dataclasses.replace(loop, data=data)
        self.measure.foresee(self.problem.panel, state.params, self.validation, beside=state.opt_state)
        return loop.foresee(state)


@rundir.or_nothing
def finetune(
    cfg: ConfigDict, run: Path, problem: Problem, log: Log, profile: str = "", plan: Plan | None = None
) -> str:
    """Trains what `tune.mode` says on the run's backbone, unless that was done; returns the task's name. plan: one that
    is there."""
    t, mode, task = cfg.tune, cfg.tune.mode, name(cfg, problem.series.name)
    if processes.once((run / "finetuned" / f"{task}.json").exists):
        log.say(f"tune: done before ({run / 'finetuned' / task}.json)")
        return task
    with processes.together():
        card = checkpoint.find_backbone(run)
        model = build(card["architecture"], cfg.compute_dtype, cfg.model.dropout, cfg.views)
        backbone = checkpoint.load_backbone(card, shapes(model))
    plan = plan or Plan(cfg, problem, model, log)
    train, steps, groups = plan.loop.span, plan.loop.steps, plan.groups
    params = plan.params(backbone)
    look = watch.looks(plan.measure, problem, plan.validation)
    few = t.watch_train
    learned = few and watch.looks(watch.measure(model, problem, train, cfg.evaluate.batch, few), problem, train)

    def kept(params: Params) -> Params:
        return {root: params[root] for root in KEPT[mode]}

    state = step.start(params, plan.tx)
    whose = checkpoint.identity(cfg, ("tune.", "model."), task, card["content_hash"], problem.series.fingerprint)
    store = Store(run / "finetuned" / task, ("best", "state"), of=whose)
    best = {str(h): kept(params) for h in cfg.horizons}
    trees = {"best": best, "state": {"params": kept(params), "opt_state": state.opt_state}}
    trees, meta = checkpoint.resume(store, trees, log, "tune", problem.mesh)
    best, saved = jax.device_get(trees["best"]), trees["state"]
    history, spent = History.load(t.patience, meta.get("history", [])), meta.get("seconds", 0.0)
    at = jnp.int32(meta.get("step", 0))
    begin = meshes.replicate(problem.mesh, step.State(at, {**params, **saved["params"]}, saved["opt_state"]))
    table = optim.table(params, groups)
    tuned = sum(row["tuned"] for row in table.values())
    log.say(f"tune ({mode}): {tuned:,} parameters learn, {train.rows:,} rows, {steps:,} steps of {t.batch}")

    def save(pause: Pause, now: Params) -> None:
        meta.update(history=history.save(), seconds=spent + pause.seconds, carried=pause.carried, log=log.mark())
        store.save(pause.step, {"best": best, "state": {"params": now, "opt_state": pause.state.opt_state}}, meta)

    def keep(pause: Pause) -> None:
        """Looks at validation, keeps what is best for each horizon, says so, saves."""
        said = processes.agree({h: v.tolist() for h, v in look(pause.state.params).items()})
        values = {h: np.array(v) for h, v in said.items()}
        check_finite("tune", f"validation after step {pause.step}", *(float(v.min()) for v in values.values()))
        now = jax.device_get(kept(pause.state.params))
        best.update({h: now for h, better_11 in history.better(values).items() if better_11.all()})
        history.looks.append((pause.step, values))
        shown = {"validation_mse": {h: float(v[0, 0]) for h, v in values.items()}}
        if learned:
            shown["train_mse"] = logged(learned(pause.state.params), values)
        log.pause("tune", pause, steps, t.batch / train.rows, spent + pause.seconds, shown)
        save(pause, now)

    if not history.looks:
        keep(Pause(begin, 0, float("nan"), 0.0, 0.0))
    if not history.settled():
        loop = dataclasses.replace(plan.loop, profile=profile, carried=meta.get("carried"))
        if plan.encoder:
            frozen = meshes.replicate(problem.mesh, backbone)
            loop.encode = functools.partial(plan.encoder, frozen)
            loop.data = loop.encode(plan.encoder.afford(frozen, t.cache_bytes))
        for pause in loop.run(begin):
            if pause.carried:
                save(pause, jax.device_get(kept(pause.state.params)))
                continue
            keep(pause)
            if history.settled():
                log.say(f"tune: no horizon better in {t.patience} looks at validation, stopped")
                break
    store.finish()
    about = {
        "format": stores.FORMAT, "task": task, "mode": mode, "step": history.looks[-1][0],
        "chosen": {h: history.steps(h, 0)[0] for h in best}, "content_hash": stores.content_hash(best),
        "backbone": card["content_hash"], "backbone_run": card["run"], "tuned_parameters": tuned,
        "seconds": round(meta["seconds"], 1), "groups": table,
    }  # fmt: skip
    processes.once(lambda: write_json(run / "finetuned" / f"{task}.json", about))
    return task


def load(
    cfg: ConfigDict, run: Path, task: str, card: dict[str, Any], backbone: Params, channels: int = 1
) -> dict[int, Params]:
    """Returns {horizon: parameters}, whole trees, as chosen on validation.

    Raises UserError when they are not what the task's json names or belong to another backbone.
    """
    about = checkpoint.read_card(run / "finetuned" / f"{task}.json")
    if about.get("format") not in stores.READ:
        raise UserError(
            f"{run / 'finetuned' / task} is of another version of ptt_jax (format {about.get('format')}, not "
            f"{' or '.join(map(str, stores.READ))}); accepted: what this version trained"
        )
    if about["backbone"] != card["content_hash"]:
        raise UserError(
            f"{run / 'finetuned' / task} belongs to backbone {about['backbone'][:12]}, not to "
            f"{card['content_hash'][:12]}; accepted: the backbone it was tuned on ({about['backbone_run']})"
        )
    model = build(card["architecture"], cfg.compute_dtype, views=cfg.views)
    params = start(cfg.tune.mode, model, backbone, cfg.tune.prompts, cfg.lookback, cfg.horizons[-1], channels)
    like = {root: params[root] for root in KEPT[cfg.tune.mode]}
    store = Store(run / "finetuned" / task, ("best", "state"), write=False)
    best = store.restore(about["step"], "best", {str(h): like for h in cfg.horizons})
    store.close()
    if stores.content_hash(best) != about["content_hash"]:
        raise UserError(
            f"{run}/finetuned/{task}/{about['step']} is not what {task}.json names (content hash differs); "
            f"accepted: the files as the run wrote them"
        )
    return {int(h): {**params, **tree} for h, tree in best.items()}
