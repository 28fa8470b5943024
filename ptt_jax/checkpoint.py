"""The run directory: what a run leaves behind, and how it goes on where it stopped.

    config.json  versions.json  data.json           every knob; what a number depends on besides; which data
    metrics.jsonl  results.csv  steps.csv  channels.csv  samples.npz  exhibits.npz  report.html  report.md  figures/
    backbone.json                 which backbone this run uses: its hash, architecture, data, and where it lies
    backbone/STEP/{params,state,meta}               orbax; `params` are the chosen weights, `state` goes on from STEP
    prompts/TASK.json             which setting and which step of each seed was chosen for each horizon
    prompts/TASK/STEP/{prompt,state,meta}           orbax; `prompt`: each horizon's best tokens_SG(C or I)MD
    prompts/TASK-quantiles.json, prompts/TASK-quantiles/   the same of `tune.quantiles`, G its levels
    finetuned/TASK.json, finetuned/TASK/STEP/{best,state,meta}   the same where more than a prompt learns

backbone.json, prompts/TASK.json and finetuned/TASK.json are written last, so each says that its stage is done.

JSON files are sealed (`seal.py`), and so is each step's `meta`, which names what every item of the step is: the SHA-256
over names, shapes, dtypes and bytes. Both are checked whenever something is read. While a stage goes on, its last two
steps are there: where the later one is damaged, the earlier one leads to the same bits.
"""

import contextlib
import functools
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from ptt_jax import config, processes
from ptt_jax.errors import UserError
from ptt_jax.knobs import FREE, KNOBS
from ptt_jax.memory import TooLarge
from ptt_jax.seal import read_json, write_json
from ptt_jax.store import READ, Store, Tree, content_hash

Stage = TypeVar("Stage", bound=Callable[..., Any])


def open_run(workdir: Path, cfg: ConfigDict, about: dict[str, Any]) -> Path:
    """Returns the run directory, made if need be; `about` says which data the run is on. Raises UserError as
    `check_run` does, and when the directory cannot be written."""
    check_run(workdir, cfg, about)
    said = versions()
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(workdir / "data.json", about)
            write_json(workdir / "versions.json", said)
            write_json(path, cfg.to_dict())
    except OSError as e:
        raise UserError(f"--workdir={workdir}: {e.strerror}; accepted: a directory that can be written") from None
    return workdir


def check_run(workdir: Path, cfg: ConfigDict, about: dict[str, Any]) -> None:
    """Raises UserError when a directory holds a run of another config or on other data, or is not empty and holds none.
    Changes nothing."""
    path = workdir / "config.json"
    try:
        there = path.exists()
        if not there and workdir.is_dir() and not begun(workdir, about):
            raise UserError(
                f"--workdir={workdir} is not empty and holds no config.json; accepted: a run directory or an empty one"
            )
    except OSError as e:
        raise UserError(f"--workdir={workdir}: {e.strerror}; accepted: a directory that can be written") from None
    if not there:
        return
    changed = config.differences(config.from_json(json.dumps(read_json(path))), cfg)
    if changed:
        key, (was, now) = next(iter(changed.items()))
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with config.{key} = {was!r}, not {now!r}{more}; "
            f"accepted: the same config, or another --workdir (and --config.backbone={workdir} for its backbone)"
        )
    if read_json(workdir / "data.json") != json.loads(json.dumps(about)):
        raise UserError(
            f"{workdir} holds a run on other data than {about['name']} holds now; accepted: the same data, or another "
            f"--workdir (and --config.backbone={workdir} for its backbone)"
        )


def begun(workdir: Path, about: dict[str, Any]) -> bool:
    """Says whether a directory without config.json is empty, or holds no more than this run writes before that."""
    left = {p.name for p in workdir.iterdir() if not p.name.endswith((".tmp", ".lock"))}
    ours = "data.json" in left <= {"data.json", "versions.json"}
    return not left or (ours and read_json(workdir / "data.json") == json.loads(json.dumps(about)))


def or_nothing(stage: Stage) -> Stage:
    """Makes f(cfg, run, ...) one that leaves nothing behind when its first step does not fit in memory: another config
    may then have the run directory. A run that has learned something stays."""

    @functools.wraps(stage)
    def careful(cfg: ConfigDict, run: Path, *rest: Any, **named: Any) -> Any:
        try:
            return stage(cfg, run, *rest, **named)
        except TooLarge:
            processes.once(lambda: forsake(run))
            raise

    return cast(Stage, careful)


def forsake(run: Path) -> None:
    """Removes what was written before a run's first step, if there was none; whatever else is there stays."""
    steps = [path for pattern in ("backbone/*", "prompts/*/*", "finetuned/*/*") for path in run.glob(pattern)]
    if any(path.name.isdigit() and int(path.name) > 0 for path in steps):
        return
    for folder in ("backbone", "prompts", "finetuned"):
        shutil.rmtree(run / folder, ignore_errors=True)
    for file in ("metrics.jsonl", "backbone.json", "data.json", "versions.json", "config.json"):
        (run / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not ours to remove
        run.rmdir()


def versions() -> dict[str, str]:
    """Returns what a number depends on besides config and data."""
    several = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    packages = ("ptt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pandas", "ml-collections")
    return {
        **{name: metadata.version(name) for name in packages}, "git": git_state(Path(__file__)),
        "python": platform.python_version(), "machine": platform.machine(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}{several}",
    }  # fmt: skip


def git_state(file: Path) -> str:
    """Returns the commit of the repository that a file is part of, with -dirty where it was changed; 'unknown' without
    one. A folder of installed packages may lie in the repository of somebody else's project."""
    try:
        for command in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--exclude=*"]):
            found = subprocess.run(["git", *command], cwd=file.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or the file is in no repository
        return "unknown"
    return found.stdout.strip()


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
