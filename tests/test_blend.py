"""The share of a blend is the best on validation, and test has no say in it."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
from test_experiments import script

from ptt_jax import config, data, mesh, problems, rundir, train, tune
from ptt_jax.log import Log


@pytest.fixture(scope="module")
def blend():
    return script("blend")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    cfg = config.default()
    cfg.data.rows, cfg.data.channels, cfg.lookback, cfg.horizons = 400, 2, 48, (12, 20)
    cfg.model.update(width=16, heads=2, encoder_layers=1, patch=12)
    cfg.pretrain.update(steps=4, batch=32, validations=1)
    cfg.tune.update(steps=4, batch=32, validations=1, learning_rate=3e-2)
    folder = rundir.open_run(tmp_path_factory.mktemp("runs") / "main" / "ETTh1-s0", cfg, {"name": "generated"})
    problem, log = problems.prepare(data.load(cfg.data), mesh.make(1)), Log(folder / "metrics.jsonl")
    train.pretrain(cfg, folder, problem, log)
    tune.tune(cfg, folder, problem, log)
    (folder / "results.csv").touch()
    return folder, problem


def test_three_values_tell_where_a_parabola_is_least(blend):
    rng = np.random.default_rng(0)
    linear_N, prompt_N = rng.normal(size=(2, 1000))
    prompt_N = 0.6 * prompt_N + 0.3 * linear_N

    def error(share):
        return float(np.square(share * prompt_N + (1 - share) * linear_N).mean())

    share = blend.best_share(error(0), error(0.5), error(1))
    assert 0.5 < share < 1
    assert error(share) < min(error(share - 0.01), error(share + 0.01))
    assert blend.best_share(1.0, 2.0, 4.0) == 0  # least outside, on the linear map's side
    assert blend.best_share(4.0, 2.0, 1.0) == 1
    assert blend.best_share(1.0, 1.0, 1.0) == 0  # the same forecast twice


def test_the_share_is_the_best_on_validation_whatever_test_holds(blend, run):
    folder, problem = run
    rows = blend.measure(folder, problem)
    assert {*rows["horizon"]} == {12, 20}
    at = rows[rows["split"] == "validation"].pivot(index="horizon", columns="model", values="mse")
    assert (at["blend"] <= at[["linear", "prompt"]].min(axis=1) + 1e-6).all()
    assert ((rows["share"] > 0.01) & (rows["share"] < 0.99)).any()  # or nothing was blended
    begin = problem.series.splits["test"][0]
    values_TC = problem.series.values_TC.copy()
    values_TC[begin:] += 3 * np.random.default_rng(0).normal(size=values_TC[begin:].shape).astype(np.float32)
    other = problems.prepare(dataclasses.replace(problem.series, values_TC=values_TC), problem.mesh)
    again = blend.measure(folder, other)
    np.testing.assert_array_equal(again["share"], rows["share"])
    same = (again["mse"] == rows["mse"]).groupby(rows["split"]).all()
    assert same["validation"]
    assert not same["test"]


def test_a_finished_run_is_measured_once(blend, run, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table blend -->\nyesterday\n<!-- end blend -->\n")
    monkeypatch.setattr(blend, "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["ledger"], "README", readme)
    argv = [f"--runs={run[0].parent.parent}", "--data=ETTh1"]
    assert blend.study(argv) == 0
    assert capsys.readouterr().out.startswith("ETTh1-s0: prompt ")
    assert blend.study(argv) == 0
    assert capsys.readouterr().out == ""
    kept = pd.read_csv(tmp_path / "blend.csv")
    assert len(kept) == 2 * 2 * 3
    shown = blend.table(kept.assign(data="ETTh1")).splitlines()
    mean = kept[(kept["split"] == "test") & (kept["model"] == "blend")]["mse"].mean()
    assert f"{mean:.4f} / " in shown[2].split("|")[4]
    assert "yesterday" not in readme.read_text()
    assert blend.study(["--data=nothing"]) == 2
    assert "--data=nothing does not exist; accepted: ETTh1" in capsys.readouterr().err
