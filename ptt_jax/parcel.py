"""A task as one small file of a bank: its prompt, its intervals, and what a request is read by.

A .npz without pickles: `about` (JSON: name, backbone's hash, knobs, the Forecaster's arguments, series, step, season),
the prompt under its leaf's name, quantile prompts under the same with a Q in front of its axes (`tokens_MD`,
`tokens_QMD`; format 1 had none), `quantile_QK` and `ratio_C` of its intervals, and `hash` over all that. Nothing of the
frame that was learned from is in it. Of the table of quantiles a column is kept every so many steps, `at_K`, half as
many as lend each other residuals; between them lies a straight line. Below a horizon of 70 that is every step, and a
table of 720 steps becomes one of 41 that is hardly larger than the prompt.
"""

import io
import json
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ptt_jax import checkpoint, config, intervals, prompts
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.fitted import Fitted, Scratch
from ptt_jax.intervals import Intervals
from ptt_jax.model import CrossMAE
from ptt_jax.predict import Predictor
from ptt_jax.prompts import Prompt
from ptt_jax.seal import write_json
from ptt_jax.store import Store

FORMAT = 2  # of a task with quantile prompts; of others still 1, which an earlier version reads
READ = (1, 2)  # formats that are read
LONGEST = 200  # bytes of a name as a file has it: 255 is what most file systems take, with room for an ending
END = ".npz"


class Parcel(NamedTuple):
    """What a task is besides its backbone."""

    name: str
    backbone: str  # content hash
    prompt: Prompt  # on the host
    cfg: ConfigDict
    params: dict[str, Any]  # the Forecaster's arguments
    names_C: tuple[str, ...]  # the series that intervals know
    freq: str | int
    season: int
    at_K: np.ndarray  # steps of the horizon whose quantiles are kept
    quantile_QK: np.ndarray  # float32
    ratio_C: np.ndarray
    relative: float
    unit: intervals.Unit
    quantiles: Prompt | None = None  # prompts of `levels`, an axis in front of the prompt's own

    @classmethod
    def of(cls, name: str, fitted: Fitted, params: dict[str, Any]) -> "Parcel":
        """Returns what a bank keeps of what was fitted; the backbone's hash is of the weights, whatever a file says."""
        known, cfg = fitted.intervals, config.from_json(config.to_json(fitted.cfg))
        at_K = intervals.knots(known.quantile_QH.shape[1])
        cfg.backbone = ""  # the bank's, wherever that lies
        return cls(
            name, stores.content_hash(fitted.predictor.backbone), jax.device_get(fitted.predictor.prompt), cfg,
            {**params, "workdir": ""}, fitted.names_C, fitted.freq, fitted.season,
            at_K, known.quantile_QH[:, at_K].astype(np.float32), known.ratio_C, known.relative, known.unit,
            jax.device_get(fitted.predictor.quantiles),
        )  # fmt: skip

    @property
    def horizon(self) -> int:
        return int(self.cfg.horizons[-1])

    @property
    def levels(self) -> tuple[float, ...]:
        """The levels that quantile prompts are of; none where there are none."""
        return tuple(self.cfg.tune.quantiles)

    def intervals(self) -> Intervals:
        """Returns the whole table again."""
        return Intervals(intervals.all_steps(self.quantile_QK, self.at_K), self.ratio_C, self.relative, self.unit)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what the file holds."""
        about = {
            "format": FORMAT if self.quantiles else READ[0], "name": self.name, "backbone": self.backbone,
            "relative": self.relative,
            "names": self.names_C, "freq": self.freq, "season": self.season, "params": self.params,
            "config": self.cfg.to_dict(), "unit": self.unit,
        }  # fmt: skip
        of = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8), "at_K": self.at_K,
            "quantile_QK": self.quantile_QK, "ratio_C": self.ratio_C, **self.prompt,
            **{leaf.replace("_", "_Q", 1): tokens for leaf, tokens in (self.quantiles or {}).items()},
        }  # fmt: skip
        return of | {"hash": np.frombuffer(bytes.fromhex(stores.content_hash(of)), np.uint8)}

    def write(self, path: Path) -> None:
        """Writes the file under a temporary name and renames it. Raises UserError when that cannot be done."""
        content = io.BytesIO()
        np.savez_compressed(content, **self.arrays())  # type: ignore[arg-type]  # the stub takes each for `allow_pickle`
        write_atomic(path, content.getvalue(), several=True)


def unpack(of: Parcel, model: CrossMAE, backbone: Any, card: dict[str, Any]) -> Fitted:
    """Returns what was fitted, without the frame, on a bank's backbone; its prompts lie in a folder of their own."""
    scratch, h = Scratch(), str(of.horizon)

    def keep(task: str, leaf: str, tokens_SGMD: np.ndarray, more: dict[str, Any]) -> None:
        """Writes a prompt as tuning does; G: its settings, or levels."""
        best = {h: {leaf: tokens_SGMD}}
        store = Store(scratch.folder / "prompts" / task, ("prompt",))
        store.save(0, {"prompt": best}, {})
        store.close()
        about = {
            "format": stores.FORMAT, "task": task, "step": 0, "seeds": [of.cfg.seed], "leaf": leaf,
            "shapes": {h: list(tokens_SGMD.shape)}, "content_hash": stores.content_hash(best), "backbone": of.backbone,
            "backbone_run": card["run"], **more,
        }  # fmt: skip
        write_json(scratch.folder / "prompts" / f"{task}.json", about)

    for leaf, tokens in of.prompt.items():
        keep("task", leaf, tokens[None, None], {"setting": {h: {"index": 0}}})  # one seed, one setting
    for leaf, tokens in (of.quantiles or {}).items():
        keep(prompts.quantiles("task"), leaf, tokens[None], {"levels": of.levels})
    checkpoint.refer(scratch.folder, card)
    cfg = config.from_json(config.to_json(of.cfg))
    cfg.backbone = card["run"]
    prompt, told = jax.device_put((of.prompt, of.quantiles))
    asked = Predictor(model, backbone, prompt, cfg.lookback, of.horizon, told, of.levels)
    return Fitted(
        scratch.folder, "task", cfg, asked, of.intervals(), of.names_C, of.freq, of.season, None, None, (scratch,)
    )  # fmt: skip


def file_name(name: str) -> str:
    """Returns a task's name as a file has it: letters, digits and -_~. as they are, everything else as %20 is a blank.

    Raises UserError for what is no name.
    """
    try:
        quoted = urllib.parse.quote(name, safe="")
    except (TypeError, UnicodeEncodeError):
        quoted = ""
    quoted = quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted  # no hidden file
    if not isinstance(name, str) or not 0 < len(quoted) <= LONGEST:
        raise UserError(
            f"the name {str(name)[:40]!r} of a task makes no file's; accepted: text of 1 to {LONGEST} characters, of "
            f"which those besides letters, digits and -_~. count three times or more"
        )
    return quoted + END


def task_name(path: Path) -> str:
    """Returns the task whose file it is."""
    return urllib.parse.unquote(path.name.removesuffix(END))


def read(path: Path, backbone: str) -> Parcel:
    """Returns the task of a file. Raises UserError when it is no whole one, of another task or of another backbone."""
    accepted = "accepted: the file as Bank.add wrote it, or Bank.remove and add the task again"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
        said = held.pop("hash").tobytes().hex()
        whole = stores.content_hash(held) == said
        about = json.loads(held.pop("about").tobytes())
        version = about["format"]
    except Exception as e:  # whatever a damaged file makes zip and numpy say
        raise UserError(f"{path} is no task of a bank ({type(e).__name__}: {e}); {accepted}") from None
    if not whole:
        raise UserError(f"{path} is not what was written (content hash differs); {accepted}")
    if version not in READ:
        known = " or ".join(map(str, READ))
        raise UserError(f"{path} has format {version!r}; accepted: {known}, those that this version reads")
    try:
        rest = {key: held.pop(key) for key in ("at_K", "quantile_QK", "ratio_C")}
        told = {leaf.replace("_Q", "_", 1): held.pop(leaf) for leaf in [*held] if "_Q" in leaf}
        cfg = config.restored(json.dumps(about["config"]), path)
        count = len(cfg.tune.quantiles)
        expected = {leaf: (count, *tokens.shape) for leaf, tokens in held.items()} if count else {}
        if {leaf: tokens.shape for leaf, tokens in told.items()} != expected:
            raise ValueError(f"its quantile prompts are not {count} of the prompt's shape")
        of = Parcel(
            about["name"], about["backbone"], held, cfg, about["params"], tuple(about["names"]), about["freq"],
            about["season"], **rest, relative=about["relative"], unit=intervals.Unit(*about.get("unit", ())),
            quantiles=told or None,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise UserError(f"{path} is no task of a bank ({type(e).__name__}: {e}); {accepted}") from None
    if of.name != task_name(path):
        raise UserError(f"{path} holds the task {of.name!r}, not {task_name(path)!r}; {accepted}")
    if of.backbone != backbone:
        raise UserError(
            f"the task {path} belongs to backbone {of.backbone[:12]}, not to {backbone[:12]}; accepted: a task that "
            f"was tuned on this bank's backbone"
        )
    return of
