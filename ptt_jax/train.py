"""Pre-train a backbone, going on where the run directory says that it stopped; and what must hold before that."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import (
    architecture,
    cache,
    checkpoint,
    linear,
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
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.loop import Loop, Pause, check_finite, keys, parts, stalled
from ptt_jax.model import CrossMAE, init
from ptt_jax.problems import Problem
from ptt_jax.seal import write_json
from ptt_jax.store import Store
from ptt_jax.stream import Host
from ptt_jax.windows import Mix, Panel, Span

Params = Any


def check(cfg: ConfigDict, problem: Problem, also: Sequence[Problem] = ()) -> None:
    """Raises UserError when a split holds no window or nothing to forecast, or a batch does not divide by the mesh."""
    spans = {split: problem.span(split, cfg.lookback, cfg.horizons) for split in ("train", "validation", "test")}
    for split, span in spans.items():
        begin = span.first + span.lookback  # a series begins with a lookback that no window forecasts
        if not problem.series.observed_TC[begin : span.end].any():  # the same rows for every horizon
            raise UserError(
                f"{problem.series.name}: the {split} split has no value at all in rows {begin} to {span.end}, which "
                f"its windows of horizon {', '.join(map(str, span.horizons))} forecast; accepted: at least one value "
                f"there"
            )
    if not cfg.backbone:
        problem.span("validation", *window(cfg))
        if cfg.model.linear:
            whole = architecture.build(architecture.of(cfg), cfg.compute_dtype)
            for of, split in ((problem, "validation"), *((of, "train") for of in (problem, *also))):
                linear.span(whole, of, cfg.lookback, split)
        _, train = windows(cfg, problem, also)
        optim.plan(cfg.pretrain.epochs, cfg.pretrain.steps, cfg.pretrain.batch, train.rows, "pretrain")
        meshes.check_divides(problem.mesh, "pretrain.batch", cfg.pretrain.batch)
    optim.plan(cfg.tune.epochs, cfg.tune.steps, cfg.tune.batch, problem.learning(cfg).rows, "tune")
    meshes.check_divides(problem.mesh, "tune.batch", cfg.tune.batch)


def window(cfg: ConfigDict) -> tuple[int, tuple[int]]:
    """Returns lookback and horizon of a pre-training window, whole patches. One that ends with the lookback has its
    last patch for a horizon: what the tail masks and the forecast that validation looks at are about."""
    ahead, patch = cfg.horizons[-1] if cfg.pretrain.horizon < 0 else cfg.pretrain.horizon, cfg.model.patch
    return (cfg.lookback, (prompts.patches(ahead, patch) * patch,)) if ahead else (cfg.lookback - patch, (patch,))


def windows(cfg: ConfigDict, problem: Problem, also: Sequence[Problem]) -> tuple[Panel | Host | Mix, Span]:
    """Returns the panel that pre-training reads and its span: the problem's own, or a mix with others."""
    if not also:
        return problem.panel, problem.span("train", *window(cfg))
    lookback, (horizon,) = window(cfg)
    mix = problems.mix((problem, *also), lookback, horizon)
    return mix, mix.span


def hiding(section: ConfigDict) -> dict[str, Any]:
    """Returns what `tasks.reconstruction` takes of a config's section."""
    names = {"ratio": "mask_ratio", "tail_share": "tail_share", "norm": "norm", "penalty": "loss", "units": "units"}
    return {name: section[key] for name, key in names.items()}


def augmentation(section: ConfigDict) -> dict[str, Any]:
    """Returns what `tasks.augment` takes of a config's section; validation has none."""
    return {"flip": section.flip, "blend": section.blend}


@cache.kept
def learner(
    model: CrossMAE, mesh: Mesh, span: Span, batch: int, hidden: tuple[tuple[str, Any], ...],
    said: tuple[tuple[str, Any], ...],
) -> tuple[Any, Callable]:  # fmt: skip
    """Returns the optimiser of pre-training and its `step.many`; hidden: of `tasks.reconstruction`, said: of
    `optim.terms`."""
    tx = optim.ALL.transform(optim.optimiser(said), {"backbone": architecture.shapes(model)})
    loss = tasks.reconstruction(model, span, **dict(hidden), train=True)
    return tx, step.many(step.one(loss, tx, optim.ALL, mesh, batch, span.rows))


@rundir.or_nothing
def pretrain(
    cfg: ConfigDict, run: Path, problem: Problem, log: Log, profile: str = "", also: Sequence[Problem] = ()
) -> None:
    """Pre-trains a backbone and writes backbone.json, unless that is there already.

    also: further series, each of which teaches as often as the problem's own; validation is the problem's.
    """
    if processes.once((run / "backbone.json").exists):
        log.say(f"pretrain: done before ({run / 'backbone.json'})")
        return
    p, card = cfg.pretrain, architecture.of(cfg)
    whole = architecture.build(card, cfg.compute_dtype, cfg.model.dropout)
    model = whole.clone(linear=0)  # what learns
    panel, train = windows(cfg, problem, also)
    validation = problem.span("validation", *window(cfg))
    steps = optim.plan(p.epochs, p.steps, p.batch, train.rows, "pretrain")

    weights_key, key = keys(cfg.seed, "pretrain")
    params = meshes.replicate(problem.mesh, {"backbone": init(model, weights_key)})
    hidden, said = hiding(p), optim.terms(p, steps, average=p.average)
    tx, many = learner(model, problem.mesh, train, p.batch, tuple({**hidden, **augmentation(p)}.items()), said)
    state = step.start(params, tx)
    knobs = "config.pretrain.batch, or config.compute_dtype=bfloat16"
    chunk = memory.Program(many, problem.mesh, "pretrain", knobs, log.say, parts)
    order = step.orders(key, p.batch, train.rows)
    like = meshes.shapes(problem.mesh, params)
    look = watch.sampler(model, problem, validation, p.validation_rows, hidden, keys(0, "validation"), like)

    fingerprints = (other.series.fingerprint for other in (problem, *also))
    whose = checkpoint.identity(cfg, ("pretrain.", "model."), *fingerprints)
    store = Store(run / "backbone", ("params", "state"), of=whose)
    trees = {
        "params": linear.beside(whole, params["backbone"], None),
        "state": {"params": params["backbone"], "opt_state": state.opt_state},
    }
    trees, meta = checkpoint.resume(store, trees, log, "pretrain", problem.mesh)
    chosen, saved = jax.device_get(trees["params"]), trees["state"]
    history: list[tuple[int, float]] = [(at, value) for at, value in meta.get("history", [])]
    spent: float = meta.get("seconds", 0.0)
    begin = step.State(jnp.int32(meta.get("step", 0)), {"backbone": saved["params"]}, saved["opt_state"])
    begin = meshes.replicate(problem.mesh, begin)
    mixed = f" of {1 + len(also)} series" if also else ""
    size = architecture.count(params)
    log.say(f"pretrain: {size:,} parameters, {train.rows:,} rows{mixed}, {steps:,} steps of {p.batch}")

    @functools.cache
    def map_TH() -> np.ndarray | None:
        return linear.fit(whole, problem, cfg.lookback, also, p.linear_towards) if whole.linear else None

    def save(pause: Pause) -> None:
        meta.update(
            history=history, seconds=spent + pause.seconds, architecture=card, carried=pause.carried, log=log.mark()
        )
        state = {"params": pause.state.params["backbone"], "opt_state": pause.state.opt_state}
        store.save(pause.step, {"params": chosen, "state": state}, meta)

    def keep(pause: Pause) -> None:
        """Looks at validation, says so, saves: a line without its checkpoint is dropped by the next call."""
        nonlocal chosen
        params = optim.averaged(pause.state.opt_state) if p.average else pause.state.params
        losses = processes.agree(look(params))
        check_finite("pretrain", f"validation after step {pause.step}", *losses.values())
        value = {**losses, "last": -float(pause.step)}[p.choose]
        if all(value < past for _, past in history):
            chosen = linear.beside(whole, params["backbone"], map_TH())
        history.append((pause.step, value))
        log.pause("pretrain", pause, steps, p.batch / train.rows, spent + pause.seconds, {
            "validation_loss": losses["reconstruction"], "validation_forecast": losses["forecast"],
        })  # fmt: skip
        save(pause)

    if not steps and not history:  # the control
        keep(Pause(begin, 0, float("nan"), 0.0, 0.0))
    data = Cached(panel)
    words = functools.partial(problems.words, (problem, *also), panel, train)
    loop = Loop(
        "pretrain", steps, p.validations, chunk, data, train, order, (key,), log, profile, words,
        carried=meta.get("carried"),
    )  # fmt: skip
    if steps and not stalled([v for _, v in history], p.patience):
        for pause in loop.run(begin):
            if pause.carried:
                save(pause)
                continue
            keep(pause)
            if stalled([v for _, v in history], p.patience):
                log.say(f"pretrain: nothing better in {p.patience} looks at validation, stopped")
                break

    store.finish()
    series = problem.series
    about = {
        "format": stores.FORMAT, "run": "", "step": history[-1][0], "chosen": min(history, key=lambda h: h[1])[0],
        "content_hash": stores.content_hash(chosen), "parameters": architecture.count(chosen), "data": series.name,
        "freq": series.freq, "channels": len(series.names_C), "fingerprint": series.fingerprint,
        "train_end": series.splits["train"][1], "lookback": cfg.lookback, "seconds": round(meta["seconds"], 1),
        "architecture": card,
    }  # fmt: skip
    if also:
        about["also"] = [
            {"data": s.name, "fingerprint": s.fingerprint, "train_end": s.splits["train"][1]}
            for s in (other.series for other in also)
        ]
    processes.once(lambda: write_json(run / "backbone.json", about))
