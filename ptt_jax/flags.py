"""What is typed -> config: files, overrides, the options around them. Knows neither data nor model.

Every mistake is a UserError that names the flag, and what would be accepted.
"""

import json
import runpy
from pathlib import Path

import absl.flags
from ml_collections import ConfigDict, config_flags

from ptt_jax import config
from ptt_jax.errors import UserError
from ptt_jax.files import to_path
from ptt_jax.knobs import KNOBS
from ptt_jax.seal import opened


def parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Returns the checked config and the run directory. Raises UserError for anything that is mistyped."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    if len(files) != 1 or not files[0]:
        many = "no" if not any(files) else str(len(files))
        raise UserError(
            f"{many} --config=FILE given; accepted: one, like --config=configs/quickstart.py (--help says more)"
        )
    cfg = load_file(to_path(files[0], "--config"))
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
    usual = f"runs/{Path(files[0]).stem}{f'-{config.content_hash(cfg)}' * changed}"
    return cfg, to_path(named or usual, "--workdir")


def override(cfg: ConfigDict, argv: list[str]) -> None:
    """Sets the knobs that flags name. Raises UserError for a flag that is mistyped."""
    known = {key: (standard, rule) for key, standard, rule, _ in KNOBS}
    for flag in (a for a in argv if a.startswith("--config.")):  # one by one, so that an error knows its flag
        key, equals, value = flag.removeprefix("--config.").partition("=")
        if key not in known:
            raise UserError(f"config key {key} does not exist; {config.nearest(key, list(known))}")
        if not equals:
            raise UserError(f"config key {key} has no value; accepted: {flag}=VALUE")
        one = ConfigDict({"value": config.flat(cfg)[key]})  # of all knobs, each flag would print all twice
        values, argument = absl.flags.FlagValues(), f"--config.value={value}"
        config_flags.DEFINE_config_dict("config", one, flag_values=values, sys_argv=["ptt_jax", argument])
        try:
            values(["ptt_jax", argument])
        except (absl.flags.Error, ValueError, TypeError, SyntaxError):
            (standard, rule), kind = known[key], type(known[key][0]).__name__
            words = rule.words or f"a {kind} like {standard!r}"
            raise UserError(f"config.{key} = {value} is no {kind}; accepted: {words}, as {kind}") from None
        cfg.update_from_flattened_dict({key: one.value})


def parse_stage(argv: list[str]) -> tuple[ConfigDict, set[str]]:
    """Returns the config of a stage of `stages.py`, which needs no file, and the knobs that a file or a flag sets.
    Raises UserError as `parse` does."""
    files = [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    cfg = load_file(to_path(files[-1], "--config")) if files else config.default()
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
        path = to_path(folder, "--profile")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--profile={folder}: {e.strerror}; accepted: a directory that can be written") from None
    return str(path)


def load_file(path: Path) -> ConfigDict:
    """Returns the config of a file: get_config() of a .py, or the config.json of a run, which decides everything but
    where compiled programs are kept. Raises UserError."""
    if not path.is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(f"--config={path} is no file; accepted: {', '.join(near) or 'a .py file with get_config()'}")
    try:
        if path.suffix == ".json":
            text = path.read_text(encoding="utf-8")
            cfg = config.completed(config.from_json(text))
            opened(json.loads(text), path)
            if cfg.get("cache_dir"):  # a stranger's would hold programs
                cfg.cache_dir = config.default().cache_dir
            return cfg
        cfg = runpy.run_path(str(path))["get_config"]()
    except (Exception, SystemExit) as e:  # whatever a stranger's file does
        raise UserError(
            f"--config={path} cannot be used ({type(e).__name__}: {e}); accepted: a .py file whose get_config() "
            f"returns a config, or a run's config.json"
        ) from None
    if not isinstance(cfg, ConfigDict):
        raise UserError(
            f"--config={path}: get_config() returned {type(cfg).__name__}; accepted: what config.default() returns"
        )
    return cfg


def legend(usage: str) -> str:
    """Returns the words of --help: the usage, then every knob with its default and its legend."""
    knobs = [f"  --config.{key}={value!r:<12} {text}" for key, value, _, text in KNOBS]
    return "\n".join([usage.strip(), "", "Knobs, with the defaults that a config file may change:", *knobs])
