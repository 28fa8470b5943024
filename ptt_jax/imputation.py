"""The task of imputation: tune a prompt that brings back what is hidden of a split's windows, find how far its answers
lean on straight lines, keep both."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import ConfigDict

from ptt_jax import architecture, bridge, cache, checkpoint, gaps, impute, processes, restoration, tune
from ptt_jax import mesh as meshes
from ptt_jax.config import flat
from ptt_jax.data import Series, season
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.gaps import Law
from ptt_jax.knobs import FREE
from ptt_jax.log import Log
from ptt_jax.model import CrossMAE
from ptt_jax.plan import Job, Plan, Read
from ptt_jax.problems import Problem
from ptt_jax.seal import read_json, write_json
from ptt_jax.tasks import Loss
from ptt_jax.windows import Span, few, take

Params = Any
# Of tuning, what decides no prompt for imputation; its loss is the squared error.
UNREAD = (
    *FREE, "tune.mode", "tune.thaw", "tune.loss", "tune.watch_train", "tune.cache_dtype", "tune.linear_shares",
    "tune.linear_when",
)  # fmt: skip


def way(cfg: ConfigDict, model: CrossMAE, series: Series) -> impute.Way:
    """Returns what a config says for a series."""
    return impute.Way(cfg.impute.fill, cfg.impute.reach * model.patch, season(series.freq))


def law(cfg: ConfigDict, series: Series) -> Law:
    """Returns how a config hides values of a series."""
    return gaps.law(cfg.impute.kind, cfg.impute.ratios, cfg.impute.blocks, season(series.freq))


def imputing(model: CrossMAE, span: Span, hiding: Law, of: impute.Way) -> Loss:
    """Returns the tuning loss: squared error in scaled space at hidden values, all of them observed."""

    def loss(params: Params, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        x_RL, observed_RL = take(data.panel, span, row_R)
        hidden_RL = gaps.hide(hiding, key, row_R, observed_RL)
        y_RL = impute.impute(model, params, of, x_RL, observed_RL & ~hidden_RL, row_R % span.channels)
        return jnp.square(jnp.where(hidden_RL, y_RL - x_RL, 0)).sum(1), hidden_RL.sum(1, dtype=jnp.float32)

    return loss


@cache.kept
def losses(model: CrossMAE, span: Span, hiding: Law, of: impute.Way) -> Callable[[Any], Loss]:
    """Returns what `imputing` does of every setting of a sweep."""
    loss = imputing(model, span, hiding, of)
    return lambda _: loss


def tuning(cfg: ConfigDict, run: Path, problem: Problem, log: Log, profile: str = "") -> str:
    """Tunes the prompt of a config's kind and ratios on the run's backbone, unless that was done; returns the task's
    name. Every window of the training split is learned from; validation's gaps are fixed.

    Raises UserError when the run has a prompt of that name that was tuned otherwise, or a backbone that `impute.check`
    refuses.
    """
    hiding = law(cfg, problem.series)
    task = name(problem.series.name, hiding)
    with processes.together():
        of_run = architecture.build(checkpoint.find_backbone(run)["architecture"], cfg.compute_dtype)
        impute.check(of_run)
    of = way(cfg, of_run, problem.series)
    about = {"impute": {**dataclasses.asdict(hiding), **of._asdict()}, "knobs": knobs(cfg)}
    processes.once(lambda: claim(run / "prompts", task, about))

    def plan(model: CrossMAE) -> Plan:
        learned, validation = (restoration.span(problem, split, cfg.lookback) for split in ("train", "validation"))
        learned = few(learned, cfg.tune.share)
        measure = restoration.evaluator(
            restoration.closing(model, of), problem.mesh, cfg.evaluate.batch, restoration.stride(model.patch)
        )

        def look(params: Params, _: tuple[float, ...]) -> dict[str, np.ndarray]:
            return {str(cfg.lookback): measure(problem.panel, params, validation, hiding)["prompt"].mse}

        tokens, loss = {cfg.lookback: cfg.lookback // model.patch}, losses(model, learned, hiding, of)
        job = Job(learned, tokens, loss, lambda _: Read(Cached(problem.panel), look), about, forecasts=False)
        return Plan(cfg, problem, model, job, log)

    tune.learn(cfg, run, problem, log, task, plan, profile)
    lean(cfg, run, problem, log, task, of)
    return task


def lean(cfg: ConfigDict, run: Path, problem: Problem, log: Log, task: str, of: impute.Way) -> None:
    """Notes in prompts/TASK.json by what shares each seed's answers lean on straight lines in each channel: those that
    are best on validation's gaps (`bridge.shares`), unless that was done. Prompts were chosen without."""
    path = run / "prompts" / f"{task}.json"
    if processes.once(lambda: "line_shares" in read_json(path)):
        return
    with processes.together():
        card = checkpoint.find_backbone(run)
        model = architecture.build(card["architecture"], cfg.compute_dtype)
        backbone = checkpoint.load_backbone(card, architecture.shapes(model))
        (of_seeds,) = checkpoint.load_prompts(run, task, card["content_hash"]).values()
    moments, stride = restoration.leaning(model, of, problem.mesh), restoration.stride(model.patch)
    total = restoration.totalling(moments, problem.mesh, cfg.evaluate.batch, stride)
    validation, hiding = restoration.span(problem, "validation", cfg.lookback), law(cfg, problem.series)
    each = []
    for prompt in of_seeds:
        params = meshes.replicate(problem.mesh, {"backbone": backbone, "prompt": prompt})
        share_CA = bridge.shares(total(problem.panel, params, validation, hiding))
        each.append([[round(float(share), 3) for share in share_A] for share_A in share_CA])
    mean_A = np.mean(each[0], 0)
    log.say(f"tune: answers lean on straight lines by {'  '.join(f'{share:.2f}' for share in mean_A)}, by width of gap")
    processes.once(lambda: write_json(path, {**read_json(path), "line_shares": each}))


def knobs(cfg: ConfigDict) -> dict[str, Any]:
    """Returns what decides a prompt besides the backbone, the data, and how values are hidden and gaps closed."""
    own = ("seed", "lookback", "compute_dtype")
    return {k: v for k, v in flat(cfg).items() if k in own or (k.startswith("tune.") and k not in UNREAD)}


def claim(folder: Path, task: str, about: dict[str, Any]) -> None:
    """Notes in TASK.asked how a prompt is to be tuned: tuning that was stopped goes on as it began.

    Raises UserError when TASK.json, or TASK.asked before it is there, says otherwise.
    """
    now = json.loads(json.dumps(about))  # tuples are lists there
    begun = folder / f"{task}.asked"
    for path in (folder / f"{task}.json", begun):
        if path.exists():
            known = read_json(path)
            was, asked = (
                {**of.get("knobs", {}), **{f"impute.{key}": value for key, value in of.get("impute", {}).items()}}
                for of in (known, now)
            )
            differing = [key for key, value in asked.items() if was.get(key, "not said") != value]
            if differing:
                key = differing[0]
                more = f", and {len(differing) - 1} more" if len(differing) > 1 else ""
                raise UserError(
                    f"{path} is of a prompt tuned with {key} = {was.get(key, 'not said')!r}, not {asked[key]!r}{more}; "
                    f"accepted: the same, or another run directory"
                )
            return
    write_json(begun, about)


def load(run: Path, task: str, backbone_hash: str) -> tuple[list[Params], impute.Way]:
    """Returns what asks beside the backbone, of each seed: {'prompt', 'share_CA'}, without the latter where an earlier
    version tuned it; and the way to close gaps that it was tuned for.

    Raises UserError when it belongs to another backbone, or is no prompt for imputation.
    """
    about = read_json(run / "prompts" / f"{task}.json")
    if "impute" not in about:
        raise UserError(
            f"the prompt {run / 'prompts' / task} was tuned to forecast; accepted: one that was tuned to impute, "
            f"like {about['task'].split('-')[0]}-points-12.5-25-37.5-50"
        )
    (of_seeds,) = checkpoint.load_prompts(run, task, backbone_hash).values()
    found = [{"prompt": prompt} for prompt in of_seeds]
    if "line_shares" in about:
        for params, shares in zip(found, about["line_shares"], strict=True):
            params["share_CA"] = np.array(shares, np.float32)
    return found, impute.Way(*(about["impute"][key] for key in impute.Way._fields))


def name(data: str, hiding: Law) -> str:
    """Returns the task's name, a folder: 'ETTh1-points-12.5-25-37.5-50'."""
    return "-".join([data, hiding.kind, *(f"{100 * ratio:g}" for ratio in hiding.ratios)])
