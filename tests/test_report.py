"""The report of a run: tables that say what results.csv says, pictures one can look at, the same page twice."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from ptt_jax import pictures, report
from ptt_jax.errors import UserError

FIGURES = ("forecasts", "steps", "learning")
MSE = {"seasonal_naive": (0.6, 0.9), "linear": (0.5, 0.7), "zero_shot": (0.4, 0.7), "prompt": (0.45, 0.6)}


@pytest.fixture
def run(tmp_path):
    return toy(tmp_path)


def toy(tmp_path):
    """A run directory of two horizons, two channels of two windows, complete."""
    rng = np.random.default_rng(0)
    results, steps = [], []
    for split, worse in (("validation", 1), ("test", 0)):
        for model, errors in MSE.items():
            for horizon, mse in zip((8, 16), errors, strict=True):
                results.append(("Toy", 32, horizon, model, split, 1, mse + worse, mse + worse + 0.1, 1234 - horizon))
                steps += [("Toy", horizon, model, split, step + 1, mse, mse) for step in range(horizon)]
    columns = ["data", "lookback", "horizon", "model", "split", "seed", "mse", "mae", "windows"]
    pd.DataFrame(results, columns=columns).to_csv(tmp_path / "results.csv", index=False)
    columns = ["data", "horizon", "model", "split", "step", "mse", "mae"]
    pd.DataFrame(steps, columns=columns).to_csv(tmp_path / "steps.csv", index=False)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    np.savez(
        tmp_path / "samples.npz",
        history_ST=rng.normal(size=(4, 32)),
        history_observed_ST=rng.random((4, 32)) < 0.9,
        truth_SH=rng.normal(size=(4, 16)),
        truth_observed_SH=np.ones((4, 16), bool),
        channel_S=np.array(["$\\frac$|MWh", "气温"] * 2),
        stamp_S=np.array(["2024-01-01T00:00:00"] * 2 + ["2024-02-01T00:00:00"] * 2),
        step_seconds=3600,
        horizon=16,
        **{f"forecast_{model}_SH": rng.normal(size=(4, 16)) for model in MSE},
    )
    config = {"seed": 1, "lookback": 32, "horizons": [8, 16], "backbone": "", "data": {"name": "Toy", "path": "t.csv"}}
    backbone = {"content_hash": "abc123", "parameters": 133912, "tuned_parameters": 1920}
    for name, content in {"config": config, "versions": {"jax": "0.10.2"}, "backbone": backbone}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def plain(run, monkeypatch):
    """The run on a machine without matplotlib: tables only, and quick."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return run


def records():
    for step in (1, 2, 3):
        losses = {"loss": 1 / step, "validation_loss": 1.1 / step, "validation_forecast": None}
        yield {"stage": "pretrain", "step": step, "epoch": float(step), **losses}
    for step in (0, 10, 20):
        errors = {"8": 1 - step / 50, "16": 2.0, "24": None}
        yield {"stage": "tune", "step": step, "loss": None, "validation_mse": errors, "train_mse": {"8": 1 - step / 25}}


def table(page, heading):
    """The cells of the first table after a heading, by the first cell of their row."""
    lines = page.read_text(encoding="utf-8").split(heading)[1].strip().splitlines()
    lines = lines[next(k for k, line in enumerate(lines) if line.startswith("|")) :]
    lines = lines[: next((k for k, line in enumerate(lines) if not line.startswith("|")), None)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def picture(path):
    from matplotlib.image import imread

    return imread(path)


def test_every_figure_is_a_picture_of_sensible_size_and_stands_in_the_page(run):
    pytest.importorskip("matplotlib")
    text = report.write(run).read_text(encoding="utf-8")
    assert {path.name for path in (run / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}
    for name in FIGURES:
        height, width, _ = picture(run / "figures" / f"{name}.png").shape
        assert 900 <= width <= 1300, name
        assert 300 <= height <= 1000, name
        assert text.count(f"(figures/{name}.png)") == 1


def test_the_table_says_what_results_csv_says(plain):
    page = report.write(plain)
    test, validation = table(page, "## Test"), table(page, "The same on validation")
    assert test["MSE / MAE"] == ["8", "16", "mean"]
    assert test["linear"][:2] == ["0.500 / 0.600", "0.700 / 0.800"]
    assert validation["linear"][:2] == ["1.500 / 1.600", "1.700 / 1.800"]
    assert test["windows"] == ["1,226", "1,218", ""]


def test_models_stand_in_the_order_from_plain_to_tuned(plain):
    assert list(table(report.write(plain), "## Test"))[2:] == [*MSE, "windows"]


def test_the_lowest_mse_of_each_column_and_no_other_is_bold(plain):
    test = table(report.write(plain), "## Test")
    bold = [[model for model in MSE if "**" in test[model][column]] for column in range(3)]
    assert bold == [["zero_shot"], ["prompt"], ["prompt"]]
    assert test["prompt"][1] == "**0.600** / 0.700"


def test_the_last_column_is_the_mean_of_the_horizons(plain):
    test = table(report.write(plain), "## Test")
    assert test["seasonal_naive"][-1] == "0.750 / 0.850"
    assert test["prompt"][-1] == "**0.525** / 0.625"


def test_a_model_that_lacks_a_horizon_has_no_mean(plain):
    results = pd.read_csv(plain / "results.csv")
    results[(results.model != "prompt") | (results.horizon != 16)].to_csv(plain / "results.csv", index=False)
    test = table(report.write(plain), "## Test")
    assert test["prompt"] == ["0.450 / 0.550", "-", "-"]
    assert test["zero_shot"][-1] == "**0.550** / 0.650"


def test_several_seeds_are_averaged_and_the_page_says_so(plain):
    results = pd.read_csv(plain / "results.csv")
    more = results.assign(seed=2, mse=results.mse + 0.2)
    pd.concat([results, more]).to_csv(plain / "results.csv", index=False)
    page = report.write(plain)
    assert table(page, "## Test")["linear"][0] == "0.600 ±0.141 / 0.600"
    assert "mean and spread of the MSE over 2 seeds" in page.read_text(encoding="utf-8")


def test_the_page_says_what_is_frozen_how_little_was_tuned_and_the_command(plain):
    text = report.write(plain, "python -m ptt_jax.main --workdir=here").read_text(encoding="utf-8")
    assert "is frozen (133,912 parameters); only prompt tokens are tuned (1,920 parameters)" in text
    assert "python -m ptt_jax.main --workdir=here" in text
    assert "lookback: 32; horizons: 8, 16; seed: 1" in text
    assert table(plain / "report.md", "## Versions")["jax"] == ["0.10.2"]


def test_parameters_counted_by_name_stand_in_the_table(plain):
    (plain / "backbone.json").write_text(json.dumps({"tuned_parameters": {"prompt": 1920}, "frozen": ["encoder"]}))
    page = report.write(plain)
    assert table(page, "## What was trained")["tuned_parameters.prompt"] == ["1920"]
    assert "is frozen; only prompt tokens are tuned." in page.read_text(encoding="utf-8")


def test_a_run_on_another_backbone_needs_no_pretraining_lines(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"tune"' in line) + '{"stage": "tu')
    (run / "config.json").write_text(json.dumps({"backbone": "runs/other"}))
    text = report.write(run).read_text(encoding="utf-8")
    assert "taken from `runs/other`" in text
    if "No figures" not in text:
        assert picture(run / "figures" / "learning.png").size


def test_results_alone_make_a_page(run):
    for path in run.iterdir():
        if path.name != "results.csv":
            path.unlink()
    page = report.write(run)
    assert table(page, "## Test")["linear"][0] == "0.500 / 0.600"
    assert "![" not in page.read_text(encoding="utf-8")


def test_steps_of_uneven_length_and_unknown_models_are_drawn_too(run, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pictures, "SPARE", ("#FFFF00",))  # yellow, which nothing else in a figure is
    samples = dict(np.load(run / "samples.npz"))
    np.savez(run / "samples.npz", **samples | {"step_seconds": 0, "forecast_my_head_SH": samples["truth_SH"] + 1})
    for name in ("results.csv", "steps.csv"):
        (run / name).write_text((run / name).read_text().replace("linear", "my_head"))
    report.write(run)
    for name in ("forecasts", "steps"):
        red, green, blue = np.moveaxis(picture(run / "figures" / f"{name}.png")[..., :3], -1, 0)
        yellow = (red > 0.8) & (green > 0.8) & (blue < 0.5)
        assert yellow.any(axis=0).sum() > 100, f"{name} shows no more of the model than its legend"


def test_without_matplotlib_the_page_says_how_to_get_the_figures(plain):
    text = report.write(plain).read_text(encoding="utf-8")
    assert text.count("pip install ptt_jax[plot]") == 1
    assert "![" not in text
    assert not (plain / "figures").exists()
    assert table(plain / "report.md", "## Test")["linear"][0] == "0.500 / 0.600"


def test_writing_twice_changes_nothing_and_leaves_nothing_behind(run):
    def files():
        return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    report.write(run, "a command")
    first = files()
    report.write(run, "a command")
    assert files() == first
    assert not [path for path in first if path.suffix == ".tmp"]


def test_errors_on_training_rows_are_dashed_where_they_were_looked_at(run):
    pytest.importorskip("matplotlib")
    _, tuning = pictures.learning(run, {}).axes
    dashed = [line for line in tuning.get_lines() if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [pytest.approx([0.0, -40.0, -80.0])]
    assert "dashed: of training rows" in tuning.get_title()
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace("train_mse", "other"))
    _, tuning = pictures.learning(run, {}).axes
    assert "dashed" not in tuning.get_title()


def test_a_run_without_results_is_told_in_one_sentence(run):
    (run / "results.csv").unlink()
    with pytest.raises(UserError, match=r"^There is no .*results\.csv: a report needs [^.]*\.$"):
        report.write(run)
    assert not (run / "report.md").exists()


def test_what_is_of_the_first_seed_alone_says_so_where_there_are_several(plain):
    alone = "Forecasts and errors by step, here and in `samples.npz` and `steps.csv`, are of the first seed, 1, alone."
    assert alone not in " ".join(report.write(plain).read_text(encoding="utf-8").split())
    results = pd.read_csv(plain / "results.csv")
    pd.concat([results, results[results.model == "prompt"].assign(seed=2)]).to_csv(plain / "results.csv", index=False)
    assert alone in " ".join(report.write(plain).read_text(encoding="utf-8").split())
