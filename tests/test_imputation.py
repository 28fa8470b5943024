"""The script of the imputation table: what is kept, what is shown, what is refused. No model runs here."""

import json

import pandas as pd
import pytest
from test_experiments import ROOT, script

from ptt_jax import gaps


@pytest.fixture
def impute(tmp_path, monkeypatch):
    module = script("impute")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "TABLE", tmp_path / "results" / "imputation.csv")
    (tmp_path / "README.md").write_text("before\n<!-- table imputation -->\nold\n<!-- end imputation -->\nafter\n")
    return module


def rows(impute, data, kind, seed, error):
    return [
        {"data": data, "kind": kind, "seed": seed, "config": "c", "backbone": "b", "ratio": ratio, "split": split,
         "model": model, "mse": error + ratio + i + 9 * (split == "validation"), "mae": 0.5, "hidden": 7}
        for ratio in (0.125, 0.375) for split in ("validation", "test") for i, model in enumerate(impute.MODELS)
    ]  # fmt: skip


def test_a_cell_takes_the_place_of_a_former_one_alone(impute):
    for seed, error in ((0, 1.0), (1, 1.0), (0, 2.0)):
        impute.keep(rows(impute, "ETTh1", "points", seed, error))
    table = pd.read_csv(impute.TABLE)
    assert len(table) == 2 * 4 * len(impute.MODELS)
    assert table.groupby("seed")["mse"].min().round(3).to_dict() == {0: 2.125, 1: 1.125}


def test_the_table_has_the_means_of_ratios_and_seeds_on_test_and_its_best_in_bold(impute, tmp_path):
    for seed in range(2):
        for kind in gaps.KINDS:
            impute.keep(rows(impute, "ETTh2", kind, seed, seed / 10))
    assert impute.main(["--tables"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end imputation -->\nafter\n")
    assert "old" not in text
    line = next(line for line in text.splitlines() if line.startswith("| ETTh2 | points |"))
    assert "| **0.3000 / 0.500** | 1.3000 / 0.500 |" in line
    assert line.endswith("| 2 |")


def test_what_does_not_exist_is_refused_in_one_sentence(impute, tmp_path, capsys):
    for argv, words in (
        ([f"--runs={tmp_path}", "--data=ETTh9"], "--data=ETTh9 does not exist"),
        ([f"--runs={tmp_path}", "--data=ETTh1"], "holds no backbone"),
        ([f"--runs={tmp_path}", "--seeds=0"], "--seeds=0 is out of range"),
    ):
        assert impute.main(argv) == 2
        assert words in capsys.readouterr().err


def test_a_cell_that_is_there_is_not_run_again_unless_its_backbone_changed(impute, tmp_path, monkeypatch, capsys):
    run = tmp_path / "main" / "ETTh1-s0"
    run.mkdir(parents=True)
    architecture = {"patch": 24, "patches": 54, "position": "rotary"}
    card = {"run": "", "step": 1, "content_hash": "a" * 64, "architecture": architecture, "lookback": 576}
    ran = []

    def cell(cfg, problem, card, runs):
        ran.append((cfg.impute.kind, card["content_hash"][0]))
        about = {"config": impute.config.content_hash(cfg), "backbone": card["content_hash"][:12], "seconds": 1.0}
        return [row | about for row in rows(impute, "ETTh1", cfg.impute.kind, cfg.seed, 0.0)]

    monkeypatch.setattr(impute, "cell", cell)
    monkeypatch.setattr(impute, "load", lambda name: None)
    monkeypatch.setattr(impute, "tuned", lambda *args: None)
    monkeypatch.setattr(impute, "picture", lambda *args: None)
    argv = [f"--runs={tmp_path}", "--data=ETTh1"]
    for letter in "aab":
        (run / "backbone.json").write_text(json.dumps(card | {"content_hash": letter * 64}))
        assert impute.main(argv) == 0
    assert ran == [("points", "a"), ("blocks", "a"), ("points", "b"), ("blocks", "b")]
    assert "2 of 2  ETTh1 blocks seed 0  1 s  0 min left" in capsys.readouterr().out
    assert len(pd.read_csv(impute.TABLE)) == 2 * 4 * len(impute.MODELS)


def test_the_readme_has_a_place_for_the_table():
    text = (ROOT / "README.md").read_text()
    assert text.index("<!-- table imputation -->") < text.index("<!-- end imputation -->")
