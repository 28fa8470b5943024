"""Pre-train a backbone, tune prompts on a frozen one. Both go on where a run directory says they stopped."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ptt_jax import checkpoint, evaluate, optim, processes, prompts, step, tasks
from ptt_jax import mesh as meshes
from ptt_jax.checkpoint import Store
from ptt_jax.config import UserError, write_atomic
from ptt_jax.log import Log
from ptt_jax.loop import Loop, Pause, check_finite, keys, resume, stalled
from ptt_jax.model import CrossMAE, init
from ptt_jax.tasks import Cached, Problem

Params = Any


def architecture(cfg: ConfigDict) -> dict[str, Any]:
    """Returns what a checkpoint records of the model: all that decides shapes and meaning of its parameters."""
    kept = ("patch", "width", "mlp", "heads", "encoder_layers", "decoder_layers", "position")
    ahead = prompts.patches(max(cfg.horizons[-1], cfg.pretrain.horizon), cfg.model.patch)
    return {**{k: cfg.model[k] for k in kept}, "patches": cfg.lookback // cfg.model.patch + ahead}


def build(card: dict[str, Any], compute_dtype: str, dropout: float = 0.0) -> CrossMAE:
    """Returns the model of a recorded architecture."""
    return CrossMAE(**card, dropout=dropout, dtype=jnp.dtype(compute_dtype))


def shapes(model: CrossMAE) -> Params:
    """Returns the parameter tree as shapes, without making it."""
    return jax.eval_shape(lambda: init(model, jax.random.key(0)))


def count(tree: Params) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def chain(section: ConfigDict, steps: int) -> Any:
    """Returns the optimiser of a stage's config section."""
    names = {"peak": "learning_rate", "warmup": "warmup", "weight_decay": "weight_decay", "clip": "clip"}
    return optim.chain(steps=steps, **{name: section[key] for name, key in names.items()})


def check(cfg: ConfigDict, problem: Problem) -> None:
    """Raises UserError when a split holds no window or a batch does not divide by the mesh."""
    spans = {split: problem.span(split, cfg.lookback, cfg.horizons) for split in ("train", "validation", "test")}
    for split, (begin, end) in problem.series.splits.items():
        if not problem.series.observed_TC[begin:end].any():
            raise UserError(f"the {split} split, rows {begin} to {end}, has no value at all; accepted: at least one")
    if not cfg.backbone:
        whole = [problem.span(s, cfg.lookback, (whole_patches(cfg),)) for s in ("train", "validation")]
        optim.plan(cfg.pretrain.epochs, cfg.pretrain.steps, cfg.pretrain.batch, whole[0].rows, "pretrain")
        meshes.check_divides(problem.mesh, "pretrain.batch", cfg.pretrain.batch)
    optim.plan(cfg.tune.epochs, cfg.tune.steps, cfg.tune.batch, spans["train"].rows, "tune")
    meshes.check_divides(problem.mesh, "tune.batch", cfg.tune.batch)


def whole_patches(cfg: ConfigDict) -> int:
    """Returns how many steps a pre-training window covers past the lookback: whole patches."""
    horizon = cfg.horizons[-1] if cfg.pretrain.horizon < 0 else cfg.pretrain.horizon
    return prompts.patches(horizon, cfg.model.patch) * cfg.model.patch


def pretrain(cfg: ConfigDict, run: Path, problem: Problem, log: Log) -> None:
    """Pre-trains a backbone and writes backbone.json, unless that is there already."""
    if processes.once((run / "backbone.json").exists):
        log.say(f"pretrain: done before ({run / 'backbone.json'})")
        return
    p, card = cfg.pretrain, architecture(cfg)
    model = build(card, cfg.compute_dtype, cfg.model.dropout)
    train, validation = (problem.span(s, cfg.lookback, (whole_patches(cfg),)) for s in ("train", "validation"))
    steps = optim.plan(p.epochs, p.steps, p.batch, train.rows, "pretrain")

    weights_key, key = keys(cfg.seed, "pretrain")
    params = meshes.replicate(problem.mesh, {"backbone": init(model, weights_key)})
    tx = optim.ALL.transform(chain(p, steps), params)
    state = step.start(params, tx)
    hiding = {"ratio": p.mask_ratio, "tail_share": p.tail_share, "norm": p.norm}
    loss = tasks.reconstruction(model, train, **hiding, train=True)
    chunk = step.many(step.one(loss, tx, optim.ALL, problem.mesh, p.batch, train.rows))
    look = evaluate.sampler(model, problem, validation, p.validation_rows, hiding, keys(0, "validation"))

    store = Store(run / "backbone", ("params", "state"))
    trees = {"params": params["backbone"], "state": {"params": params["backbone"], "opt_state": state.opt_state}}
    trees, meta = resume(store, trees, log, "pretrain", problem.mesh)
    chosen, saved = jax.device_get(trees["params"]), trees["state"]
    history: list[tuple[int, float]] = [(at, value) for at, value in meta.get("history", [])]
    spent: float = meta.get("seconds", 0.0)
    begin = step.State(jnp.int32(history[-1][0] if history else 0), {"backbone": saved["params"]}, saved["opt_state"])
    begin = meshes.replicate(problem.mesh, begin)
    log.say(f"pretrain: {count(params):,} parameters, {train.rows:,} rows, {steps:,} steps of {p.batch}")

    def keep(pause: Pause) -> None:
        """Looks at validation, says so, saves: a line without its checkpoint is dropped by the next call."""
        nonlocal chosen
        losses = processes.agree(look(pause.state.params))
        check_finite("pretrain", f"validation after step {pause.step}", *losses.values())
        value = {**losses, "last": -float(pause.step)}[p.choose]
        if all(value < past for _, past in history):
            chosen = jax.device_get(pause.state.params["backbone"])
        history.append((pause.step, value))
        meta.update(history=history, seconds=spent + pause.seconds, architecture=card)
        state = {"params": pause.state.params["backbone"], "opt_state": pause.state.opt_state}
        log.pause("pretrain", pause, steps, p.batch / train.rows, meta["seconds"], {
            "validation_loss": losses["reconstruction"], "validation_forecast": losses["forecast"],
        })  # fmt: skip
        store.save(pause.step, {"params": chosen, "state": state}, meta)

    loop = Loop("pretrain", steps, p.validations, chunk, Cached(problem.panel), key, log)
    if not stalled([v for _, v in history], p.patience):
        for pause in loop.run(begin):
            keep(pause)
            if stalled([v for _, v in history], p.patience):
                log.say(f"pretrain: nothing better in {p.patience} looks at validation, stopped")
                break

    store.close()
    series = problem.series
    about = {
        "run": "", "step": history[-1][0], "chosen": min(history, key=lambda h: h[1])[0],
        "content_hash": checkpoint.content_hash(chosen), "parameters": count(chosen), "data": series.name,
        "freq": series.freq, "channels": len(series.names_C), "fingerprint": series.fingerprint,
        "train_end": series.splits["train"][1], "lookback": cfg.lookback, "seconds": round(meta["seconds"], 1),
        "architecture": card,
    }  # fmt: skip
    processes.once(lambda: write_atomic(run / "backbone.json", json.dumps(about, indent=2)))


def tune(cfg: ConfigDict, run: Path, problem: Problem, log: Log) -> str:
    """Tunes prompts on the run's backbone, unless that was done; returns the task's name.

    All horizons learn in one run. Each keeps the tokens of the step that was best for it on validation, step 0 (the
    mask token alone) among them.
    """
    task = prompts.name(problem.series.name, cfg.horizons)
    if processes.once((run / "prompts" / f"{task}.json").exists):
        log.say(f"tune: done before ({run / 'prompts' / task}.json)")
        return task
    t, card = cfg.tune, checkpoint.find_backbone(run)
    model = build(card["architecture"], cfg.compute_dtype)
    backbone = meshes.replicate(problem.mesh, checkpoint.load_backbone(card, shapes(model)))
    train, validation = (problem.span(s, cfg.lookback, cfg.horizons) for s in ("train", "validation"))
    steps = optim.plan(t.epochs, t.steps, t.batch, train.rows, "tune")

    prompt = prompts.make(t.prompts, prompts.patches(cfg.horizons[-1], model.patch), model.width)
    params = {"backbone": backbone, "prompt": meshes.replicate(problem.mesh, prompt)}
    tx = optim.PROMPT.transform(chain(t, steps), params)
    state = step.start(params, tx)
    loss = tasks.forecasting(model, train, penalty=t.loss)
    chunk = step.many(step.one(loss, tx, optim.PROMPT, problem.mesh, t.batch, train.rows))
    data = tasks.encode_all(model, backbone, problem, train, cfg.evaluate.batch, t.cache_bytes)
    left = t.cache_bytes - data.encoded_bytes
    look = evaluate.watcher(model, problem, validation, cfg.evaluate.batch, backbone, left)

    best = {str(h): prompts.cut(prompt, prompts.patches(h, model.patch)) for h in cfg.horizons}
    store = Store(run / "prompts" / task, ("prompt", "state"))
    trees = {"prompt": best, "state": {"prompt": params["prompt"], "opt_state": state.opt_state}}
    trees, meta = resume(store, trees, log, "tune", problem.mesh)
    best, saved = jax.device_get(trees["prompt"]), trees["state"]
    history: list[tuple[int, dict[str, float]]] = [(at, values) for at, values in meta.get("history", [])]
    spent: float = meta.get("seconds", 0.0)
    at = jnp.int32(history[-1][0] if history else 0)
    begin = step.State(at, {**params, "prompt": saved["prompt"]}, saved["opt_state"])
    begin = meshes.replicate(problem.mesh, begin)
    cached = f"{data.encoded_bytes / 2**20:.0f} MiB of encodings cached" if data.encoded else "encoder run at each step"
    log.say(
        f"tune: {prompts.size(prompt):,} prompt parameters, {train.rows:,} rows, {steps:,} steps of {t.batch}, {cached}"
    )

    def keep(pause: Pause) -> None:
        """Looks at validation, keeps what is best for each horizon, says so, saves."""
        values = processes.agree(look(pause.state.params))
        check_finite("tune", f"validation after step {pause.step}", *values.values())
        tokens = jax.device_get(pause.state.params["prompt"])
        for h in cfg.horizons:
            if all(values[str(h)] < past[str(h)] for _, past in history):
                best[str(h)] = prompts.cut(tokens, prompts.patches(h, model.patch))
        history.append((pause.step, values))
        meta.update(history=history, seconds=spent + pause.seconds)
        trees = {"prompt": best, "state": {"prompt": tokens, "opt_state": pause.state.opt_state}}
        log.pause("tune", pause, steps, t.batch / train.rows, meta["seconds"], {"validation_mse": values})
        store.save(pause.step, trees, meta)

    def settled() -> bool:
        return all(stalled([values[str(h)] for _, values in history], t.patience) for h in cfg.horizons)

    if not history:
        keep(Pause(begin, 0, float("nan"), 0.0, 0.0))
    if not settled():
        for pause in Loop("tune", steps, t.validations, chunk, data, keys(cfg.seed, "tune")[1], log).run(begin):
            keep(pause)
            if settled():
                log.say(f"tune: no horizon better in {t.patience} looks at validation, stopped")
                break
    store.close()
    about = {
        "task": task, "step": history[-1][0], "chosen": {h: min((v[h], at) for at, v in history)[1] for h in best},
        "shapes": {h: list(p["tokens_MD"].shape) for h, p in best.items()},
        "content_hash": checkpoint.content_hash(best),
        "backbone": card["content_hash"], "backbone_run": card["run"], "tuned_parameters": prompts.size(prompt),
        "seconds": round(meta["seconds"], 1), "groups": optim.table(params, optim.PROMPT),
    }  # fmt: skip
    processes.once(lambda: write_atomic(run / "prompts" / f"{task}.json", json.dumps(about, indent=2)))
    return task
