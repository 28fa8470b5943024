"""Tune prompts on a frozen backbone: all horizons, seeds and settings of a small sweep in one run; then, where
quantiles are asked for, prompts of each level from there on, on the same encodings."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import cache, checkpoint, linear, optim, processes, prompts, rundir, step, tasks
from ptt_jax import mesh as meshes
from ptt_jax import store as stores
from ptt_jax.architecture import build, shapes
from ptt_jax.history import History, finite, logged
from ptt_jax.log import Log
from ptt_jax.loop import Pause, check_finite
from ptt_jax.model import CrossMAE
from ptt_jax.plan import Encodings, Job, Plan, Read
from ptt_jax.problems import Problem
from ptt_jax.seal import write_json
from ptt_jax.store import Store
from ptt_jax.windows import Span


def plans(cfg: ConfigDict, problem: Problem, model: CrossMAE, log: Log) -> list[Plan]:
    """Returns what tunes prompts to forecast, all horizons in one run, and those of `tune.quantiles` after them, on the
    same encodings."""
    t, of = cfg.tune, Encodings(cfg, problem, model, log)
    tokens = {h: prompts.patches(h, model.patch) for h in cfg.horizons}
    if model.decoder_attention == "self":  # all are asked together, so that each horizon needs the tokens of all
        tokens = dict.fromkeys(tokens, max(tokens.values()))
    loss, of_level = losses(model, of.train, t.loss)
    job = Job(of.train, tokens, loss, of.read, {}, foresee=of.foresee)
    jobs = [job, job._replace(loss=of_level, about={"levels": list(t.quantiles)}, levels=t.quantiles)]
    return [Plan(cfg, problem, model, job, log) for job in jobs[: 1 + bool(t.quantiles)]]


@cache.kept
def losses(model: CrossMAE, span: Span, penalty: str) -> tuple[Callable, Callable]:
    """Returns f(setting) -> the loss of a forecast, and that of a quantile."""
    plain = tasks.forecasting(model, span, penalty=penalty)

    def of_level(setting: dict[str, Array]) -> tasks.Loss:
        return tasks.forecasting(model, span, penalty=tasks.pinball(setting["level"]))

    return lambda _: plain, of_level


def tune(cfg: ConfigDict, run: Path, problem: Problem, log: Log, profile: str = "", ready: Sequence[Plan] = ()) -> str:
    """Tunes the prompts of `plans`, unless that was done; returns the task's name. ready: plans that are there."""
    task, made, known = prompts.name(problem.series.name, cfg.horizons), list(ready), list[Read]()

    def plan(model: CrossMAE, at: int) -> Plan:
        made.extend([] if made else plans(cfg, problem, model, log))
        return made[at]

    def read(plan: Plan, backbone: Any) -> Read:
        known.extend([] if known else [plan.job.read(backbone)])  # quantiles read the same
        return known[0]

    def tuned() -> list[prompts.Prompt]:
        return checkpoint.load_prompts(run, task, checkpoint.find_backbone(run)["content_hash"])[cfg.horizons[-1]]

    learn(cfg, run, problem, log, task, lambda model: plan(model, 0), profile, read)
    if cfg.tune.quantiles:
        learn(cfg, run, problem, log, prompts.quantiles(task), lambda model: plan(model, 1), "", read, tuned)
    return task


@rundir.or_nothing
def learn(
    cfg: ConfigDict,
    run: Path,
    problem: Problem,
    log: Log,
    task: str,
    make: Callable[[CrossMAE], Plan],
    profile: str = "",
    read: Callable[[Plan, Any], Read] = lambda plan, backbone: plan.job.read(backbone),
    start: Callable[[], list[prompts.Prompt]] = list,
) -> str:
    """Tunes a task's prompts on the run's backbone, unless that was done; returns the task's name.

    make(model): the plan. read: f(plan, backbone) -> what is read. start(): each seed's prompt to start from; none =
    zeros. Each horizon keeps the tokens of the step that was best for it on validation, step 0 (the mask token alone
    beside the share of a linear map, if there is one, or what they start from) among them; of a sweep it takes the
    setting that was best on validation over all seeds, of quantile prompts every level.
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
    plan = make(model)
    job, loop, sweep, one, steps = plan.job, plan.loop, plan.sweep, plan.one, plan.steps
    stage, train, reading = loop.stage, job.train, read(plan, backbone)
    longest = jax.tree.leaves(one)[0].shape[-2]
    many, opt_state = plan.start(start())
    params = {"backbone": backbone, "prompt": meshes.replicate(problem.mesh, many)}
    members = f", {t.seeds} seeds x {len(sweep)} settings" if t.seeds * len(sweep) > 1 else ""

    best = {str(h): jax.tree.map(np.array, prompts.cut(many, count)) for h, count in job.tokens.items()}
    whose = checkpoint.identity(cfg, ("tune.",), task, card["content_hash"], problem.series.fingerprint)
    store = Store(run / "prompts" / task, ("prompt", "state"), of=whose)
    trees = {"prompt": best, "state": {"prompt": params["prompt"], "opt_state": opt_state}}
    trees, meta = checkpoint.resume(store, trees, log, stage, problem.mesh)
    best, saved = jax.device_get(trees["prompt"]), trees["state"]
    history, spent = History.load(t.patience, meta.get("history", [])), meta.get("seconds", 0.0)
    at = jnp.int32(meta.get("step", 0))
    begin = step.State(at, {**params, "prompt": saved["prompt"]}, saved["opt_state"])
    begin = meshes.replicate(problem.mesh, begin)
    share = min(reading.data.stored, train.rows) / train.rows
    log.say(
        f"{stage}: {prompts.size(one):,} prompt parameters{members}, {train.rows:,} rows, {steps:,} steps of "
        f"{t.batch}, {share:.0%} of the rows encoded once ({reading.data.encoded_bytes / 2**20:.0f} MiB)"
    )

    def save(pause: Pause) -> None:
        meta.update(history=history.save(), seconds=spent + pause.seconds, carried=pause.carried, log=log.mark())
        state = {"prompt": pause.state.params["prompt"], "opt_state": pause.state.opt_state}
        store.save(pause.step, {"prompt": best, "state": state}, meta)

    def look(params: Any, **by: bool) -> dict[str, np.ndarray]:
        agreed = processes.agree({h: v.tolist() for h, v in reading.look(params, job.levels, **by).items()})
        return {h: np.array(v) for h, v in agreed.items()}

    def mix(params: Any) -> None:
        """Gives each horizon's best prompts their share of the linear map, by what they learned by, and says so."""
        absolute = t.loss == "mae"
        known = {} if absolute else {h: history.stack(h).min(0) for h in best}

        def look_at(many: prompts.Prompt) -> dict[str, np.ndarray]:
            return look({**params, "prompt": meshes.replicate(problem.mesh, many)}, absolute=absolute)

        best.update(linear.with_best_shares(look_at, best, longest, known))
        shares = (f"{h}: {np.mean(prompts.shares_of(many, history.setting(h))):.2f}" for h, many in best.items())
        log.say(f"{stage}: share of the linear map at {'  '.join(shares)}")

    def keep(pause: Pause) -> None:
        """Looks at validation, keeps what is best for each horizon, says so, saves."""
        values = look(pause.state.params)
        for v in values.values():
            check_finite(stage, f"validation after step {pause.step}", *finite(v).min(1), knob=loop.knob)
        now = jax.device_get(pause.state.params["prompt"])
        for h, better_SG in history.better(values).items():
            best[h] = prompts.choose(better_SG, prompts.cut(now, job.tokens[int(h)]), best[h])
        history.looks.append((pause.step, values))
        if plan.mixes and (pause.step >= steps or history.settled()):
            mix(pause.state.params)
        if job.levels:
            shown = {"validation_pinball": {h: float(finite(v).mean()) for h, v in values.items()}}
        else:
            shown = {"validation_mse": {h: float(finite(v).min(1).mean()) for h, v in values.items()}}
        if reading.watch and not job.levels:
            shown["train_mse"] = logged(reading.watch(pause.state.params), values)
        log.pause(stage, pause, steps, t.batch / train.rows, spent + pause.seconds, shown)
        save(pause)

    if not history.looks:
        keep(Pause(begin, 0, float("nan"), 0.0, 0.0))
    if not history.settled():
        again = reading.again if reading.encode else None
        loop = dataclasses.replace(loop, data=reading.data, encode=again, carried=meta.get("carried"), profile=profile)
        for pause in loop.run(begin):
            if pause.carried:
                save(pause)
                continue
            keep(pause)
            if history.settled():
                log.say(f"{stage}: no horizon better in {t.patience} looks at validation, stopped")
                break
    store.finish()
    about = {"task": task, **said(plan, best, history), "backbone": card["content_hash"], "backbone_run": card["run"]}
    about["seconds"] = round(meta["seconds"], 1)
    processes.once(lambda: write_json(run / "prompts" / f"{task}.json", about))
    return task


def said(plan: Plan, best: dict[str, prompts.Prompt], history: History) -> dict[str, Any]:
    """Returns what prompts/TASK.json says of prompts that were learned: {horizon: members' prompts}, and how validation
    chose them."""
    job = plan.job
    setting = {} if job.levels else {h: history.setting(h) for h in best}  # every level is one
    each = {h: [history.steps(h, g) for g in range(len(plan.sweep))] for h in best}
    shares = {h: prompts.shares_of(best[h], g) for h, g in setting.items()} if plan.mixes else {}
    return {
        "format": stores.FORMAT, "step": history.looks[-1][0], "seeds": list(plan.seeds),
        "chosen": each if job.levels else {h: each[h][g] for h, g in setting.items()},
        "setting": {h: {"index": g, **plan.sweep.settings[g]} for h, g in setting.items()},
        "shapes": {h: list(jax.tree.leaves(p)[0].shape) for h, p in best.items()}, "leaf": next(iter(plan.one)),
        "content_hash": stores.content_hash(best),
        "tuned_parameters": prompts.size(plan.one) * max(len(job.levels), 1),
        "groups": optim.table(plan.alone, optim.PROMPT), **({"linear_shares": shares} if shares else {}), **job.about,
    }  # fmt: skip
