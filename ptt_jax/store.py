"""The last two steps of a stage on the disk, by orbax, each of its items with the hash of its content.

Every step's `meta` is sealed (`seal.py`) and names what each item is: the SHA-256 over names, shapes, dtypes and bytes.
It is checked whenever something is read.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from orbax.checkpoint import checkpoint_managers as managers

from ptt_jax import processes
from ptt_jax.errors import UserError
from ptt_jax.files import sync
from ptt_jax.seal import opened, sealed

FORMAT = 3  # of a stage's state and of prompts; the parameters of a backbone are those of format 1
READ = (2, 3)  # formats that this version reads: 2 is 3 without seals and without the content hashes in a step's meta
OURS = ("manifest", "of", "at")  # what a step's meta holds for the store itself
Tree = Any


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
        own = {"manifest": {name: content_hash(tree) for name, tree in plain.items()}, "of": self.of, "at": step}
        args["meta"] = ocp.args.JsonSave(sealed({**meta, "format": FORMAT, **own}))
        before = self.manager.latest_step()
        try:
            self.manager.save(step, args=ocp.args.Composite(**args))
            self.manager.wait_until_finished()
            processes.once(lambda: sync(self.path / str(step)))
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
        if (at := found.get("at", step)) != step:
            raise UserError(f"{path.parent} was saved as step {at}; accepted: the files as the run wrote them")
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


def alone() -> Any:
    """Returns orbax's options for what each process reads by itself: by default orbax waits for all of them at the end
    of a read, also for one that failed before."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})


def hush() -> None:
    """Drops what tensorstore's threads say after a failed read, 'Event loop is closed', hundreds of lines of it, what
    asyncio and orbax's threads say of tasks that failed, whose error is raised or beside one that is, and orbax's
    warnings that what is opened to be read is opened to be read."""
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
    text = record.getMessage()
    if "never retrieved" in text and "orbax" in text:  # of a full disk, one for each array
        return False
    dropped = ("read_only=True", "directory is read only", "_SignalingThread.run() raised")  # which its caller raises
    return not any(words in text for words in dropped)
