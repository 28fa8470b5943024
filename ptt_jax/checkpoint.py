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
import errno
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as managers

from ptt_jax import config, processes
from ptt_jax.config import UserError
from ptt_jax.memory import TooLarge
from ptt_jax.seal import opened, read_json, sealed, write_json

FORMAT = 3  # of a stage's state and of prompts; the parameters of a backbone are those of format 1
READ = (2, 3)  # formats that this version reads: 2 is 3 without seals and without the content hashes in a step's meta
OURS = ("manifest", "of")  # what a step's meta holds for the store itself
Tree = Any
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
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    except OSError:  # no git on this machine
        git = ""
    return {
        **{name: metadata.version(name) for name in packages}, "git": git.strip() or "unknown",
        "python": platform.python_version(), "machine": platform.machine(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}{several}",
    }  # fmt: skip


def names(tree: Tree) -> dict[str, np.ndarray]:
    """Returns {'encoder_0/mlp_in/kernel': array} of a tree of dicts, sorted by name."""
    leaves = {
        "/".join(str(getattr(k, "key", k)) for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return dict(sorted(leaves.items()))


def content_hash(tree: Tree) -> str:
    """Returns the SHA-256 over names, shapes, dtypes and bytes of every leaf."""
    digest = hashlib.sha256()
    for name, leaf in names(jax.device_get(tree)).items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


class Store:
    """The last two steps of a stage, in a folder of its own: what was chosen so far, and what is needed to go on.

    of: what the steps belong to (`identity`), where that is to be checked.
    """

    def __init__(self, path: Path, items: tuple[str, ...], *, write: bool = True, of: str = "") -> None:
        if not write and not path.is_dir():
            raise UserError(f"{path} does not exist; accepted: the files as the run wrote them")
        hush()
        self.path, self.items, self.of = path, items, of
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.LatestN(2), enable_async_checkpointing=False, create=write,
            read_only=not write, multiprocessing_options=ocp.options.MultiprocessingOptions() if write else alone(),
            cleanup_tmp_directories=write,  # what a kill left
        )  # fmt: skip
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in items}
        handlers["meta"] = ocp.JsonCheckpointHandler()
        self.manager = ocp.CheckpointManager(path.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, trees: Mapping[str, Tree], meta: dict[str, Any]) -> None:
        """Saves a step's trees, each an item of its own. Arrays are saved from the host, so that they restore on any
        layout of devices. Raises UserError when they cannot be written; the steps before are as they were."""
        plain = {name: serialization.to_state_dict(jax.device_get(trees[name])) for name in self.items}
        args: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in plain.items()}
        own = {"manifest": {name: content_hash(tree) for name, tree in plain.items()}, "of": self.of}
        args["meta"] = ocp.args.JsonSave(sealed({**meta, "format": FORMAT, **own}))
        before = self.manager.latest_step()
        try:
            self.manager.save(step, args=ocp.args.Composite(**args))
            self.manager.wait_until_finished()
        except (OSError, ValueError) as e:
            reason = full(e)
            if not reason:
                raise
            for left in self.path.glob(f"{step}.orbax-checkpoint-tmp*"):  # what was written before there was no room
                shutil.rmtree(left, ignore_errors=True)
            raise UserError(
                f"{self.path}/{step} cannot be written ({reason}); accepted: room on that disk, and the same command, "
                f"which goes on from {'the beginning' if before is None else f'step {before}'}"
            ) from None

    def latest(self) -> int | None:
        return processes.once(self.manager.latest_step)

    def steps(self) -> list[int]:
        """Returns the steps that are there, the latest first."""
        return processes.once(lambda: sorted(map(int, self.manager.all_steps()), reverse=True))

    def drop(self, step: int) -> None:
        """Deletes a step."""
        self.manager.delete(step)

    def finish(self) -> None:
        """Closes the store of a stage that is done, with its latest step alone."""
        for step in self.steps()[1:]:
            self.drop(step)
        self.close()

    def meta(self, step: int) -> dict[str, Any]:
        """Returns what was noted with a step, to go on from there. Raises UserError when it is not what was saved, of
        another run, or of another version."""
        found = self.noted(step)
        if "format" not in found:
            raise self.other(step, None)
        return {key: value for key, value in found.items() if key not in OURS}

    def noted(self, step: int) -> dict[str, Any]:
        """Returns the same with what the store notes itself."""
        path = self.path / str(step) / "meta"
        found = self.read(step, "meta", ocp.args.JsonRestore())
        found = opened(found, path) if isinstance(found, dict) else {}
        form = found.get("format")  # none in a backbone of format 1
        if form not in (*READ, None) or (form == FORMAT) != ("manifest" in found):
            raise self.other(step, form)
        if self.of and found.get("of", self.of) != self.of:
            raise UserError(f"{path.parent} was saved by another run; accepted: the files as this run wrote them")
        return found

    def other(self, step: int, form: Any) -> UserError:
        return UserError(
            f"{self.path}/{step} is of another version of ptt_jax (format {form}, not {' or '.join(map(str, READ))}); "
            f"accepted: that version, or a new --workdir"
        )

    def read(self, step: int, item: str, args: Any) -> Any:
        """Returns one item. Raises UserError when it cannot be read, whatever orbax says of it."""
        handler: Any = ocp.JsonCheckpointHandler() if item == "meta" else ocp.StandardCheckpointHandler()
        try:
            with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=alone())) as reader:
                return reader.restore(self.path.absolute() / str(step) / item, args=args)
        except Exception as e:  # whatever a damaged file makes orbax and tensorstore say
            reason = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise UserError(f"{self.path}/{step}/{item} cannot be read ({reason}); accepted: the files as a run wrote them")

    def restore(self, step: int, item: str, like: Tree) -> Tree:
        """Returns one item's tree of numpy arrays, of the structure of `like` (arrays or shapes).

        Raises UserError when a name, shape or dtype differs, where orbax would cast or fill in without a word, or when
        the content is not what was saved.
        """
        said = self.noted(step).get("manifest")
        try:
            saved = self.manager.item_metadata(step)[item]
        except Exception:  # as in `read`
            saved = None
        if saved is None:
            raise UserError(f"{self.path}/{step}/{item} is missing; accepted: the files as the run wrote them")
        plain = serialization.to_state_dict(like)  # an optimiser's tuples as dicts, which is how they are saved
        want = {k: (tuple(v.shape), np.dtype(v.dtype)) for k, v in names(plain).items()}
        have = {k: (tuple(v.shape), np.dtype(v.dtype)) for k, v in names(saved.tree).items()}
        wrong = [k for k in sorted({*want, *have}) if want.get(k) != have.get(k)]
        if wrong:
            sides = lambda side: "nothing" if side is None else f"{side[1]}{list(side[0])}"  # noqa: E731
            raise UserError(
                f"{self.path}/{step}/{item} does not fit: {wrong[0]} is {sides(have.get(wrong[0]))} in the file and "
                f"{sides(want.get(wrong[0]))} in the model "
                f"({len(wrong)} of {len(want)} leaves differ); accepted: a checkpoint of this architecture"
            )
        target = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), plain)
        found = self.read(step, item, ocp.args.StandardRestore(target))
        if said is not None and content_hash(found) != said.get(item):
            raise UserError(
                f"{self.path}/{step}/{item} is not what was written (content hash differs); accepted: the files as the "
                f"run wrote them"
            )
        return serialization.from_state_dict(like, found)

    def close(self) -> None:
        self.manager.close()


def full(e: Exception) -> str:
    """Returns why a write failed for want of room or of permission, in words; '' for any other error."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    words = [os.strerror(code) for code in known if getattr(e, "errno", None) == code or os.strerror(code) in str(e)]
    return words[0] if words else ""


def identity(cfg: ConfigDict, sections: tuple[str, ...], *content: str) -> str:
    """Returns the SHA-256 of what steps of a stage belong to: the knobs of some sections that decide results and are
    not at their default, and hashes of content."""
    standard = {key: value for key, value, _, _ in config.KNOBS}
    own = ("seed", "lookback", "horizons", "views", "compute_dtype")
    knobs = {
        key: value for key, value in config.flat(cfg).items()
        if key not in config.FREE and key.startswith((*own, *sections)) and value != standard.get(key)
    }  # fmt: skip
    return hashlib.sha256(json.dumps([knobs, content], sort_keys=True).encode()).hexdigest()


def alone() -> Any:
    """Returns orbax's options for what each process reads by itself: by default orbax waits for all of them at the end
    of a read, also for one that failed before."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def hush() -> None:
    """Drops what tensorstore's threads say after a failed read, 'Event loop is closed', hundreds of lines of it, what
    asyncio says of each array that a full disk has no room for, and orbax's warnings that what is opened to be read is
    opened to be read."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_news)  # once: the same function is not added again
    former = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            former(unraisable)

    if not hasattr(former, "hushed"):  # once
        setattr(hook, "hushed", True)  # noqa: B010
        sys.unraisablehook = hook


def is_news(record: logging.LogRecord) -> bool:
    """Says whether a record is not what `hush` drops."""
    known = "read_only=True", "directory is read only", "NumpyHandler._open_and_write"
    return not any(words in record.getMessage() for words in known)


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
    """Returns backbone.json of a run, through a run that tuned on another's backbone; 'run' is where it lies."""
    passed: list[Path] = []
    while True:
        path = run / "backbone.json"
        card = read_json(path)
        if not {"run", "step", "content_hash", "architecture"} <= {*card} or not isinstance(card["run"], str):
            raise UserError(f"{path} lacks what a backbone needs; accepted: the file as a run wrote it")
        named(card, path)
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
