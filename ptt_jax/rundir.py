"""The run directory: what a run leaves behind, and whether a run may go on in one that is there.

    config.json  versions.json  data.json           every knob; what a number depends on besides; which data
    metrics.jsonl  results.csv  steps.csv  channels.csv  samples.npz  exhibits.npz  report.html  report.md  figures/
    backbone.json                 which backbone this run uses: its hash, architecture, data, and where it lies
    backbone/STEP/{params,state,meta}               orbax; `params` are the chosen weights, `state` goes on from STEP
    prompts/TASK.json             which setting and which step of each seed was chosen for each horizon
    prompts/TASK/STEP/{prompt,state,meta}           orbax; `prompt`: each horizon's best tokens_SG(C or I)MD
    prompts/TASK-quantiles.json, prompts/TASK-quantiles/   the same of `tune.quantiles`, G its levels
    finetuned/TASK.json, finetuned/TASK/STEP/{best,state,meta}   the same where more than a prompt learns

Where nothing was learned, since the first step does not fit in memory, it is left as it was found.
"""

import contextlib
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from ml_collections import ConfigDict

from ptt_jax import config, processes
from ptt_jax.errors import UserError
from ptt_jax.memory import TooLarge
from ptt_jax.provenance import versions
from ptt_jax.seal import read_json, write_json

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
