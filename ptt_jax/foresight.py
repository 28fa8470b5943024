"""Whether later stages will fit in memory, known before the first step of the first one.

Their programs are compiled from the shapes of what is not there yet, and are those that the stages run: nothing is
compiled twice, and each is weighed again when its turn comes. The linear map, the few windows that a run keeps to be
looked at, and the pages are left out.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ptt_jax import architecture, checkpoint, finetune, memory, processes, prompts, rundir, score, tune
from ptt_jax.log import Log
from ptt_jax.plan import Plan
from ptt_jax.problems import Problem


class Plans(NamedTuple):
    """What later stages run: what tunes each kind of prompt, or else trains weights; and scoring."""

    prompts: tuple[Plan, ...] = ()
    weights: finetune.Plan | None = None
    scoring: score.Plan | None = None


@rundir.or_nothing
def look(cfg: ConfigDict, run: Path, problem: Problem, log: Log, scored: bool = True) -> Plans:
    """Returns what tuning and scoring will run, and says what memory they will take; nothing where tuning is done.

    scored: whether scoring comes. Raises TooLarge when a stage will not fit in what is free now.
    """
    name, prompted = problem.series.name, cfg.tune.mode == "prompt"
    task = f"prompts/{prompts.name(name, cfg.horizons)}" if prompted else f"finetuned/{finetune.name(cfg, name)}"
    if processes.once((run / f"{task}.json").exists):
        return Plans()
    with processes.together():
        known = (run / "backbone.json").exists()
        card = checkpoint.find_backbone(run)["architecture"] if known else architecture.of(cfg)
    model = architecture.build(card, cfg.compute_dtype, 0.0 if prompted else cfg.model.dropout, cfg.views)
    needs: dict[str, int] = {}
    tuned: list[dict[int, Any]] = []  # for each horizon, as `score.models` takes it
    if prompted:
        plans = Plans(prompts=tuple(tune.plans(cfg, problem, model, log)))
        for plan in plans.prompts:
            needs[plan.loop.stage] = plan.foresee()
            tuned.append({h: [prompt(plan, count)] * cfg.tune.seeds for h, count in plan.job.tokens.items()})
    else:
        learned = finetune.Plan(cfg, problem, model, log)
        plans = Plans(weights=learned)
        needs["tune"] = learned.foresee()
        tuned.append(dict.fromkeys(cfg.horizons, learned.params(architecture.shapes(model))))
    if scored:
        scoring = score.Plan(cfg, problem, architecture.build(card, cfg.compute_dtype, views=cfg.views))
        needs["evaluation"] = scoring.foresee(*tuned)
        plans = plans._replace(scoring=scoring)
    if room := memory.of_device(problem.mesh):
        words = (f"{stage} {memory.total(problem.mesh, room, need)}" for stage, need in needs.items())
        log.say(f"memory: to come: {'; '.join(words)}")
    return plans


def prompt(plan: Plan, count: int) -> prompts.Prompt:
    """Returns the prompt of so many tokens that a plan leaves of each seed, of every level if there are some, as
    shapes."""
    lead = (len(plan.job.levels),) if plan.job.levels else ()
    one = jax.eval_shape(lambda: prompts.cut(plan.one, count))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), one)
