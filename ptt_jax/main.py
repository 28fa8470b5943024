"""python -m ptt_jax.main --config=configs/X.py [--workdir=DIR] [--config.key=value ...]
                        [--profile=DIR] [--distributed[=WHERE]]
python -m ptt_jax.main forecast --config.data.path=mine.csv --config.horizons=48, --config.output=out.csv

Pre-trains, tunes, evaluates and reports; a stage whose result is in the run directory is skipped.
--profile writes a trace of some warm steps of pre-training and of tuning, for TensorBoard, XProf or Perfetto;
of several processes, each into a folder of its own under DIR, named by its index.
--distributed makes this process one of several on one run directory: WHERE is HOST:PORT,COUNT,INDEX, the same in each
but for INDEX (process 0 is at HOST:PORT); without it Slurm, Open MPI, Kubernetes or Cloud TPU say who is who.
forecast learns from an own file by rules, no config needed, and writes what follows it; --workdir=DIR keeps what was
learned, and --config.backbone=DIR takes it from there.
"""

import logging
import runpy
import shlex
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from ptt_jax import (
    cache,
    checkpoint,
    config,
    data,
    finetune,
    mesh,
    problems,
    processes,
    report,
    score,
    stages,
    train,
    tune,
)
from ptt_jax.config import UserError
from ptt_jax.log import Log
from ptt_jax.stream import Host


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Returns the checked config and the run directory. Raises UserError for anything that is mistyped."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    if len(files) != 1 or not files[0]:
        many = "no" if not any(files) else str(len(files))
        raise UserError(
            f"{many} --config=FILE given; accepted: one, like --config=configs/quickstart.py (--help says more)"
        )
    cfg = load_file(Path(files[0]).expanduser())
    config.check(cfg)
    plain = config.content_hash(cfg)
    override(cfg, argv)
    flagged = ("--config=", "--config.", "--workdir=", "--distributed=", "--profile=")
    rest = [a for a in argv if not a.startswith(flagged) and a not in ("--distributed", "--profile")]
    if rest:
        raise UserError(
            f"argument {rest[0]} is unknown; accepted: --config=FILE, --workdir=DIR, --config.key=value, "
            f"--profile=DIR and --distributed[=WHERE]"
        )
    config.check(cfg)
    named, changed = option(argv, "workdir"), config.content_hash(cfg) != plain
    return cfg, Path(named or f"runs/{Path(files[0]).stem}{f'-{config.content_hash(cfg)}' * changed}").expanduser()


def override(cfg: ConfigDict, argv: list[str]) -> None:
    """Sets the knobs that flags name. Raises UserError for a flag that is mistyped."""
    known = {key: (standard, rule) for key, standard, rule, _ in config.KNOBS}
    for flag in (a for a in argv if a.startswith("--config.")):  # one by one, so that an error knows its flag
        key, equals, value = flag.removeprefix("--config.").partition("=")
        if key not in known:
            raise UserError(f"config key {key} does not exist; {config.nearest(key, list(known))}")
        if not equals:
            raise UserError(f"config key {key} has no value; accepted: {flag}=VALUE")
        one = ConfigDict({"value": config.flat(cfg)[key]})  # of all knobs, each flag would print all twice
        values, argument = flags.FlagValues(), f"--config.value={value}"
        config_flags.DEFINE_config_dict("config", one, flag_values=values, sys_argv=["ptt_jax", argument])
        try:
            values(["ptt_jax", argument])
        except (flags.Error, ValueError, TypeError, SyntaxError):
            (standard, rule), kind = known[key], type(known[key][0]).__name__
            words = rule.words or f"a {kind} like {standard!r}"
            raise UserError(f"config.{key} = {value} is no {kind}; accepted: {words}, as {kind}") from None
        cfg.update_from_flattened_dict({key: one.value})


def parse_stage(argv: list[str]) -> tuple[ConfigDict, set[str]]:
    """Returns the config of a stage of `stages.py`, which needs no file, and the knobs that a file or a flag sets.
    Raises UserError as `parse` does."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    cfg = load_file(Path(files[-1]).expanduser()) if files else config.default()
    standard = config.flat(config.default())
    said = {key for key, value in config.flat(cfg).items() if value != standard.get(key)}
    override(cfg, argv)
    said |= {a.removeprefix("--config.").partition("=")[0] for a in argv if a.startswith("--config.")}
    rest = [a for a in argv if not a.startswith(("--config=", "--config.", "--workdir="))]
    if rest:
        raise UserError(f"argument {rest[0]} is unknown; accepted: --config.key=value, --config=FILE and --workdir=DIR")
    whole = cfg.copy_and_resolve_references()
    if not {"lookback", "model.patch"} <= said:  # the other one is by rule, and fits
        whole.lookback = whole.model.patch
    config.check(whole)
    return cfg, said


def option(argv: list[str], name: str) -> str | None:
    """Returns the last value of --name=VALUE, '' of a bare --name; None without either."""
    said = [a.partition("=")[2] for a in argv if a.partition("=")[0] == f"--{name}"]
    return said[-1] if said else None


def profile_folder(argv: list[str]) -> str:
    """Returns the folder of --profile, made if need be; '' without. Raises UserError when it cannot be one."""
    folder = option(argv, "profile")
    if folder is None:
        return ""
    if not folder:
        raise UserError("--profile has no value; accepted: --profile=DIR, a directory that can be written")
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--profile={folder}: {e.strerror}; accepted: a directory that can be written") from None
    return str(path)


def load_file(path: Path) -> ConfigDict:
    """Returns the config of a file: get_config() of a .py, or the config.json of a run. Raises UserError."""
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(f"--config={path} is no file; accepted: {', '.join(near) or 'a .py file with get_config()'}")
    try:
        if path.suffix == ".json":
            return config.from_json(path.read_text(encoding="utf-8"))
        cfg = runpy.run_path(str(path))["get_config"]()
    except Exception as e:  # whatever a stranger's file does
        raise UserError(
            f"--config={path} cannot be used ({type(e).__name__}: {e}); accepted: a .py file whose get_config() "
            f"returns a config, or a run's config.json"
        ) from None
    if not isinstance(cfg, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returned {type(cfg).__name__}; accepted: what config.default() returns"
        )
    return cfg


def legend() -> str:
    """Returns the words of --help: every knob with its default and its legend."""
    knobs = [f"  --config.{key}={value!r:<12} {text}" for key, value, _, text in config.KNOBS]
    return "\n".join([__doc__.strip(), "", "Knobs, with the defaults that a config file may change:", *knobs])


def set_up(cfg: ConfigDict) -> None:
    """Turns on the persistent compilation cache."""
    cache.use(cfg.cache_dir)


def run(cfg: ConfigDict, workdir: Path, command: str = "", profile: str = "") -> Path:
    """Runs all stages and returns the report's path. This is the one function that the command line calls."""
    config.check(cfg)
    set_up(cfg)
    with processes.together():
        card = checkpoint.find_backbone(Path(cfg.backbone).expanduser()) if cfg.backbone else {}
        if card:
            train.adopt(cfg, card)
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
    processes.once(lambda: str(checkpoint.open_run(workdir, cfg, about)))
    with processes.together():
        checkpoint.read_json(workdir / "config.json")  # on a file system that all processes share
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
            log.say(
                f"warning: the backbone learned from steps of '{card['freq']}' ({card['data']}), not '{series.freq}'"
            )
        processes.once(lambda: checkpoint.refer(workdir, card))
    else:
        train.pretrain(cfg, workdir, problem, log, profile, others)
    adapt = tune.tune if cfg.tune.mode == "prompt" else finetune.finetune
    task = adapt(cfg, workdir, problem, log, profile)
    score.score(cfg, workdir, problem, task, log)
    if processes.once((workdir / "report.md").exists):
        log.say(f"report: done before ({workdir / 'report.md'})")
        return workdir / "report.md"
    return Path(processes.once(lambda: str(report.write(workdir, command))))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence about what the user got wrong, or 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns of its own leftovers after a kill
    if {"-h", "--help"} & {*argv}:
        print(legend())
        return 0
    try:
        if argv and argv[0] in stages.NAMES:
            print(f"{argv[0]}: {stages.forecast(*parse_stage(argv[1:]), option(argv, 'workdir') or '')}")
            return 0
        if argv and not argv[0].startswith("-"):
            raise UserError(
                f"stage {argv[0]} is unknown; accepted: {', '.join(stages.NAMES)} for an own file, or --config=FILE"
            )
        cfg, workdir = parse(argv)
        where, profile = option(argv, "distributed"), profile_folder(argv)
        if where is not None:
            processes.join(where)
            if profile and jax.process_count() > 1:  # on one machine, two would write the same file
                profile = f"{profile}/{jax.process_index()}"
        path = run(cfg, workdir, shlex.join(["python", "-m", "ptt_jax.main", *argv]), profile)
    except UserError as e:
        print(f"ptt_jax: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nptt_jax: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    if processes.is_first():
        print(f"report: {path}")
    return 0


if __name__ == "__main__":
    with processes.company():
        sys.exit(main())
