"""What a run learned, and the cards that name it: which step was chosen, the hash of its content, whose it is.

backbone.json, prompts/TASK.json and finetuned/TASK.json (`rundir.py` lists all files) are written last, so each says
that its stage is done. A run that tuned on another's backbone has a backbone.json that leads there.

Cards are sealed (`seal.py`), and so is each step's `meta`, which names what every item of the step is: the SHA-256 over
names, shapes, dtypes and bytes. Both are checked whenever something is read. While a stage goes on, its last two steps
are there: where the later one is damaged, the earlier one leads to the same bits.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ptt_jax import config, processes
from ptt_jax import mesh as meshes
from ptt_jax.errors import UserError
from ptt_jax.knobs import FREE, KNOBS
from ptt_jax.log import Log
from ptt_jax.seal import read_json, write_json
from ptt_jax.store import READ, Store, Tree, content_hash


def identity(cfg: ConfigDict, sections: tuple[str, ...], *content: str) -> str:
    """Returns the SHA-256 of what steps of a stage belong to: the knobs of some sections that decide results and are
    not at their default, and hashes of content."""
    standard = {key: value for key, value, _, _ in KNOBS}
    own = ("seed", "lookback", "horizons", "views", "compute_dtype")
    knobs = {
        key: value for key, value in config.flat(cfg).items()
        if key not in FREE and key.startswith((*own, *sections)) and value != standard.get(key)
    }  # fmt: skip
    return hashlib.sha256(json.dumps([knobs, content], sort_keys=True).encode()).hexdigest()


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card of something that was saved. Raises UserError when it names no step and no content."""
    return named(read_json(path), path)


def named(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a card; a step is a folder's name. Raises UserError when it names no step and no content."""
    step, content = card.get("step"), card.get("content_hash")
    if not (type(step) is int and step >= 0 and isinstance(content, str)):
        raise UserError(f"{path} names no step with its content hash; accepted: the file as a run wrote it")
    return card


def plain(task: Any, of: Path) -> str:
    """Returns the name of a task, which is a file's. Raises UserError when it leads elsewhere; of: where it is said."""
    if not isinstance(task, str) or task in ("", ".", "..") or {*task} & {*"/\\\0"}:
        raise UserError(f"{of} names the task {task!r}, which is no file's name; accepted: the file as it was written")
    return task


def find_backbone(run: Path) -> dict[str, Any]:
    """Returns backbone.json of a run, through a run that tuned on another's backbone; 'run' is where it lies. Raises
    UserError when it is no such file, or the other run holds another backbone now."""
    passed: list[Path] = []
    said = ""  # by the first one
    while True:
        path = run / "backbone.json"
        card = read_json(path)
        if not {"run", "step", "content_hash", "architecture"} <= {*card} or not isinstance(card["run"], str):
            raise UserError(f"{path} lacks what a backbone needs; accepted: the file as a run wrote it")
        holds = named(card, path)["content_hash"]
        said = said or holds
        if holds != said:
            raise UserError(
                f"{passed[0]} uses backbone {said[:12]}, and {run} holds {holds[:12]} now; accepted: "
                f"the files as they were, or --config.backbone={run} in a new --workdir"
            )
        if not card["run"]:
            return {**card, "run": str(run.absolute())}
        passed.append(run.absolute())
        run = Path(card["run"])
        if run.absolute() in passed:
            raise UserError(f"{path} leads back to itself; accepted: the file as a run wrote it")


def refer(run: Path, card: dict[str, Any]) -> None:
    """Writes the backbone.json of a run that tunes on another's backbone; the other run is never touched.

    Raises UserError when the run already refers to a backbone of other content.
    """
    path = run / "backbone.json"
    if not path.exists():
        write_json(path, card)
    elif (known := read_json(path)).get("content_hash") != card["content_hash"]:
        raise UserError(f"{run} was tuned on another backbone than {card['run']} holds now; accepted: a new --workdir")
    elif known["run"] != card["run"]:  # the other run was moved
        write_json(path, card)


def load_backbone(card: dict[str, Any], like: Tree) -> Tree:
    """Returns the parameters that a `find_backbone` card names. Raises UserError when their content differs."""
    store = Store(Path(card["run"]) / "backbone", ("params", "state"), write=False)
    params = store.restore(card["step"], "params", like)
    store.close()
    if content_hash(params) != card["content_hash"]:
        raise UserError(
            f"{card['run']}/backbone/{card['step']} is not the backbone that backbone.json names "
            f"(content hash differs); accepted: the files as the run wrote them"
        )
    return params


def load_prompts(run: Path, task: str, backbone_hash: str) -> dict[int, list[Tree]]:
    """Returns {horizon: [prompt of each seed]} as chosen on validation, in the order of card['seeds'].

    Quantile prompts have their levels as one more axis, in front. Raises UserError when they belong to another
    backbone.
    """
    card = read_card(run / "prompts" / f"{plain(task, run)}.json")
    if card.get("format") not in READ:
        raise UserError(
            f"the prompt {run / 'prompts' / task} is of another version of ptt_jax (format {card.get('format', 1)}, "
            f"not {' or '.join(map(str, READ))}); accepted: prompts tuned by this version "
            f"(--config.backbone={run} keeps the backbone)"
        )
    if card["backbone"] != backbone_hash:
        raise UserError(
            f"the prompt {run / 'prompts' / task} belongs to backbone {card['backbone'][:12]}, "
            f"not to {backbone_hash[:12]}; accepted: the backbone it was tuned on ({card['backbone_run']})"
        )
    needed = {"shapes", "step", "content_hash", "seeds", *(() if "levels" in card else ("setting",))}
    if not needed <= {*card} or not isinstance(card["shapes"], dict):
        raise UserError(f"{run}/prompts/{task}.json lacks what a prompt needs; accepted: the file as a run wrote it")
    # Cards of earlier versions do not name the leaf; they knew two, which their shapes tell apart.
    like = {
        h: {card.get("leaf", "tokens_CMD" if len(shape) == 5 else "tokens_MD"): np.zeros(shape, np.float32)}
        for h, shape in card["shapes"].items()
    }
    store = Store(run / "prompts" / task, ("prompt", "state"), write=False)
    saved = store.restore(card["step"], "prompt", like)
    store.close()
    if content_hash(saved) != card["content_hash"]:
        raise UserError(
            f"{run}/prompts/{task}/{card['step']} is not the prompt that {task}.json names "
            f"(content hash differs); accepted: the files as the run wrote them"
        )
    out = {}
    for h, prompt in saved.items():
        index = slice(None) if "levels" in card else card["setting"][h]["index"]
        chosen = jax.tree.map(lambda tokens_SGMD, g=index: tokens_SGMD[:, g], prompt)
        seeds = range(len(card["seeds"]))
        out[int(h)] = [jax.tree.map(lambda tokens_SMD, s=s: tokens_SMD[s], chosen) for s in seeds]
    return out


def resume(store: Store, trees: dict[str, Any], log: Log, stage: str, mesh: Mesh) -> tuple[dict[str, Any], dict]:
    """Returns the trees as last saved and what was noted with them, their step among it; the given trees and {} from an
    empty store.

    A later step that is damaged is deleted, which is said, and comes again. Raises UserError when no step is whole.
    """
    damaged: dict[int, UserError] = {}
    for step in store.steps():
        try:
            with processes.together():
                meta = store.meta(step)
                saved = {item: store.restore(step, item, like) for item, like in trees.items()}
        except UserError as e:
            damaged[step] = e
            continue
        for later, error in damaged.items():
            log.say(f"{stage}: {error}; step {step} is whole, and step {later} is done again")
            store.drop(later)
        log.rewind(stage, step)
        log.check(meta.pop("log", None))
        log.say(f"{stage}: going on from step {step}")
        return {item: meshes.replicate(mesh, tree) for item, tree in saved.items()}, {**meta, "step": step}
    if damaged:
        raise damaged[max(damaged)]
    log.rewind(stage, -1)
    return trees, {}
