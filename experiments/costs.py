"""What the rows of the ablations cost: trained parameters, and the compiler's FLOPs and bytes of a step.

The phases are bench.py's; nothing is timed. results/ablations/costs.csv has a line for each model that differs in cost:
penalties, statistics and augmentation, which are element-wise, are left at their defaults.
"""

import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench
import jax
import pandas as pd
import peaks
import phases
from cells import ABLATIONS, configured, possible
from ml_collections import ConfigDict

from ptt_jax import architecture, benchmarks, cache, config, finetune, optim
from ptt_jax.files import write_atomic

# Questions whose rows differ in what they cost.
COSTED = (
    "Prompts", "Decoder blocks", "What queries see", "Feature or value masking", "Pre-training window", "Patch length",
    "Frozen or thawed",
)  # fmt: skip
# All of model decides, too.
DECIDES = ("lookback", "horizons", "views", "compute_dtype", "pretrain.mask_ratio", "pretrain.horizon")
TUNES = ("tune.mode", "tune.thaw", "tune.prompts")


def setting(name: str, label: str) -> ConfigDict:
    """Returns the config of a row on a set: with what it changes itself, and what its backbone changes."""
    variant = ABLATIONS[label]
    below = ABLATIONS[variant.on].knobs if variant.on else ()
    return configured(name, (*below, *variant.knobs))


def canonical(name: str, label: str, tuning: bool = True) -> ConfigDict:
    """Returns the config of a row with nothing in it but what decides its cost, of tuning or of all else."""
    cfg, plain = setting(name, label), config.default()
    plain.model.update(cfg.model)
    for key in (*DECIDES, *(TUNES if tuning else ())):
        section, _, last = key.rpartition(".")
        (plain[section] if section else plain)[last] = (cfg[section] if section else cfg)[last]
    return plain


def key(name: str, label: str) -> str:
    """Returns what names a row's cost in the file. Prompts of channels depend on their number."""
    cfg = canonical(name, label)
    channels = benchmarks.TABLE[name].columns if cfg.tune.prompts == "channel" else 1
    return f"{config.content_hash(cfg)}-{channels}"


Shared = dict[str, dict[str, Any]]


def cost(name: str, label: str, shared: Shared) -> dict[str, Any]:
    """Returns what a row costs: trained parameters and all of the backbone's, and of a row of a batch the MFLOPs of a
    step of pre-training, of tuning (from the cache, where what it holds is frozen, and without) and of a forecast, and
    the KiB of temporaries of tuning. shared: figures that other rows have, too, filled on the way."""
    cfg, channels = canonical(name, label), int(key(name, label).rpartition("-")[2])
    rest = config.content_hash(canonical(name, label, tuning=False))
    length = cfg.lookback + cfg.horizons[-1] + 4 * cfg.tune.batch  # any will do: a step reads single windows
    subject = phases.Subject(cfg, cfg.horizons, cfg.tune.batch, channels, length, cached=True)
    peak = peaks.by_name(peaks.CHIPS[0], cfg.compute_dtype)  # for bounds, which are not looked at here

    def step(phase: phases.Phase) -> dict[str, Any]:
        return bench.figures(phase, bench.compiled(phase), peak)

    def once(what: str, make: Callable[[], phases.Phase]) -> float:
        if f"{what} {rest}" not in shared:
            shared[f"{what} {rest}"] = step(make())
        return shared[f"{what} {rest}"]["mflops_a_row"]

    tuning = subject.thawing if cfg.tune.mode == "thaw" else subject.tuning
    fresh, cached = step(tuning("tune", cfg.horizons, phases.fresh)), {}
    if {*finetune.thawed(cfg.tune)} <= finetune.UNREAD:
        cached = step(tuning("tune", cfg.horizons, phases.whole))
    params = {"backbone": architecture.shapes(subject.model), "prompt": subject.prompt(cfg.horizons)}
    groups = finetune.groups_of(cfg.tune) if cfg.tune.mode == "thaw" else optim.PROMPT
    return {
        "trained": sum(of["tuned"] for of in optim.table(params, groups).values()),
        "parameters": architecture.count(params["backbone"]),
        "pretrain_mflops": once("pretrain", subject.pretraining),
        "tune_mflops": fresh["mflops_a_row"], "cached_mflops": cached.get("mflops_a_row"),
        "forecast_mflops": once("forecast", lambda: subject.forecasting(cfg.horizons)),
        "tune_kib": fresh["temporary_kib_a_row"], "cached_kib": cached.get("temporary_kib_a_row"),
    }  # fmt: skip


def costed(name: str, label: str) -> bool:
    return ABLATIONS[label].question in COSTED and ABLATIONS[label].model != "zero_shot" and possible(name, label)


def read(file: Path) -> pd.DataFrame:
    """Returns the costs that are known, by key."""
    return pd.read_csv(file, index_col="key") if file.exists() else pd.DataFrame()


def complete(sets: Sequence[str], labels: Sequence[str], file: Path, command: str) -> pd.DataFrame:
    """Returns the costs of the rows on the sets; what is not in the file is compiled, and added to it at once."""
    known, shared = read(file), Shared()
    todo = {key(name, label): (name, label) for name in sets for label in labels if costed(name, label)}
    todo = {k: v for k, v in todo.items() if k not in known.index}
    begun = time.monotonic()
    for i, (k, (name, label)) in enumerate(todo.items(), 1):
        about = {
            "key": k, "data": name, "row": label, **cost(name, label, shared), "batch": config.default().tune.batch,
            "jax": jax.__version__, "device": peaks.device_name(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "command": command,
        }  # fmt: skip
        known = pd.concat([known, pd.DataFrame([about]).set_index("key")])
        write_atomic(file, known.to_csv(float_format="%.4f"))
        spent = time.monotonic() - begun
        left = spent / i * (len(todo) - i) / 60
        print(f"{i} of {len(todo)}  cost of {label} ({name})  {spent:.0f} s  {left:.0f} min left", flush=True)
        cache.forget()
        jax.clear_caches()
    return known
