"""python -m ptt_jax.main --config=configs/X.py [--workdir=DIR] [--config.key=value ...]

Pre-trains, tunes, evaluates and reports; a stage whose result is in the run directory is skipped.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from ptt_jax import checkpoint, config, data, mesh, report, score, tasks, train
from ptt_jax.config import UserError
from ptt_jax.log import Log


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Returns the checked config and the run directory. Raises UserError for anything that is mistyped."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    if len(files) != 1 or not files[0]:
        raise UserError(f"{len(files) or 'no'} --config=FILE given; accepted: one, like --config=configs/quickstart.py")
    base = load_file(Path(files[0]))
    overrides = [a for a in argv if a.startswith("--config.")]
    known = [key for key, *_ in config.KNOBS]
    for flag in overrides:
        key, equals, _ = flag.removeprefix("--config.").partition("=")
        if key not in known or not equals:
            missing = (
                f"has no value; accepted: {flag}=VALUE"
                if key in known
                else f"does not exist; {config.nearest(key, known)}"
            )
            raise UserError(f"config key {key} {missing}")
    rest = [a for a in argv if not a.startswith(("--config=", "--config.", "--workdir="))]
    if rest:
        raise UserError(f"argument {rest[0]} is unknown; accepted: --config=FILE, --workdir=DIR and --config.key=value")
    for flag in overrides:  # one by one, so that an error knows its flag
        key, _, value = flag.removeprefix("--config.").partition("=")
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=["ptt_jax", flag])
        try:
            values(["ptt_jax", flag])
        except (flags.Error, ValueError, TypeError, SyntaxError):
            rule, standard = next((rule, standard) for name, standard, rule, _ in config.KNOBS if name == key)
            words = rule.words or f"a {type(standard).__name__} like {standard!r}"
            raise UserError(f"config.{key} = {value} is no {type(standard).__name__}; accepted: {words}") from None
    config.check(base)
    named = [a.partition("=")[2] for a in argv if a.startswith("--workdir=")]
    name = Path(files[0]).stem + (f"-{config.content_hash(base)}" if overrides else "")
    return base, Path(named[-1] if named and named[-1] else Path("runs") / name)


def load_file(path: Path) -> ConfigDict:
    """Returns the config of a file: get_config() of a .py, or the config.json of a run."""
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(f"--config={path} is no file; accepted: {', '.join(near) or 'a .py file with get_config()'}")
    if path.suffix == ".json":
        return config.from_json(path.read_text(encoding="utf-8"))
    spec = importlib.util.spec_from_file_location("ptt_jax_config", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"--config={path} is no Python file; accepted: a .py file with get_config(), or a run's config.json"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={path} has no get_config(); accepted: a function without arguments that returns a config"
        )
    return module.get_config()


def set_up(cfg: ConfigDict) -> None:
    """Turns on the persistent compilation cache, for programs of any compile time."""
    if cfg.cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "ptt_jax" / "xla" if cfg.cache_dir == "default" else Path(cfg.cache_dir)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def run(cfg: ConfigDict, workdir: Path) -> Path:
    """Runs all stages and returns the report's path. This is the one function that the command line calls."""
    config.check(cfg)
    set_up(cfg)
    if cfg.backbone:
        card = checkpoint.find_backbone(Path(cfg.backbone))
        adopt(cfg, card)
    series = data.load(cfg.data)
    problem = tasks.prepare(series, mesh.make(cfg.devices))
    train.check(cfg, problem)  # before anything is written
    workdir = checkpoint.open_run(workdir, cfg)
    log = Log(workdir / "metrics.jsonl")
    for note in series.notes:
        log.say(f"data: {note}")
    if cfg.backbone:
        if card["freq"] != series.freq:
            log.say(
                f"warning: the backbone learned from steps of '{card['freq']}' ({card['data']}), "
                f"these are of '{series.freq}'"
            )
        checkpoint.refer(workdir, card)
    else:
        train.pretrain(cfg, workdir, problem, log)
    task = train.tune(cfg, workdir, problem, log)
    score.score(cfg, workdir, problem, task, log)
    return report.write(workdir)


def adopt(cfg: ConfigDict, card: dict) -> None:
    """Sets the model of the config to that of the backbone, which decides, and checks what must fit it."""
    patch, window = card["architecture"]["patch"], card["architecture"]["patches"]
    for key, value in card["architecture"].items():
        if key in cfg.model:
            cfg.model[key] = value
    config.check_lookback(cfg.lookback, patch)
    need = cfg.lookback // patch + -(-cfg.horizons[-1] // patch)
    if need > window and card["architecture"]["position"] == "learned":
        raise UserError(
            f"config.lookback = {cfg.lookback} and horizon {cfg.horizons[-1]} make {need} patches, but the backbone "
            f"{card['run']} learned {window} positions; accepted: less, or a backbone with rotary positions"
        )


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence about what the user got wrong."""
    warnings.filterwarnings("ignore", message=".*Sharding info not provided.*")
    try:
        cfg, workdir = parse(sys.argv[1:] if argv is None else argv)
        path = run(cfg, workdir)
    except UserError as e:
        print(f"ptt_jax: {e}", file=sys.stderr)
        return 2
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
