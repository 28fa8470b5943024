"""The study of overfitting: who learns on what, what a finished cell is, what the table says."""

import dataclasses
import sys

import pandas as pd
import pytest
from test_experiments import script, without_matplotlib

from ptt_jax import config


@pytest.fixture
def overfit(tiny, tmp_path, monkeypatch):
    """The script on the smallest problem, with results in a folder of its own."""
    module = script("overfit")
    tiny.tune.update(learning_rate=1e-2)
    (tmp_path / "etth1.json").write_text(config.to_json(tiny))
    (tmp_path / "README.md").write_text("<!-- table overfitting -->\n<!-- end overfitting -->\n")
    monkeypatch.setattr(module, "recipe", lambda name: tmp_path / f"{name.lower()}.json")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module.main, "set_up", lambda cfg: None)
    monkeypatch.setattr(module.jax, "clear_caches", lambda: None)
    monkeypatch.setattr(sys.modules["ledger"], "README", tmp_path / "README.md")
    monkeypatch.setattr(module, "WIDTHS", (16,))
    monkeypatch.setattr(module, "RANKS", (0, 2))
    return module


SHORT = ("pretrain.steps=2", "tune.steps=8", "tune.batch=16", "tune.validations=2", "devices=1")


@pytest.mark.slow
def test_every_cell_leaves_a_row_a_look_and_is_not_run_again(overfit, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(overfit, "SHARES", (1.0,))
    monkeypatch.setattr(overfit, "MODELS", {m: m for m in ("linear", "full", "prompt")})
    argv = [f"--runs={tmp_path}", *(f"--config.{text}" for text in SHORT)]
    assert overfit.study(argv) == 0
    rows = pd.read_csv(tmp_path / "results" / "overfit.csv", dtype={"config": str})
    counts = rows.groupby(["model", "width"]).size().to_dict()
    assert counts == {("linear", 0): 3, ("linear", 2): 3, ("ridge", 0): 1, ("full", 16): 3, ("prompt", 16): 3}
    by = {key: of.set_index("step") for key, of in rows.groupby(["model", "width"])}
    # Maps begin at the history's mean, both of the backbone at its mask token; and all learn.
    assert by["linear", 0]["train_mse"][0] == pytest.approx(by["linear", 2]["train_mse"][0], rel=1e-4)
    assert by["full", 16]["validation_mse"][0] == pytest.approx(by["prompt", 16]["validation_mse"][0], rel=1e-4)
    for of in by.values():
        assert of["train_mse"].iloc[-1] <= of["train_mse"].iloc[0]
    assert by["ridge", 0]["train_mse"].iloc[0] < by["linear", 0]["train_mse"].min()
    sizes = {key: int(of["parameters"].iloc[0]) for key, of in by.items()}
    assert (sizes["linear", 0], sizes["linear", 2], sizes["prompt", 16]) == (48 * 20, 2 * (48 + 20), 2 * 16)
    assert "| full | 16 |" in (tmp_path / "README.md").read_text()
    assert {p.name for p in (tmp_path / "results" / "overfit").iterdir()} == {
        "ETTh1-curves.png", "ETTh1-plane.png", "ETTh1-best.png",
    }  # fmt: skip
    capsys.readouterr()
    monkeypatch.setattr(overfit, "run", None)
    assert overfit.study(argv) == 0
    assert " of " not in capsys.readouterr().out


def test_what_is_learned_from_scratch_was_never_pre_trained(overfit):
    cell = overfit.Cell("ETTh1", "scratch", 0.5, 16, 3)
    cfg = overfit.settle(cell, ["--config.pretrain.steps=9", "--config.pretrain.epochs=2.0"])
    assert (cfg.pretrain.steps, cfg.pretrain.epochs, cfg.tune.mode) == (0, 0.0, "head")
    assert (cfg.seed, cfg.tune.share, cfg.model.mlp, cfg.evaluate.test) == (3, 0.5, 32, False)
    cfg = overfit.settle(dataclasses.replace(cell, model="head"), ["--config.pretrain.steps=9"])
    assert cfg.pretrain.steps == 9


def test_the_grid_begins_with_its_cross(overfit, monkeypatch):
    monkeypatch.setattr(overfit, "WIDTHS", (64, 32, 16))
    monkeypatch.setattr(overfit, "RANKS", (0, 64, 16, 4))
    cells = overfit.cells(["ETTh1"], range(2))
    assert len(cells) == len(set(cells)) == 2 * 3 * (4 * 3 + 4)
    first = [cell for cell in cells if cell.seed == 0 and cell.model == "full"]
    spots = [(cell.share, cell.width) for cell in first]
    assert spots[:5] == [(1.0, 64), (0.05, 64), (1.0, 16), (0.25, 64), (1.0, 32)]
    assert cells[len(cells) // 2].seed == 1


def test_the_table_finds_the_best_look_the_gaps_and_the_rise(overfit):
    looks = pd.DataFrame({
        "data": "ETTh1", "model": "full", "share": 1.0, "width": 16, "seed": 0, "parameters": 5,
        "step": [20, 0, 10], "train_mse": [0.1, 1.0, 0.5], "validation_mse": [1.0, 2.0, 0.8],
    })  # fmt: skip
    (row,) = overfit.ends(looks).to_dict("records")
    assert (row["step"], row["best"]) == (10, 0.8)
    assert (row["gap"], row["gap_end"], row["rise"]) == pytest.approx((0.3, 0.9, 25.0))
    assert "| 0.800 @ 10 / 0.30 / 0.90 (+25.0 %) |" in overfit.markdown(overfit.ends(looks))


@pytest.mark.parametrize("argv", [["--data=none"], ["--seeds=0"], ["--nonsense"], ["--config.tune.stepz=1"]])
def test_a_study_that_cannot_be_is_one_sentence(overfit, argv, capsys):
    assert overfit.study(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("overfit: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("merged", [False, True])
def test_a_cell_that_is_run_again_under_another_config_replaces_its_former_rows(overfit, tmp_path, merged):
    """Also where git has put rows of both into one file."""
    ledger, file = sys.modules["ledger"].Ledger, tmp_path / "a.csv"

    def looks(model, version, best):
        return pd.DataFrame({
            "step": [0, 5], "train_mse": 0.5, "validation_mse": [1.0, best], "parameters": 5, "model": model,
            "data": "ETTh1", "share": 1.0, "width": 16, "seed": 0, "config": version,
        })  # fmt: skip

    former, other, latter = looks("full", "11111111", 0.2), looks("prompt", "33333333", 0.3), looks("full", "1e1", 0.8)
    if merged:
        pd.concat([former, other, latter]).to_csv(file, index=False)
    else:
        for rows in (former, other, latter):
            ledger(file, overfit.KEYS, overfit.VERSIONS).add(rows)
        assert len(pd.read_csv(file)) == 4
    there = ledger(file, overfit.KEYS, overfit.VERSIONS)
    assert overfit.ends(there.rows).set_index("model")["best"].to_dict() == {"prompt": 0.3, "full": 0.8}
    cell = {"data": "ETTh1", "model": "full", "share": 1.0, "width": 16, "seed": 0}
    assert there.has(**cell, config="1e1")
    assert not there.has(**cell, config="11111111")


def test_a_changed_default_makes_another_cell_and_the_place_of_a_file_does_not(overfit, tiny):
    fingerprint, cfg = sys.modules["ledger"].fingerprint, config.default()
    first = fingerprint(cfg, rows=5)
    assert fingerprint(cfg, rows=6) != first
    cfg.update({"backbone": "elsewhere", "cache_dir": "elsewhere"})
    cfg.data.dir = cfg.data.path = "elsewhere"
    assert fingerprint(cfg, rows=5) == first == fingerprint(config.from_json(config.to_json(cfg)), rows=5)
    cell = overfit.Cell("ETTh1", "full", 1.0, 16, 0)
    before = fingerprint(overfit.settle(cell, []))
    tiny.tune.update(learning_rate=2e-2)
    (overfit.recipe("ETTh1")).write_text(config.to_json(tiny))
    assert fingerprint(overfit.settle(cell, [])) != before


def test_without_matplotlib_tables_are_written_and_one_line_says_what_pictures_need(
    overfit, tmp_path, monkeypatch, capsys
):
    without_matplotlib(monkeypatch)
    looks = pd.DataFrame({
        "data": "ETTh1", "model": "full", "share": 1.0, "width": 16, "seed": 0, "parameters": 5,
        "step": [0, 10], "train_mse": [1.0, 0.5], "validation_mse": [2.0, 0.8],
    })  # fmt: skip
    overfit.publish(looks)
    overfit.publish(looks)
    assert "| 0.800 @ 10 /" in (tmp_path / "README.md").read_text()
    assert capsys.readouterr().out == "pictures need `pip install ptt_jax[plot]`\n"


def test_a_ledger_knows_a_cell_however_its_numbers_are_written(overfit, tmp_path):
    ledger = sys.modules["ledger"]
    keys = ("share", "config")
    ledger.Ledger(tmp_path / "a.csv", keys).add(pd.DataFrame({"share": [1.0], "config": ["12345678"], "value": [0.5]}))
    again = ledger.Ledger(tmp_path / "a.csv", keys)
    assert again.has(share=1.0, config="12345678")
    assert not again.has(share=0.5, config="12345678")
    again.add(pd.DataFrame({"share": [0.5], "config": ["1234e567"], "value": [0.25]}))
    assert ledger.Ledger(tmp_path / "a.csv", keys).has(share=0.5, config="1234e567")
