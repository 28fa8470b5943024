"""The experiment on anomaly detection: small collections in the files' own form, a backbone of no training."""

import sys

import numpy as np
import pandas as pd
import pytest
from test_experiments import script

from ptt_jax import config, data, mesh, problems, scaling, train
from ptt_jax.log import Log


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """The script with its results in tmp_path and a recipe of a few steps."""
    module = script("detect")

    def recipe(seed):
        cfg = config.default()
        cfg.seed, cfg.cache_dir, cfg.detect.window = seed, "", 48
        cfg.tune.update(steps=2, batch=8, validations=1)
        return cfg

    monkeypatch.setattr(module, "recipe", recipe)
    monkeypatch.setattr(module, "HERE", tmp_path / "experiments")
    monkeypatch.setenv("PTT_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/README.md").write_text(
        "before\n<!-- table anomalies -->\nold\n<!-- end anomalies -->\nafter\n"
    )
    return module


@pytest.fixture
def backbone(tiny, tmp_path):
    tiny.pretrain.epochs, tiny.pretrain.steps = 0.0, 0
    run = tmp_path / "runs/main/ETTm1-s0"
    run.mkdir(parents=True)
    problem = problems.prepare(data.load(tiny.data), mesh.make(1))
    train.pretrain(tiny, run, problem, Log(run / "metrics.jsonl", quiet=True))
    return run


@pytest.fixture
def collections(tmp_path):
    """A series of NAB without and one with an anomaly, and one of MSL with a channel that stands still in training."""
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "more"
    folder.mkdir(parents=True)
    nab = pd.DataFrame({"series": np.repeat(["a", "b"], 400), "date": "2014-04-01", "value": rng.normal(size=800)})
    nab["window"] = nab["label"] = np.arange(800) // 10 == 60
    nab.to_csv(folder / "NAB.csv.gz", index=False)
    msl = pd.DataFrame({"series": "T-1", "split": np.repeat(["train", "test"], (150, 200)), "t": 0, "label": False})
    msl["f0"], msl["f1"] = rng.normal(size=350), np.arange(350) > 300
    msl.loc[300:320, "label"] = True
    msl.to_csv(folder / "MSL.csv.gz", index=False)


@pytest.mark.slow
def test_a_cell_has_metrics_a_picture_and_a_table_and_is_not_run_again(
    experiment, backbone, collections, tmp_path, capsys
):
    argv = [f"--runs={tmp_path / 'runs'}", "--data=NAB,MSL", "--seeds=1"]
    assert experiment.main(argv) == 0
    out = capsys.readouterr().out
    assert "1 of 2  NAB-s0  held-back loss" in out
    assert "2 of 2  MSL-s0" in out
    results = tmp_path / "experiments/results"
    table = pd.read_csv(results / "anomalies.csv")
    past = ["mask token alone, past only", "prompts, past only"]
    models = ["random scores", "moving z-score", *past, "mask token alone", "prompts"]
    assert table[table.data == "MSL"].model.tolist() == [*models, "prompts, one a series"]
    assert {"config", "backbone", "seconds", "date", "device", "command", "series", "seed"} <= {*table}
    assert table[[*experiment.METRICS]].notna().all().all()
    series = pd.read_csv(results / "anomalies-series.csv")
    assert {*series[series.data == "NAB"].series} == {"b"}  # 'a' has no anomaly
    assert (series[series.data == "NAB"].steps == 400 - 60).all()
    assert (results / "anomalies/NAB.png").stat().st_size > 10_000
    text = (tmp_path / "experiments/README.md").read_text()
    assert text.startswith("before\n<!-- table anomalies -->\n| | | AUROC | AUPRC | VUS-PR |")
    assert "point-adjusted F1 (inflated)" in text
    assert text.endswith("|\n<!-- end anomalies -->\nafter\n")
    assert "old" not in text
    assert experiment.main(argv) == 0
    assert "NAB-s0" not in capsys.readouterr().out


def test_a_cell_under_another_key_takes_the_place_of_the_former_one(experiment, monkeypatch, tmp_path):
    monkeypatch.setattr(experiment.checkpoint, "find_backbone", lambda run: {"content_hash": "a" * 64})
    now = experiment.Cell("NAB", 0, tmp_path, tmp_path)
    keys = [now.key, {**now.key, "seed": 1}]
    for key in keys:
        experiment.ledger("anomalies.csv").add(pd.DataFrame([{**key, "model": "prompts", "auprc": 0.1}]))
    assert experiment.ledger("anomalies.csv").has(**now.key)
    for name in ("PROBATION", "EACH", "SHARE", "BUFFER", "EVERY"):
        monkeypatch.setattr(experiment, name, getattr(experiment, name) * 2)
        assert now.key["config"] not in {key["config"] for key in keys}, name
        assert not experiment.ledger("anomalies.csv").has(**now.key)
        keys.append(now.key)
    experiment.ledger("anomalies.csv").add(pd.DataFrame([{**now.key, "model": "prompts", "auprc": 0.2}]))
    table = experiment.ledger("anomalies.csv").rows
    assert table.sort_values("seed")["auprc"].tolist() == [0.2, 0.1]


def test_without_matplotlib_there_is_a_word_about_pictures(experiment, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    experiment.draw("NAB", [])
    assert "pip install ptt_jax[plot]" in capsys.readouterr().out
    assert not (tmp_path / "experiments/results").exists()


def test_labels_reach_the_metrics_alone(experiment, collections, tmp_path):
    before = next(experiment.read("MSL"))
    path = tmp_path / "data/more/MSL.csv.gz"
    frame = pd.read_csv(path)
    frame["label"] = ~frame["label"]
    frame.to_csv(path, index=False)
    after = next(experiment.read("MSL"))
    for a, b in zip((*before.learn, *before.whole), (*after.learn, *after.whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (before.label_T != after.label_T).all()


def test_scalers_see_training_parts_alone(experiment, collections):
    (msl,) = experiment.read("MSL")
    assert msl.learn[0][:, 0].std() == pytest.approx(1, abs=1e-5)
    assert msl.whole[0][:, 1].tolist() == [0.0] * 151 + [1.0] * 49  # still in training: not scaled
    assert scaling.standardise(np.full((999, 1), 0.999), np.ones((999, 1), bool)).scale_C == 1  # no rounding's spread
    nab = next(experiment.read("NAB"))
    assert len(nab.learn[0]) == nab.begin == 60
    assert nab.learn[0].mean() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["--data=KDD"], "accepted: NAB, UCR"), (["--data=SMAP", "--seeds=1"], "SMAP.csv.gz is neither in")],
)
def test_what_does_not_exist_is_one_sentence(experiment, backbone, argv, words, tmp_path, capsys):
    assert experiment.main([f"--runs={tmp_path / 'runs'}", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
