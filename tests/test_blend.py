"""The share of a blend is the best on validation, and test has no say in it; several runs forecast their mean."""

import dataclasses
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from test_experiments import script

from ptt_jax import config, data, mesh, problems, rundir, train, tune
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.seal import read_json, write_json


@pytest.fixture(scope="module")
def blend():
    return script("blend")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ by seed, and their data."""
    cfg = config.default()
    cfg.data.rows, cfg.data.channels, cfg.lookback, cfg.horizons = 400, 2, 48, (12, 20)
    cfg.model.update(width=16, heads=2, encoder_layers=1, patch=12)
    cfg.pretrain.update(steps=4, batch=32, validations=1)
    cfg.tune.update(steps=4, batch=32, validations=1, learning_rate=3e-2)
    top, problem = tmp_path_factory.mktemp("runs"), problems.prepare(data.load(cfg.data), mesh.make(1))
    folders = []
    for cfg.seed in (0, 1):
        folder = rundir.open_run(top / "main" / f"ETTh1-s{cfg.seed}", cfg, {"name": "generated"})
        log = Log(folder / "metrics.jsonl")
        train.pretrain(cfg, folder, problem, log)
        tune.tune(cfg, folder, problem, log)
        (folder / "results.csv").touch()
        folders.append(folder)
    return folders, problem


@pytest.mark.slow
def test_the_share_is_the_best_on_validation_whatever_test_holds(blend, runs):
    folders, problem = runs
    rows = blend.measure(folders, problem)
    assert {*rows["horizon"]} == {12, 20}
    of = rows[rows["split"] == "validation"]
    at = of.pivot(index=["seeds", "horizon"], columns="model", values="mse")
    assert (at["blend"] <= at[["linear", "prompt"]].min(axis=1) + 1e-6).all()
    shares = rows.groupby("seeds")["share"]
    assert (shares.max() > 0.01).all()  # or nothing was blended
    assert (shares.min() < 0.99).all()
    begin = problem.series.splits["test"][0]
    values_TC = problem.series.values_TC.copy()
    values_TC[begin:] += 3 * np.random.default_rng(0).normal(size=values_TC[begin:].shape).astype(np.float32)
    other = problems.prepare(dataclasses.replace(problem.series, values_TC=values_TC), problem.mesh)
    again = blend.measure(folders, other)
    np.testing.assert_array_equal(again["share"], rows["share"])
    same = (again["mse"] == rows["mse"]).groupby(rows["split"]).all()
    assert same["validation"]
    assert not same["test"]


def of_another_config(run, folder, change):
    shutil.copytree(run, folder)
    known = read_json(folder / "config.json")
    change(known)
    write_json(folder / "config.json", known)
    return folder


@pytest.mark.slow
def test_several_runs_forecast_their_mean(blend, runs, tmp_path):
    folders, problem = runs
    rows = blend.measure(folders, problem)
    assert [*dict.fromkeys(rows["seeds"])] == ["0", "1", "0 1"]
    at = rows[rows["model"] == "prompt"].pivot(index=["split", "horizon"], columns="seeds", values="mse")
    assert (at["0 1"] < at[["0", "1"]].mean(axis=1)).all()  # a mean's square is below the squares' mean
    alone = blend.measure(folders[:1], problem)
    kept = rows[rows["seeds"] == "0"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, kept, rtol=1e-5)
    twin = of_another_config(folders[0], tmp_path / "ETTh1-s2", lambda known: known.update(seed=2))
    twice = blend.measure([folders[0], twin], problem)
    alone, both = (twice[twice["seeds"] == seeds]["mse"] for seeds in ("0", "0 2"))
    np.testing.assert_allclose(alone, both, rtol=1e-6)
    linear = rows[rows["model"] == "linear"].groupby(["split", "horizon"])["mse"]
    assert (linear.nunique() == 1).all()


@pytest.mark.slow
def test_runs_of_two_recipes_are_refused(blend, runs, tmp_path):
    folders, _ = runs
    other = of_another_config(folders[1], tmp_path / "ETTh1-s1", lambda known: known["tune"].update(loss="mae"))
    with pytest.raises(UserError, match=r"different recipes; accepted: runs that differ by seed"):
        blend.identities([folders[0], other])


@pytest.mark.slow
def test_a_finished_run_is_measured_once(blend, runs, tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table blend -->\nyesterday\n<!-- end blend -->\n")
    monkeypatch.setattr(blend, "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["ledger"], "README", readme)
    argv = [f"--runs={runs[0][0].parent.parent}", "--data=ETTh1"]
    assert blend.study(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [f"ETTh1, seeds {seeds}" for seeds in ("0", "1", "0 1")]
    assert blend.study(argv) == 0
    assert capsys.readouterr().out == ""
    kept = pd.read_csv(tmp_path / "blend.csv")
    assert len(kept) == 2 * 2 * 3 * 3
    shown = blend.table(kept.assign(data="ETTh1")).splitlines()
    of = kept[(kept["split"] == "test") & (kept["model"] == "blend")]
    alone, together = (of[of["seeds"].str.contains(" ") == several]["mse"].mean() for several in (False, True))
    assert f"{alone:.4f} / " in shown[2].split("|")[4]
    assert f"{together:.4f} / " in shown[2].split("|")[6]
    assert shown[2].endswith("| 2 |")
    assert "yesterday" not in readme.read_text()
    former = readme.read_text()
    assert blend.study([*argv, "--config.tune.loss=mae"]) == 0  # whose runs lie elsewhere: there are none
    assert capsys.readouterr().out == ""
    other = blend.Plan({}, runs[0][0].parent.parent, ["--config.tune.loss=mse"]).folder("main")
    shutil.copytree(runs[0][0], other / "ETTh1-s0")
    assert blend.study([*argv, "--config.tune.loss=mse"]) == 0
    assert "| seeds |" in capsys.readouterr().out  # printed, since README shows the recipe's
    assert readme.read_text() == former
    assert blend.study(["--nothing"]) == 2
    assert "argument --nothing is unknown; accepted: those of --help, and --config.key=value" in capsys.readouterr().err
    assert blend.study(["--data=nothing"]) == 2
    assert "--data=nothing does not exist; accepted: ETTh1" in capsys.readouterr().err
