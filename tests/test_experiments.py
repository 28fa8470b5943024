"""The scripts beside the package: tables of many runs, and what a step costs."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

from ptt_jax import config

ROOT = Path(__file__).parent.parent / "experiments"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_run(folder: Path, seed: int, rate: float, mse: float) -> Path:
    folder.mkdir()
    cfg = config.default()
    cfg.seed, cfg.tune.learning_rate = seed, rate
    (folder / "config.json").write_text(config.to_json(cfg))
    (folder / "backbone.json").write_text(json.dumps({"content_hash": "abcdefgh" * 8}))
    rows = [
        ("ETTh1", 504, h, m, s, seed, mse + h / 1000, 0.4, 10)
        for h in (96, 192)
        for m in ("linear", "prompt")
        for s in ("validation", "test")
    ]
    pd.DataFrame(
        rows, columns=["data", "lookback", "horizon", "model", "split", "seed", "mse", "mae", "windows"]
    ).to_csv(folder / "results.csv", index=False)
    return folder


def test_seeds_become_a_mean_and_a_spread(tmp_path, capsys):
    runs = [make_run(tmp_path / f"s{s}", s, 1e-3, 0.3 + s / 10) for s in range(3)]
    assert script("collect").main([*map(str, runs), f"--csv={tmp_path / 't.csv'}"]) == 0
    table = pd.read_csv(tmp_path / "t.csv")
    assert len(table) == 4
    assert (table.seeds == 3).all()
    assert table.mse_spread.round(6).tolist() == [0.1] * 4
    assert "| prompt | 0.496 ±0.100 / 0.400 | 0.592 ±0.100 / 0.400 | 0.544 / 0.400 | 3 |" in capsys.readouterr().out


def test_a_knob_tells_runs_apart(tmp_path, capsys):
    runs = [make_run(tmp_path / f"r{i}", 0, rate, 0.3 + i) for i, rate in enumerate((1e-3, 1e-2))]
    assert script("collect").main([*map(str, runs), "--by=config.tune.learning_rate"]) == 0
    out = capsys.readouterr().out
    assert "tune.learning_rate 0.001" in out
    assert "tune.learning_rate 0.01" in out
    assert script("collect").main([*map(str, runs)]) == 2
    assert "share data, lookback and seed; accepted: --by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"), [(["--by=tune.lr"], "nearest"), (["--by=lookback"], ""), (["nowhere"], "results.csv")]
)
def test_what_cannot_be_collected_is_one_sentence(tmp_path, capsys, argv, words):
    code = script("collect").main([str(make_run(tmp_path / "r", 0, 1e-3, 0.3)), *argv])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == ((0, 0) if argv == ["--by=lookback"] else (2, 1))
    assert words in err


def test_the_bench_prints_that_tuning_costs_less_than_fine_tuning(capsys):
    assert script("bench").main(["--config=configs/quickstart.py", "--horizons=24", "--batch=32"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    share = {row[0].strip(): float(row[2]) for row in rows}
    assert share["tune, encodings cached"] < share["tune, encoder at each step"] < 0.5


@pytest.mark.parametrize("argv", [["--config=none.py"], ["--horizons=0"], ["--horizons=96,24"], ["--batch=0"]])
def test_a_bench_that_cannot_be_is_one_sentence(argv, capsys):
    assert script("bench").main(["--config=configs/quickstart.py", *argv]) == 2
    assert capsys.readouterr().err.startswith("bench: ")
