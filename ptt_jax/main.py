"""python -m ptt_jax.main --config=configs/X.py [--workdir=DIR] [--config.key=value ...]
                        [--profile=DIR] [--distributed[=WHERE]]
python -m ptt_jax.main forecast --config.data.path=mine.csv --config.horizons=48, --config.output=out.csv
python -m ptt_jax.main impute|detect --config.data.path=mine.csv --config.output=out.csv
python -m ptt_jax.main export --config.backbone=DIR --config.output=model.stablehlo

Pre-trains, tunes, evaluates and reports; a stage whose result is in the run directory is skipped.
--profile writes a trace of some warm steps of pre-training and of tuning, for TensorBoard, XProf or Perfetto;
of several processes, each into a folder of its own under DIR, named by its index.
--distributed makes this process one of several on one run directory: WHERE is HOST:PORT,COUNT,INDEX, the same in each
but for INDEX (process 0 is at HOST:PORT); without it Slurm, Open MPI, Kubernetes or Cloud TPU say who is who.
forecast learns from an own file by rules, no config needed, and writes what follows it; impute writes the file with
its gaps closed, detect with a score for each value. --workdir=DIR keeps what was learned, and --config.backbone=DIR
takes it from there.
SIGTERM saves at the next dispatch and ends with exit code 75 (try again later): the same command goes on from there. A
run directory is one process's at a time; a second one is refused.
export writes the forecast of such a DIR, or of a run, as a program that jax runs without ptt_jax.
"""

import contextlib
import logging
import shlex
import sys
import warnings
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ptt_jax import (
    architecture,
    cache,
    checkpoint,
    config,
    data,
    finetune,
    flags,
    foresight,
    lock,
    mesh,
    page,
    preemption,
    problems,
    processes,
    report,
    rundir,
    score,
    stages,
    train,
    tune,
)
from ptt_jax.errors import UserError
from ptt_jax.files import to_path
from ptt_jax.log import Log, Unheard, complain, hush, tell
from ptt_jax.preemption import Preempted
from ptt_jax.seal import read_json
from ptt_jax.stream import Host


def set_up(cfg: ConfigDict) -> None:
    """Turns on the persistent compilation cache."""
    cache.use(cfg.cache_dir)


def run(cfg: ConfigDict, workdir: Path, command: str = "", profile: str = "") -> Path:
    """Runs all stages and returns the report's path. This is the one function that the command line calls."""
    config.check(cfg)
    set_up(cfg)
    with processes.together():
        card = checkpoint.find_backbone(to_path(cfg.backbone, "config.backbone")) if cfg.backbone else {}
        if card:
            architecture.adopt(cfg, card)
        series = data.load(cfg.data)
        also = [] if card else data.load_also(cfg.data, cfg.pretrain.also, series)
    own = ("cache_dir", "data.dir", "data.download")  # where things lie on this machine
    knobs = {f"config.{key}": value for key, value in config.flat(cfg).items() if key not in own}
    processes.check_alike({**knobs, "--workdir": str(workdir), "the data's fingerprint": series.fingerprint})
    processes.check_alike({f"the fingerprint of {other.name}": other.fingerprint for other in also})
    with processes.together():
        problem = problems.prepare(series, mesh.make(cfg.devices), cfg.data.device_bytes)
        others = [problems.prepare(other, problem.mesh, cfg.data.device_bytes) for other in also]
    train.check(cfg, problem, others)  # before anything is written
    about = {"name": series.name, "fingerprint": series.fingerprint, "freq": series.freq, "splits": series.splits}
    about |= {"also": {other.name: other.fingerprint for other in also}} if also else {}
    for seen in (card, *card.get("also", [])):
        if seen.get("fingerprint") == series.fingerprint and seen["train_end"] > series.splits["train"][1]:
            raise UserError(
                f"the backbone {card['run']} learned from the first {seen['train_end']} rows of the same data, past "
                f"the end of the train split at {series.splits['train'][1]}; accepted: a data.split with as large a "
                f"train share"
            )
    processes.once(lambda: rundir.check_run(workdir, cfg, about))
    with contextlib.ExitStack() as held:  # by process 0 for all
        processes.once(lambda: held.enter_context(lock.hold(workdir)))
        processes.once(lambda: str(rundir.open_run(workdir, cfg, about)))
        with processes.together():
            read_json(workdir / "config.json")  # on a file system that all processes share
        log = Log(workdir / "metrics.jsonl", quiet=not processes.is_first())
        for note in series.notes:
            log.say(f"data: {note}")
        for other in also:
            for note in other.notes:
                log.say(f"data: {other.name}: {note}")
        if isinstance(problem.panel, Host):
            log.say(f"data: {problem.panel.size}: it is streamed from the host, and no encoding is cached")
        if card:
            if card["freq"] != series.freq:
                steps = f"steps of '{card['freq']}' ({card['data']})"
                log.say(f"warning: the backbone learned from {steps}, not '{series.freq}'")
            processes.once(lambda: checkpoint.refer(workdir, card))
        plans = foresight.look(cfg, workdir, problem, log)
        if not card:
            train.pretrain(cfg, workdir, problem, log, profile, others)
        preemption.check()
        if cfg.tune.mode == "prompt":
            task = tune.tune(cfg, workdir, problem, log, profile, plans.prompts)
        else:
            task = finetune.finetune(cfg, workdir, problem, log, profile, plans.weights)
        preemption.check()
        score.score(cfg, workdir, problem, task, log, plans.scoring)
        preemption.check()
        pages = [workdir / name for name in ("report.md", "report.html")]
        if processes.once(lambda: all(path.exists() for path in pages)):
            log.say(f"report: done before ({pages[-1]})")
            return pages[-1]
        processes.once(lambda: str(report.write(workdir, command)))
        return Path(processes.once(lambda: str(page.write(workdir, command))))


def do(argv: list[str]) -> str:
    """Does what is typed; returns what to say at the end, of several processes the first one."""
    if argv and argv[0] in stages.STAGES:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: complain(f"warning: {message}")  # not a line of our code
            out = stages.STAGES[argv[0]](*flags.parse_stage(argv[1:]), flags.option(argv, "workdir") or "")
        return f"{argv[0]}: {out}"
    if argv and not argv[0].startswith("-"):
        raise UserError(
            f"stage {argv[0]} is unknown; accepted: {', '.join(stages.STAGES)} for an own file, or --config=FILE"
        )
    cfg, workdir = flags.parse(argv)
    where, profile = flags.option(argv, "distributed"), flags.profile_folder(argv)
    alone: contextlib.AbstractContextManager = contextlib.nullcontext()
    if where is not None:
        processes.join(where)
        if profile and jax.process_count() > 1:  # on one machine, two would write the same file
            profile = f"{profile}/{jax.process_index()}"
        alone = preemption.deferred()  # no process ends by itself
    with alone:
        path = run(cfg, workdir, shlex.join(["python", "-m", "ptt_jax.main", *argv]), profile)
    return f"report: {path}" if processes.is_first() else ""


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence about what the user got wrong; 75 (`preemption.CODE`: try again
    later) after SIGTERM, when what was learned is saved and the same command goes on; 130 after Ctrl-C; 1, which ends
    other processes, too, when nothing can be printed any more."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of its own leftovers after a kill
    helps = bool({"-h", "--help"} & {*argv})
    kept = flags.option(argv, "workdir") or (argv or [""])[0] not in stages.STAGES
    goes_on = "the same command goes on from what is saved" if kept else "without --workdir nothing is kept"
    try:
        if helps:
            tell(flags.legend(__doc__))
            return 0
        with preemption.heeded():
            if said := do(argv):
                tell(said)
    except UserError as e:
        complain(f"ptt_jax: {' '.join(str(e).split())}")
        return 2
    except Unheard as e:
        if helps and isinstance(e.__cause__, BrokenPipeError):  # `--help | head` has read enough
            return 0
        complain(f"ptt_jax: {e}" if helps else f"ptt_jax: {e}; {goes_on}")
        return 1
    except Preempted:
        complain(f"ptt_jax: told to end (SIGTERM); {goes_on}")
        return preemption.CODE
    except KeyboardInterrupt:
        print("\nptt_jax: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        hush()
    return 0


if __name__ == "__main__":
    preemption.nowhere_else()
    with processes.company((0, 2, preemption.CODE)):
        sys.exit(main())
