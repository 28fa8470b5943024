"""A run directory as a page to read: `report.md` with its tables, and the pictures under `figures/`.

Reads only the files a run leaves behind (no jax, no model), so a report can be written anywhere, at any time, and twice
with the same text. matplotlib is an extra: without it the page has its tables and says how to get the pictures.
"""

import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.config import UserError
from ptt_jax.seal import check_files, read_json

# Okabe and Ito's colours stay apart for colour-blind eyes; a model keeps its own in every figure.
COLOURS = {"seasonal_naive": "#CC79A7", "linear": "#009E73", "zero_shot": "#0072B2", "prompt": "#D55E00"}
SPARE = ("#56B4E9", "#E69F00", "#8C6D31", "#999999")
SHOWN = 144  # steps of a forecast; of many more in one panel the eye can no longer tell models apart
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 9,
    "grid.color": "#E8E8E8",
    "legend.frameon": False,
    "text.parse_math": False,  # a channel may be called `$/MWh`
}
# `chosen`: the step that each horizon keeps, of each seed
TUNED = ("task", "mode", "tuned_parameters", "seeds", "chosen", "setting", "seconds", "backbone")
HOW = """\
MSE and MAE in scaled space (each channel standardised by its training rows), averaged over every window, channel and
observed step of the split; no window is dropped. Bold: the lowest MSE of a column. The mean weighs horizons alike."""
CALIBRATED = """\
Shares of the truths inside, and the CRPS in scaled space (twice the mean pinball loss over the levels of
`tune.quantiles`, or over the deciles), means of the horizons. Intervals are made from validation's errors at each step
(split conformal, of every window), which chose the prompts, too. Raw are the quantile prompts by themselves, whose MSE
and MAE are the median's. The CRPS of runs with other levels are no comparison."""
# columns of results.csv besides the errors, as people call them
MEASURES = {
    "coverage_80": "80 % cover", "coverage_95": "95 % cover", "crps": "CRPS",
    "raw_coverage_80": "80 % cover, raw", "raw_crps": "CRPS, raw",
}  # fmt: skip

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
        *_figures(run, ordered(results["model"].unique())),
        _section("What was trained", _pairs(backbone)),
        *(_section(title, _pairs({k: card[k] for k in TUNED if k in card})) for title, card in tuned),
        _section("Settings", _pairs(config), folded=True),
        _section("Versions", _pairs(versions)),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return _put(run / "report.md", lambda path: path.write_text(text, encoding="utf-8"))


def records(path: Path, stage: str) -> pd.DataFrame:
    """The numbers of a stage by step, nested ones under dotted names."""
    steps = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, AttributeError):  # an interrupted run may leave a line cut short
            record = json.loads(line)
            if record.get("stage") == stage and "step" in record:
                steps[record["step"]] = record  # a resumed run may say a step twice: its later word counts
    numbers = pd.json_normalize([steps[step] for step in sorted(steps)]).set_axis(sorted(steps))
    return numbers.apply(pd.to_numeric, errors="coerce")


def _put(path: Path, save: Callable[[Path], object]) -> Path:
    """Writes beside `path` and moves into place, so that nobody ever sees half a file. Raises UserError when that
    cannot be done."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        save(temporary)
        return temporary.replace(path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({e.strerror}); accepted: room on that disk") from None


def ordered(models: Iterable[str]) -> list[str]:
    """The known models from plain to tuned, then others by name."""
    return [model for model in COLOURS if model in models] + sorted(set(models) - set(COLOURS))


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


def grid(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Models by horizons and their mean: the mean of the seeds; one that diverged (nan) stays visible."""
    cells = rows.groupby(["model", "horizon"])[metric].agg(lambda seeds: seeds.mean(skipna=False)).unstack()
    return cells.assign(mean=cells.mean(axis=1, skipna=False)).loc[ordered(cells.index)]


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


def _figures(run: Path, models: list[str]) -> list[str]:
    """Draws what the run has files for; returns the sections that show it."""
    try:
        import matplotlib
    except ImportError:
        return ["No figures: `pip install ptt_jax[plot]` brings them."]
    colours = COLOURS | dict(zip((model for model in models if model not in COLOURS), cycle(SPARE)))
    sections = []
    for title, (draw, caption) in FIGURES.items():
        path = run / "figures" / f"{draw.__name__.strip('_')}.png"
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts the font lacks
            if (figure := draw(run, colours)) is not None:
                _put(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
                sections.append(_section(title, f"{caption}\n\n![{title}](figures/{path.name})"))
    return sections


def _panels(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """A figure as wide as a README; no pyplot, whose state is global."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _lines(ax: Any, colours: dict[str, str], curves: dict[str, tuple]) -> None:
    """The models' curves, the prompt's thick and on top."""
    for model in (model for model in colours if model in curves):
        look = {"linewidth": 1.9, "zorder": 2.5} if model == "prompt" else {"linewidth": 0.9, "zorder": 2.2}
        dot = {"marker": "o"} if len(curves[model][0]) == 1 else {}  # a line of one point shows nothing
        ax.plot(*curves[model], color=colours[model], label=model.replace("_", " "), **look, **dot)


def _forecasts(run: Path, colours: dict[str, str]) -> Any | None:
    """The first three channels, each at its first and its last window."""
    if not (run / "samples.npz").exists():
        return None
    samples = dict(np.load(run / "samples.npz", allow_pickle=False))
    order, channels = np.argsort(samples["stamp_S"], kind="stable"), samples["channel_S"]
    found = [order[channels[order] == name] for name in list(dict.fromkeys(channels))[:3]]
    picks = [line[:: max(1, len(line) - 1)] for line in found]
    figure, axes = _panels(len(picks), max(map(len, picks)), 0.5 + 1.6 * len(picks))
    for s, ax in ((s, ax) for line, row in zip(picks, axes, strict=True) for s, ax in zip(line, row, strict=False)):
        _window(ax, colours, {name: array[s] if array.ndim else array for name, array in samples.items()})
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return figure


def _window(ax: Any, colours: dict[str, str], sample: dict[str, np.ndarray]) -> None:
    """History, truth and forecasts of one sample, on dates where the step is constant; gaps where nothing was seen."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    past = np.where(sample["history_observed_ST"], sample["history_ST"], np.nan)
    future = np.where(sample["truth_observed_SH"], sample["truth_SH"], np.nan)[:SHOWN]
    past, title = past[-max(48, min(192, 2 * len(future))) :], str(sample["channel_S"])
    stamp, seconds = pd.to_datetime(str(sample["stamp_S"]), errors="coerce"), float(sample["step_seconds"])
    x = np.append(np.arange(-len(past), len(future)), -0.5)
    if seconds > 0 and not pd.isna(stamp):
        x = (stamp.tz_localize(None) + pd.to_timedelta(x * seconds, "s")).to_numpy()
        title += f", from {str(stamp)[:16]}"
        ax.xaxis.set_major_locator(locator := AutoDateLocator(minticks=3, maxticks=7))
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # the title has the year
    ax.plot(x[:-1], np.append(past, future), color="#222222", linewidth=0.9, label="truth", zorder=2.8)
    ax.axvline(x[-1], color="#888888", linewidth=0.8, linestyle="--", label="now")
    ahead = {m: (x[len(past) : -1], sample[key][:SHOWN]) for m in colours if (key := f"forecast_{m}_SH") in sample}
    _lines(ax, colours, ahead)
    ax.set(title=title, xmargin=0.01)


def _steps(run: Path, colours: dict[str, str]) -> Any | None:
    """Error at each step of the longest horizon, on test, or on validation where test is not scored."""
    if not (run / "steps.csv").exists():
        return None
    rows = pd.read_csv(run / "steps.csv").query("split == split.iloc[-1]").query("horizon == horizon.max()")
    figure, axes = _panels(1, 2, 2.9)
    for ax, metric in zip(axes[0], ("mse", "mae"), strict=True):
        errors = rows.groupby(["step", "model"])[metric].mean().unstack()
        _lines(ax, colours, {model: (errors.index, error) for model, error in errors.items()})
        ax.set(title=f"{metric.upper()} by step of the horizon", xlim=(0, None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=6)
    return figure


def _learning(run: Path, _: dict[str, str]) -> Any | None:
    """Losses of pre-training, and what tuning does to the validation error of each horizon."""
    from matplotlib import colormaps

    pretrain, tune = (records(run / "metrics.jsonl", stage) for stage in ("pretrain", "tune"))
    names = {"loss": "training", "validation_loss": "validation", "validation_forecast": "validation, forecasting"}

    def change(of: str) -> pd.DataFrame:
        """Errors of tuning by horizon, in % from step 0."""
        errors = tune.filter(like=f"{of}_mse.").rename(columns=lambda name: f"horizon {name.split('.')[1]}")
        return 100 * (errors / errors.loc[0] - 1) if 0 in errors.index else errors.iloc[:0]

    watched = change("train")
    stages = {"Pre-training: loss": pretrain.filter(names).rename(columns=names)}
    dashed = " (dashed: of training rows)" if watched.size else ""
    stages |= {f"Tuning: validation MSE, % from zero-shot{dashed}": change("validation")}
    stages = {title: known for title, some in stages.items() if (known := some.dropna(axis=1, how="all")).size}
    if not stages:
        return None
    figure, axes = _panels(1, len(stages), 4.0)
    for ax, (title, curves) in zip(axes[0], stages.items(), strict=True):
        curves = curves.iloc[
            :, np.unique(np.linspace(0, curves.shape[1] - 1, 8).astype(int))
        ]  # of many horizons, eight
        hues = colormaps["viridis"](np.linspace(0, 0.8, curves.shape[1]))
        for (name, curve), hue in zip(curves.items(), hues, strict=True):
            best = curve.idxmin()
            ax.plot(curve.dropna(), color=hue, label=f"{name}: {curve[best]:.3g} at {best:,}")
            ax.plot(best, curve[best], "o", color=hue, markersize=4.5)
            if name in watched:
                ax.plot(watched[name].dropna(), color=hue, linestyle="--", linewidth=0.9)
        ax.set(title=title, xlabel="step")
        ax.legend(loc="upper left", bbox_to_anchor=(0, -0.18))  # below: curves leave no corner free
    return figure


FIGURES = {
    "Forecasts": (_forecasts, f"Windows in the data's own units, {SHOWN} steps at most; gaps are missing values."),
    "Error by step": (_steps, "Error at each step of the longest horizon, in scaled space."),
    "Learning curves": (_learning, "Dots: where a curve is lowest. Step 0 of tuning is the zero-shot forecast."),
}
