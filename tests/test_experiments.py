"""The scripts beside the package: tables of many runs, and what a step costs."""

import importlib.util
import json
import math
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ptt_jax import Forecaster, architecture, calibrate, config, frames, intervals
from ptt_jax.intervals import Unit

ROOT = Path(__file__).parent.parent / "experiments"


def script(name: str):
    if str(ROOT) not in sys.path:  # where Python finds what stands beside a script
        sys.path.append(str(ROOT))
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_matplotlib(patch: pytest.MonkeyPatch) -> None:
    """Makes its import fail, as where the extra `plot` is not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        patch.setitem(sys.modules, name, None)
    patch.setitem(sys.modules, "matplotlib", None)
    for name in ("curves", "maps"):
        patch.delitem(sys.modules, name, raising=False)
    sys.modules["ledger"].say.cache_clear()


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


@pytest.fixture
def small(tiny, tmp_path):
    """The tiny config as a file."""
    (tmp_path / "config.json").write_text(config.to_json(tiny))
    return [f"--config={tmp_path / 'config.json'}", "--batch=16", "--channels=2"]


@pytest.fixture
def bench(monkeypatch):
    """The script with a peak that needs no measurement, and a series of 200 steps."""
    module = script("bench")
    monkeypatch.setattr(module, "LENGTH", 4 * 200)
    monkeypatch.setattr(module, "QUICK", module.Pace(0.0, 1, 2, 3, 1))
    monkeypatch.setattr(module.peaks, "of_device", lambda dtype: module.peaks.Peak("made up", 1e11, 1e10))
    return module


@pytest.mark.slow
def test_the_bench_times_every_phase_and_writes_lines_of_finite_numbers(bench, small, tmp_path, capsys):
    file = tmp_path / "bench.jsonl"
    assert bench.main([*small, "--quick", f"--json={file}"]) == 0
    out = capsys.readouterr().out
    records = [json.loads(line) for line in file.read_text().splitlines()]
    names = ["pretrain", "tune, cached", "tune, uncached", "full fine-tuning", "linear probe, new head", "forecast"]
    assert [r["phase"] for r in records] == names
    for record in records:
        numbers = {k: v for k, v in record.items() if isinstance(v, float | int)}
        assert all(math.isfinite(v) and v > 0 for v in numbers.values())
        assert {
            "date", "command", "device", "jax", "dtype", "config", "horizons", "batch", "step_ms", "rows_per_s",
            "mflops_a_row", "temporary_kib_a_row", "argument_mib", "gflops_per_s", "share_of_peak", "share_of_bound",
            "bound_by",
        } <= {*record}  # fmt: skip
        assert f"| {record['phase']} |" in out
        assert record["rows_per_s"] == pytest.approx(16e3 / record["step_ms"])
        assert record["gflops_per_s"] == pytest.approx(record["share_of_peak"] * 100)
    pretrain, cached, uncached, full, probe, forecast = (r["mflops_a_row"] for r in records)
    assert cached < forecast < uncached < full < pretrain * 2
    assert probe < full
    assert {r["phase"] for r in records if "share_compiled" in r} == {"pretrain", "tune, cached"}
    assert "windows of 2 channels a second" in out


def test_a_gpus_flops_are_those_that_a_cpu_counts(bench, small, tmp_path, monkeypatch):
    """A fake GPU, which is this CPU, and a fake CPU that counts a thousand times as many."""
    monkeypatch.setattr(bench.phases, "every", lambda s, quick: [s.forecasting(s.horizons)])
    files = [tmp_path / f"{name}.jsonl" for name in ("gpu", "computed")]
    assert bench.main([*small, "--quick", "--chip=H100", f"--json={files[1]}"]) == 0
    (computed,) = map(json.loads, files[1].read_text().splitlines())

    def counts(command, env, **_):
        assert env["JAX_PLATFORMS"] == "cpu"
        assert command[2:-1] == [*small, "--quick", f"--chip={bench.peaks.CHIPS[0]}"]
        file = command[-1].partition("=")[2]
        Path(file).write_text(json.dumps(computed | {"mflops_a_row": 1000 * computed["mflops_a_row"]}) + "\n")

    monkeypatch.setattr(bench.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bench.subprocess, "run", counts)
    assert bench.main([*small, "--json", f"{files[0]}", "--quick"]) == 0
    (record,) = map(json.loads, files[0].read_text().splitlines())
    assert record["mflops_a_row"] == pytest.approx(1000 * computed["mflops_a_row"])
    assert record["bound_by"] == "compute"
    assert record["bound_ms"] == pytest.approx(record["mflops_a_row"] * 16 * 1e6 / 1e11 * 1e3)
    assert record["gflops_per_s"] == pytest.approx(record["mflops_a_row"] * 16 / record["step_ms"])


def test_a_wide_series_is_timed_beside_a_narrow_one(bench, small, monkeypatch, capsys):
    monkeypatch.setattr(bench, "LONG", 200)
    monkeypatch.setattr(bench, "WIDE", 5)
    monkeypatch.setattr(bench.phases, "few", lambda s: [s.forecasting(s.horizons)])
    assert bench.main([*small, "--wide", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "| forecast | 2 |" in out
    assert "| forecast | 5 |" in out
    assert out.count("a row of 5 channels costs") == 1


@pytest.mark.slow
def test_a_bank_is_weighed_and_timed_beside_copies(bench, small, tmp_path, capsys):
    file = tmp_path / "bench.jsonl"
    assert bench.main([*small, "--bank", "--quick", "--tenants=3", f"--json={file}"]) == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["phase"] for r in records] == 2 * [*bench.tenants.WAYS.values()]
    assert all(r["forecasts_per_s"] == pytest.approx(3e3 / r["ms"]) for r in records)
    assert all(0 < r["prompt_bytes"] < r["copies_bytes"] for r in records)
    assert records[0]["disk_bytes_bank"] > records[0]["disk_bytes_backbone"] > 0
    assert "| bank: one call, each row its own prompt | 20 | 3 |" in capsys.readouterr().out
    assert bench.main([*small, "--bank", "--tenants=0"]) == 2
    assert "--tenants=0: accepted: 1 to 1024" in capsys.readouterr().err


@pytest.mark.slow
def test_views_cost_what_each_of_them_reads(bench, tiny):
    """Pre-training and a probe look at the whole lookback alone."""

    def flops(views):
        tiny.views = views
        subject = bench.Subject(tiny, (20,), 16, 3, 1000, True)
        todo = {
            "pretrain": subject.pretraining(), "probe": subject.probing("", (20,), bench.phases.optim.PROBE),
            "tune": subject.tuning("", (20,), bench.phases.whole), "forecast": subject.forecasting((20,)),
        }  # fmt: skip
        return {
            k: bench.figures(p, bench.compiled(p), bench.Peak("", 1.0, 1.0))["mflops_a_row"] for k, p in todo.items()
        }

    one, two = flops(1), flops(2)
    assert (two["pretrain"], two["probe"]) == (one["pretrain"], one["probe"])
    assert two["tune"] > 1.3 * one["tune"]
    assert two["forecast"] > 1.3 * one["forecast"]


def test_a_chip_of_the_table_is_computed_and_not_run(bench, small, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "time_all", None)
    monkeypatch.setattr(bench.phases, "every", lambda s, quick: [s.full(s.horizons)])
    file = tmp_path / "bench.jsonl"
    argv = [*small, "--quick", "--chip=H100", "--dtype=bfloat16", f"--json={file}"]
    assert bench.main(argv) == 0
    r = json.loads(file.read_text())
    assert "step_ms" not in r
    assert r["device"] == "H100, computed"
    assert r["peak_gflops_per_s"] == 989_400
    flops, accessed = 16e6 * r["mflops_a_row"] / 989.4e12, 16 * 1024 * r["accessed_kib_a_row"] / 3.35e12
    assert r["bound_ms"] == pytest.approx(1e3 * max(flops, accessed))
    assert r["bound_by"] == ("compute" if flops > accessed else "memory")


def test_what_a_step_reads_does_not_grow_with_the_series(bench, tiny):
    """The compiler counts all that a gather could read: the whole series, the whole cache."""

    def accessed(length, channels):
        subject = bench.Subject(tiny, (20,), 16, channels, length, True)
        phase = subject.tuning("", (20,), bench.phases.whole)
        return bench.figures(phase, bench.compiled(phase), bench.Peak("", 1.0, 1.0))["accessed_kib_a_row"]

    assert accessed(1000, 4) == pytest.approx(accessed(2000, 8), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", None), ("NVIDIA GH200 480GB", None),
        ("NVIDIA H200", "H200"), ("TPU v4", "TPU-v4"), ("TPU v5 lite", "TPU-v5e"), ("TPU v5p", "TPU-v5p"),
        ("TPU v5", "TPU-v5p"), ("TPU v6 lite", "TPU-v6e"), ("cpu", None),
    ],
)  # fmt: skip
def test_a_device_is_found_in_the_table_by_its_kind(monkeypatch, kind, chip):
    peaks = script("bench").peaks
    monkeypatch.setattr(peaks.jax, "devices", lambda: [SimpleNamespace(device_kind=kind, platform="")])
    monkeypatch.setattr(peaks, "measured", lambda dtype: peaks.Peak(None, 1.0, 1.0))
    assert peaks.of_device("float32").name == chip


def test_the_peak_of_a_device_in_no_table_is_measured():
    peak = script("bench").peaks.measured("float32", size=64, copied=2**16)
    assert peak.flops > 1e6
    assert peak.bytes > 1e6


@pytest.mark.slow
def test_a_tuning_step_costs_a_small_part_of_full_fine_tuning(monkeypatch):
    """Compiled figures of the default ETTh1 model: nothing is run, and no busy machine can change them."""
    monkeypatch.chdir(ROOT.parent)
    bench = script("bench")
    cfg = bench.load_file(Path("configs/etth1_light.py"))
    subject = bench.Subject(cfg, tuple(cfg.horizons), 448, 7, bench.LENGTH, True)
    peak = bench.Peak("", 1.0, 1.0)

    def figures(phase):
        return bench.figures(phase, bench.compiled(phase), peak)

    tuned = {hs: figures(subject.tuning("", hs, bench.phases.whole)) for hs in ((96,), subject.horizons)}
    full, one, four = figures(subject.full((96,))), tuned[96,], tuned[subject.horizons]
    assert one["mflops_a_row"] <= full["mflops_a_row"] / 25
    assert one["temporary_kib_a_row"] <= full["temporary_kib_a_row"] / 10
    # Four models, each fully fine-tuned for its horizon: the shortest is the cheapest.
    assert four["mflops_a_row"] <= 4 * full["mflops_a_row"] / 15


@pytest.mark.parametrize(
    "argv",
    [["--config=none.py"], ["--horizons=0"], ["--horizons=96,24"], ["--batch=0"], ["--chip=abacus"], ["--width=9"],
     ["--dtype=int4"], ["--channels=0"], ["--horizons=9000"]],
)  # fmt: skip
def test_a_bench_that_cannot_be_is_one_sentence(argv, capsys):
    assert script("bench").main(["--config=configs/quickstart.py", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("bench: ")
    assert err.count("\n") == 1


def test_convergence_compares_a_whole_stage_with_steps_times_their_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT.parent)
    made = {}

    def pretend(cfg, problem, folder):
        made["cfg"], made["train_end"] = cfg, problem.series.splits["train"][1]
        return 2.0, {"12": 0.5}

    cfg = config.default()
    cfg.lookback, cfg.horizons, cfg.data.rows, cfg.data.channels = 48, (12,), 500, 3
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    (tmp_path / "config.json").write_text(config.to_json(cfg))
    card = {"run": "", "step": 1, "content_hash": "0" * 64, "architecture": architecture.of(cfg)}
    (tmp_path / "backbone.json").write_text(json.dumps(card))
    module = script("convergence")
    monkeypatch.setattr(module, "prompts", pretend)
    monkeypatch.setattr(module.main, "set_up", lambda cfg: None)
    monkeypatch.setattr(module, "PACE", script("bench").Pace(0.0, 1, 2, 3, 1))
    file = tmp_path / "c.json"
    assert module.run([f"--config={tmp_path / 'config.json'}", f"--backbone={tmp_path}", f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    (model,) = found["models"]
    rows = 3 * (made["train_end"] - 48 - 12 + 1)
    assert model["steps_an_epoch"] == -(-rows // cfg.tune.batch)
    epochs = 10 * model["head"] + 20 * model["everything"]
    assert found["full_seconds"] == pytest.approx(model["steps_an_epoch"] * epochs)
    assert found["ratio"] == pytest.approx(found["full_seconds"] / 2)
    assert "prompts of all horizons 2 s, 1 models fully fine-tuned" in capsys.readouterr().out


def test_convergence_without_a_backbone_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT.parent)
    module = script("convergence")
    monkeypatch.setattr(module.main, "set_up", lambda cfg: None)
    assert module.run([f"--backbone={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("convergence: ")
    assert err.count("\n") == 1


def test_a_forecaster_is_timed_on_frames_of_each_kind(tmp_path, monkeypatch):
    latency = script("latency")
    asked, predict = [], Forecaster.predict

    def heard(model, frame=None):
        asked.append(frame)
        return predict(model, frame)

    monkeypatch.setattr(latency, "TIMES", 2)
    monkeypatch.setattr(Forecaster, "predict", heard)
    with zipfile.ZipFile(Path(__file__).parent / "fixtures/format3.zip") as file:
        file.extractall(tmp_path)
    took = latency.ask(str(tmp_path / "forecaster"), 3)
    assert [None if frame is None else frame.shape for frame in asked] == [
        *[(latency.RECENT, 4)] * 3, *[(3 * latency.RECENT, 3)] * 2, *[(latency.RECENT + latency.SINCE, 4)] * 2, None,
        None,
    ]  # fmt: skip
    assert (asked[-3]["ds"] > asked[0]["ds"].iloc[-1]).sum() == latency.SINCE
    row = {"series": 3, "horizon": 48, **dict.fromkeys(took, 0.0304)}
    assert latency.table(pd.DataFrame([row])).splitlines()[-1] == "| 3 x 48 | 0.0 s | 30 ms | 30 ms | 30 ms | 30 ms |"


def test_the_first_of_the_rules_for_intervals_is_the_one_in_force(monkeypatch):
    rules, horizon = script("rules"), 6
    values_T = np.random.default_rng(0).normal(size=500).cumsum()
    frame = pd.DataFrame({"ds": pd.date_range("2024", periods=500, freq="h"), "a": values_T, "b": values_T[::-1]})

    class Last:
        lookback = 24

        def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
            return np.repeat(history_RT[:, -1:], horizon, 1)

    model = Last()
    model.horizon = horizon
    past, whole, after = frames.read(frame[:400]), frames.read(frame), calibrate.cutoffs(-100, -horizon, 40)
    found = rules.measure(rules.Scene(model, past, whole, 60, 1, after))
    assert [row["rule"] for row in found] == [*rules.RULES, *rules.UNITS]
    known = calibrate.fit(model, past, 60, Unit.of(1, horizon, 24))
    residual_WHC, unit_WC = calibrate.back_test(model, whole, after, known.unit)
    each = [known.bounds(np.zeros((horizon, 2)), known.ratio_C * unit_C, 80) for unit_C in unit_WC]
    low_WHC, high_WHC = (np.stack(side) for side in zip(*each, strict=True))
    assert found[0]["coverage"] == intervals.coverage(residual_WHC, low_WHC, high_WHC)
    assert len({row["pinball"] for row in found}) > 15  # each rule changes something
    monkeypatch.setattr(intervals, "LEVELS", rules.LEVELS)
    few = rules.measure(rules.Scene(model, past, whole, 60, 1, after))
    assert [row["coverage"] for row in few] == [row["coverage"] for row in found]


def test_any_csv_has_rows_of_its_own_by_name_and_horizon(tmp_path, monkeypatch, capsys):
    own, asked, shown = script("own"), [], []

    def measure(name: str, file: Path, horizon: int, knobs: dict, quantiles: tuple) -> dict:
        asked.append((name, file, horizon))
        whole = dict.fromkeys([*own.COLUMNS, "rows", "series", "season", "patch", "lookback"], 1.0)
        return {"data": name, "knobs": own.said(knobs), "horizon": horizon, "recipe": own.recipe_hash(), **whole}

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(own, "HERE", tmp_path)
    monkeypatch.setattr(own, "measure", measure)
    monkeypatch.setattr(own, "show", lambda name, text: shown.append(name))
    mine = tmp_path / "sales.2024.csv.gz"
    for words in ([f"--file={mine}", "--horizon=24"], ["--file", str(mine), "--horizon=48"]) * 2:
        monkeypatch.setattr(sys, "argv", ["own.py", *words])
        assert own.main() == 0
    assert asked == [("sales.2024", mine, 24), ("sales.2024", mine, 48)]
    assert set(shown) == {"own-more"}
    rows = pd.read_csv(tmp_path / "results" / "own-more.csv")
    assert list(rows["command"]) == [
        "python experiments/own.py --file=sales.2024.csv.gz --horizon=24",
        "python experiments/own.py --file sales.2024.csv.gz --horizon=48",
    ]
    capsys.readouterr()
    for words in (["--horizon=3"], [f"--file={mine}"], [f"--file={mine}", "--horizon=3", "--data=WTH"]):
        monkeypatch.setattr(sys, "argv", ["own.py", *words])
        assert own.main() == 2
        assert "--file and --horizon go together" in capsys.readouterr().err
    assert len(asked) == 2


def test_a_study_measures_each_cell_once_and_one_without_rows_is_none(tmp_path, capsys):
    script("own")  # finds what it imports
    ledger, asked = sys.modules["ledger"], []

    def measure(data: str, end: float) -> list[dict]:
        asked.append((data, end))
        return [{"data": data, "end": end, "value": value} for value in (1, 2)] if end else []

    cells = [{"data": "a", "end": 0.0}, {"data": "a", "end": 0.5}]
    for _ in range(2):
        book = ledger.Ledger(tmp_path / "a.csv", ("data", "end"))
        ledger.finish(book, cells, measure, lambda rows: f"{len(rows)} rows")
    assert asked == [("a", 0.0), ("a", 0.5), ("a", 0.0)]
    assert capsys.readouterr().out == "2 rows\n"
    assert pd.read_csv(tmp_path / "a.csv")["value"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["coverage", "rules", "own", "torn"])
def test_a_set_that_is_none_is_refused_in_one_line_before_any_is_measured(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--data=illness,none"])
    monkeypatch.setattr(intervals, "LEVELS", intervals.LEVELS)  # which rules.py changes
    assert script(name).main() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: --data=none does not exist; accepted: vic_elec, ")
    assert err.count("\n") == 1
