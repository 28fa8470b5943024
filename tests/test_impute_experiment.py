"""The script of the imputation table: what is kept, what is shown, what is refused. No model runs here."""

import json
import sys

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


def card_of(letter="a", run=""):
    architecture = {"patch": 24, "patches": 54, "position": "rotary"}
    return {"run": run, "step": 1, "content_hash": letter * 64, "architecture": architecture, "lookback": 576}


def rows(impute, data, kind, seed, error):
    return [
        {"data": data, "kind": kind, "seed": seed, "config": "c", "backbone": "b", "ratio": ratio, "split": split,
         "model": model, "mse": error + ratio + i + 9 * (split == "validation"), "mae": 0.5, "hidden": 7}
        for ratio in (0.125, 0.375) for split in ("validation", "test") for i, model in enumerate(impute.MODELS)
    ]  # fmt: skip


def test_a_cell_takes_the_place_of_a_former_one_alone(impute):
    for seed, error in ((0, 1.0), (1, 1.0), (0, 2.0)):
        impute.ledger().add(pd.DataFrame(rows(impute, "ETTh1", "points", seed, error)))
    table = pd.read_csv(impute.TABLE)
    assert len(table) == 2 * 4 * len(impute.MODELS)
    assert table.groupby("seed")["mse"].min().round(3).to_dict() == {0: 2.125, 1: 1.125}


def test_the_table_has_the_means_of_ratios_and_seeds_on_test_and_its_best_in_bold(impute, tmp_path, monkeypatch):
    for seed in range(2):
        for kind in gaps.KINDS:
            impute.ledger().add(pd.DataFrame(rows(impute, "ETTh2", kind, seed, seed / 10)))
    assert impute.main(["--tables"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end imputation -->\nafter\n")
    assert "old" not in text
    line = next(line for line in text.splitlines() if line.startswith("| ETTh2 | points |"))
    assert "| **0.3000 / 0.500** | 1.3000 / 0.500 |" in line
    assert line.endswith("| 2 |")
    monkeypatch.setitem(impute.MODELS, "new", "a model of later")
    assert impute.main(["--tables"]) == 0
    (line,) = (
        line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| ETTh2 | points")
    )
    assert line.endswith(" / 0.500 |  | 2 |")


def test_what_does_not_exist_is_refused_in_one_sentence(impute, tmp_path, capsys):
    where = f"{tmp_path / 'main'}"
    for argv, *words in (
        (["--data=Electricity"], "--data=Electricity is no set of this table; accepted: ETTh1", where, "there is none"),
        (["--data=ETTh1"], f"{where}/ETTh1-s0 holds no backbone", "there is none"),
        (["--seeds=0"], "--seeds=0 is out of range"),
    ):
        assert impute.main([f"--runs={tmp_path}", *argv]) == 2
        err = capsys.readouterr().err
        assert all(part in err for part in words), err
        assert err.count("\n") == 1
    for name in ("ETTh1-s0", "ETTm1-s2", "Traffic-s0"):
        (tmp_path / "main" / name).mkdir(parents=True)
        (tmp_path / "main" / name / "backbone.json").write_text(json.dumps(card_of()))
    for argv in (["--data=Traffic"], ["--data=ETTh2"], ["--data=ETTm1"]):
        assert impute.main([f"--runs={tmp_path}", *argv]) == 2
        assert "there are ETTh1-s0, ETTm1-s2" in capsys.readouterr().err


def test_a_cell_that_is_there_is_not_run_again_unless_its_backbone_changed(impute, tmp_path, monkeypatch, capsys):
    run = tmp_path / "main" / "ETTh1-s0"
    run.mkdir(parents=True)
    card, ran = card_of(), []

    def cell(cfg, problem, card, runs):
        ran.append((cfg.impute.kind, card["content_hash"][0]))
        about = {**dict(zip(("config", "backbone"), impute.key(cfg, card), strict=True)), "seconds": 1.0}
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


def test_a_changed_default_and_a_changed_constant_make_a_new_cell_and_where_things_lie_does_not(impute, monkeypatch):
    cfg = impute.settings("ETTh1", "points", 0, card_of())
    fingerprint = impute.fingerprint
    before, moved = fingerprint(cfg), cfg.copy_and_resolve_references()
    moved.data.dir = moved.data.path = moved.backbone = moved.cache_dir = "elsewhere"
    moved.devices = moved.evaluate.batch = 3
    assert fingerprint(moved) == before
    assert fingerprint(cfg, share=0.25) != before
    assert fingerprint(cfg, share=0.25) != fingerprint(cfg, share=0.5)
    other = cfg.copy_and_resolve_references()
    other.impute.reach = 1.0
    assert fingerprint(other) != before
    knobs = tuple((k, 1.0 if k == "impute.reach" else v, *rest) for k, v, *rest in impute.config.KNOBS)
    monkeypatch.setattr(impute.config, "KNOBS", knobs)  # a later version, at whose default the knob stands
    assert impute.settings("ETTh1", "points", 0, card_of()).impute.reach == 1.0
    assert fingerprint(impute.settings("ETTh1", "points", 0, card_of())) != before
    one = impute.key(cfg, card_of())
    monkeypatch.setitem(impute.MODELS, "another", "another")
    assert impute.key(cfg, card_of())[0] != one[0]


def test_hex_digits_that_look_like_a_number_stay_what_they_are(impute):
    about = {"config": "01234567", "backbone": "1234e5678901"}
    impute.ledger().add(pd.DataFrame([row | about for row in rows(impute, "ETTh1", "points", 0, 0.0)]))
    impute.ledger().add(pd.DataFrame(rows(impute, "ETTh2", "points", 0, 0.0)))
    table = impute.ledger().rows
    assert {*table[table["data"] == "ETTh1"]["config"]} == {"01234567"}
    assert {*table[table["data"] == "ETTh1"]["backbone"]} == {"1234e5678901"}


def test_without_matplotlib_there_is_a_table_and_a_word_about_pictures(impute, tmp_path, monkeypatch, capsys):
    run = tmp_path / "main" / "ETTh1-s0"
    run.mkdir(parents=True)
    (run / "backbone.json").write_text(json.dumps(card_of()))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(impute, "load", lambda name: None)
    monkeypatch.setattr(impute, "tuned", lambda *args: None)
    cells = lambda cfg, *_: [row | {"seconds": 1.0} for row in rows(impute, "ETTh1", cfg.impute.kind, 0, 0.0)]  # noqa: E731
    monkeypatch.setattr(impute, "cell", cells)
    assert impute.main([f"--runs={tmp_path}", "--data=ETTh1"]) == 0
    assert "pip install ptt_jax[plot]" in capsys.readouterr().out
    assert "| ETTh1 | blocks |" in (tmp_path / "README.md").read_text()


def test_the_readme_has_a_place_for_the_table():
    text = (ROOT / "README.md").read_text()
    assert text.index("<!-- table imputation -->") < text.index("<!-- end imputation -->")
