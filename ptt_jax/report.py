"""A run directory as a page to read: `report.md` with its tables, and the pictures under `figures/`.

Reads only the files a run leaves behind (no jax, no model), so a report can be written anywhere, at any time, and twice
with the same text. matplotlib is an extra: without it the page has its tables and says how to get the pictures.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ptt_jax import pictures
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.results import CALIBRATED, HOW, MEASURES, TUNED, grid, ordered
from ptt_jax.seal import check_files, read_json

SEVERAL = """ Where a cell has ±, it is the mean and spread of the MSE over {seeds} seeds.
Forecasts and errors by step, here and in `samples.npz` and `steps.csv`, are of the first seed, {first}, alone."""


def write(run: Path, command: str = "") -> Path:
    """Writes `run/report.md` and `run/figures/*.png` from the run's own files; returns the path of the page."""
    if not (run / "results.csv").exists():
        raise UserError(f"There is no {run / 'results.csv'}: a report needs a run that has been evaluated.")
    check_files(run / "results.json")
    results = pd.read_csv(run / "results.csv")
    files, seeds = (run / f"{name}.json" for name in ("config", "backbone", "versions")), results["seed"].nunique()
    config, backbone, versions = (read_json(file) if file.exists() else {} for file in files)
    kinds = {"The prompt": "prompts", "Fine-tuning": "finetuned"}
    files_of = {
        title: sorted((run / folder).glob("*.json"), key=lambda file: file.stem) for title, folder in kinds.items()
    }
    tuned = [(title, read_json(file)) for title, of in files_of.items() for file in of]
    backbone |= {"tuned_parameters": tuned[0][1]["tuned_parameters"]} if tuned else {}
    tested = "test" in {*results["split"]}
    parts = [
        f"# Forecasts of {config.get('data', {}).get('name') or results['data'][0]}",
        _summary(config, backbone, results),
        command and f"```\n{command}\n```",
        _section("Test", _scores(results, "test")),
        HOW + (SEVERAL.format(seeds=seeds, first=results["seed"].min()) if seeds > 1 else ""),
        _section("The same on validation" if tested else "Validation", _scores(results, "validation"), folded=tested),
        _section("Intervals on test", _intervals(results)),
        "" if tested else "The test split is not scored (`evaluate.test`).",
        *_pictures(run, ordered(results["model"].unique())),
        _section("What was trained", _pairs(backbone)),
        *(_section(title, _pairs({k: card[k] for k in TUNED if k in card})) for title, card in tuned),
        _section("Settings", _pairs(config), folded=True),
        _section("Versions", _pairs(versions)),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_atomic(run / "report.md", text)
    return run / "report.md"


def _summary(config: dict, backbone: dict, results: pd.DataFrame) -> str:
    """One paragraph: which data, how far back and ahead, what is frozen and how little was tuned."""
    horizons = config.get("horizons") or sorted(results["horizon"].unique())
    facts = {"Data": config.get("data", {}).get("path") or results["data"][0], "lookback": config.get("lookback")}
    facts |= {"horizons": ", ".join(map(str, horizons)), "seed": config.get("seed")}
    text = "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact is not None) + "."
    if "prompt" not in set(results["model"]):
        return text
    counts = (backbone.get(key) for key in ("parameters", "tuned_parameters"))
    size, tuned = (f" ({count:,} parameters)" if isinstance(count, int) else "" for count in counts)
    origin = f"taken from `{config['backbone']}`" if config.get("backbone") else "pre-trained in this run"
    return f"{text} The backbone, {origin}, is frozen{size}; only prompt tokens are tuned{tuned}."


def _scores(results: pd.DataFrame, split: str) -> str:
    """Models by horizons with `MSE / MAE` in a cell; a model that lacks a horizon has no mean to compare."""
    rows = results[results["split"] == split]
    if rows.empty:
        return ""

    mse, mae = (grid(rows, metric).round(3) for metric in ("mse", "mae"))
    spread = rows.groupby(["model", "horizon"])["mse"].std().unstack().reindex(index=mse.index, columns=mse.columns)
    text = mse.map("{:.3f}".format) + spread.map(lambda s: "" if np.isnan(s) else f" ±{s:.3f}")
    text = text.where(mse != mse.min(), "**" + text + "**") + " / " + mae.map("{:.3f}".format)
    windows = rows.groupby("horizon")["windows"].unique().map(lambda counts: " or ".join(f"{n:,}" for n in counts))
    body = [[f"`{model}`", *cells] for model, cells in text.replace("nan / nan", "-").T.items()]
    return _table(["MSE / MAE", *text], [*body, ["windows", *windows, ""]])


def _intervals(results: pd.DataFrame) -> str:
    """How often intervals hold and the CRPS, means over seeds and horizons; '' where they were not measured."""
    known = [name for name in MEASURES if name in results and results[name].notna().any()]
    if not known:
        return ""
    rows = results[results["split"] == "test"].groupby("model")[known].mean()
    body = [
        [f"`{model}`", *("" if pd.isna(v) else f"{v:.3f}" for v in rows.loc[model])] for model in ordered(rows.index)
    ]
    return f"{_table(['', *(MEASURES[name] for name in known)], body)}\n\n{CALIBRATED}"


def _pairs(tree: dict) -> str:
    """A nested dict as a table of dotted names and values."""
    rows = [[f"`{key}`", values[0]] for key, values in pd.json_normalize(tree).items()]
    return _table(["", ""], rows) if tree else ""


def _table(head: list, rows: list[list]) -> str:
    rules = ["---"] + ["---:" if len(head) > 2 else "---"] * (len(head) - 1)
    lines = ([str(cell).replace("|", "\\|") for cell in line] for line in (head, rules, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _section(title: str, body: str, folded: bool = False) -> str:
    head, tail = (f"<details><summary>{title}</summary>", "\n\n</details>") if folded else (f"## {title}", "")
    return body and f"{head}\n\n{body}{tail}"


def _pictures(run: Path, models: list[str]) -> list[str]:
    """Returns the sections that show what the run has files for."""
    try:
        drawn = pictures.draw(run, models)
    except ImportError:
        return ["No figures: `pip install ptt_jax[plot]` brings them."]
    return [_section(title, f"{caption}\n\n![{title}](figures/{name})") for title, caption, name in drawn]
