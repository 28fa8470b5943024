"""The command line, as typed: the whole job, a second call, other data on the same backbone, ways to mistype."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from ptt_jax import main, seal
from ptt_jax.errors import UserError

ROOT = Path(__file__).parent.parent
TINY = [
    "--config=configs/csv.py", "--config.lookback=48", "--config.horizons=12,20", "--config.model.patch=12",
    "--config.model.width=16", "--config.model.mlp=16", "--config.model.heads=2", "--config.model.encoder_layers=1",
    "--config.pretrain.steps=4", "--config.pretrain.batch=16", "--config.pretrain.validations=2",
    "--config.pretrain.validation_rows=32", "--config.tune.steps=4", "--config.tune.batch=16",
    "--config.tune.validations=2", "--config.evaluate.batch=128", "--config.devices=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Relative paths as a user types them; the session's compilation cache stays; and the first run alone, `run`, draws
    figures, which is a third of what the next ones would take."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main, "set_up", lambda cfg: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def table(rows: int, channels: int, seed: int, freq: str = "h") -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    values = np.sin(2 * np.pi * t / 24 + np.arange(channels)) * 10 + rng.normal(size=(rows, channels)) + 50
    frame = pd.DataFrame(values, columns=[f"c{i}" for i in range(channels)])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq=freq))
    return frame


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    table(400, 3, 0).to_csv(folder / "three.csv", index=False)
    table(400, 5, 1).to_csv(folder / "five.csv.gz", index=False)
    table(400, 3, 2, "15min").to_csv(folder / "quarters.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def run(files):
    """A finished run of all stages, made through the command line's own function."""
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    patch.setattr(main, "set_up", lambda cfg: None)
    workdir = files / "run"
    assert main.main([*TINY, f"--config.data.path={files / 'three.csv'}", f"--workdir={workdir}"]) == 0
    patch.undo()
    return workdir


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_leaves_what_readme_says(run):
    files = "config.json versions.json metrics.jsonl backbone.json results.csv steps.csv samples.npz "
    files += "channels.csv exhibits.npz report.md report.html"
    for name in files.split():
        assert (run / name).stat().st_size > 0, name
    results = pd.read_csv(run / "results.csv")
    assert ",".join(results) == ("data,lookback,horizon,model,split,seed,mse,mae,windows,coverage_80,coverage_95,crps")
    on_test = results[results.split == "test"]
    assert on_test[["coverage_80", "coverage_95"]].apply(lambda share: share.between(0.5, 1)).all(axis=None)
    assert (on_test.crps < on_test.mae).all()  # of a forecast without intervals it is the MAE
    assert results[results.split == "validation"].crps.isna().all()
    assert set(results.model) == {"seasonal_naive", "linear", "zero_shot", "prompt"}
    assert len(results) == 4 * 2 * 2
    assert set(results[(results.split == "test") & (results.horizon == 12)].windows) == {80 - 12 + 1}
    assert np.isfinite(results.mse).all()
    assert (results[results.model == "linear"].mse.values < results[results.model == "seasonal_naive"].mse.values).all()
    assert not list(run.rglob("*.tmp*"))


def test_what_is_kept_to_be_looked_at_agrees_with_the_results(run):
    """Nothing is missing here, so that the mean of channels is the mean; intervals hold their forecast's level."""
    results, keys = pd.read_csv(run / "results.csv"), ["model", "split", "horizon"]
    by_channel = pd.read_csv(run / "channels.csv").groupby(keys)[["mse", "mae"]].mean()
    np.testing.assert_allclose(by_channel, results.set_index(keys)[["mse", "mae"]].loc[by_channel.index], rtol=1e-4)
    with np.load(run / "samples.npz") as samples, np.load(run / "exhibits.npz") as kept:
        assert kept["low_ZSH"].shape == kept["high_ZSH"].shape == (2, *samples["forecast_prompt_SH"].shape)
        assert (kept["low_ZSH"] < kept["high_ZSH"]).all()
        assert (kept["low_ZSH"][1] <= kept["low_ZSH"][0]).all()
        assert (kept["high_ZSH"][1] >= kept["high_ZSH"][0]).all()
        assert kept["coverage_ZH"].shape == (2, 20)
        assert kept["attention_IKMN"].shape == (1, 2, 2, 4)
        np.testing.assert_allclose(kept["attention_IKMN"].sum(-1), 1, rtol=1e-4)
        assert (kept["rows"], kept["channels"], kept["missing"]) == (400, 3, 0)


COUNT = """
import json, sys
import jax
from ptt_jax import main
counts = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}
def count(event, **_):
    if event in counts:
        counts[event] += 1
jax.monitoring.register_event_listener(count)
code = main.main(sys.argv[1:])
print(json.dumps(list(counts.values())))
sys.exit(code)
"""


@pytest.mark.slow
def test_no_program_is_compiled_twice_in_a_run_of_all_stages(files, tmp_path):
    """A compilation cache that was empty knows a program that comes again; what was foreseen is what ran. In a process
    of its own: jax forgets some of what it holds in memory when hundreds of tests have run."""
    flags = [f"--config.data.path={files / 'three.csv'}", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.cache_dir={tmp_path / 'xla'}", f"--profile={tmp_path / 'trace'}", "--config.pretrain.steps=5"]
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-c", COUNT, *TINY, *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again, programs = json.loads(done.stdout.splitlines()[-1])
    assert again == 0  # nor for the two lengths of a chunk, 2 and 3 steps
    assert 12 < programs < 120  # of them a dozen of the stages; the others are an operation each
    times = {name: done.stderr.count(f"Compiling jit({name})") for name in ("losses", "run", "chunk", "sums")}
    # A look at pre-training; encodings of two splits; a step of two stages; a look at prompts, and the final one.
    assert times == {"losses": 1, "run": 2, "chunk": 2, "sums": 2}
    # And the trace of warm steps, since a run of its own would be as long.
    for stage, steps in (("pretrain", 3), ("tune", 2)):
        assert f"{stage}: a trace of {steps} steps is in {tmp_path / 'trace'}/{stage}" in done.stdout
        assert any(p.stat().st_size > 1000 for p in (tmp_path / "trace" / stage).rglob("*.xplane.pb"))


def test_prompts_are_never_worse_than_zero_shot_on_validation(run):
    results = pd.read_csv(run / "results.csv")
    mse = results[results.split == "validation"].pivot(index="horizon", columns="model", values="mse")
    assert (mse.prompt <= mse.zero_shot).all()


def test_validation_while_tuning_is_the_final_evaluation(run):
    """The same function measures both: the step that was chosen has the error that results.csv shows."""
    results = pd.read_csv(run / "results.csv").query("split == 'validation'").set_index(["model", "horizon"]).mse
    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [line["validation_mse"] for line in looks if line["stage"] == "tune"]
    for h in (12, 20):
        np.testing.assert_allclose(looks[0][str(h)], results["zero_shot", h], rtol=1e-4)
        np.testing.assert_allclose(min(look[str(h)] for look in looks), results["prompt", h], rtol=1e-4)


def test_a_second_call_changes_nothing(run, files, capsys):
    before = snapshot(run)
    assert main.main([*TINY, f"--config.data.path={files / 'three.csv'}", f"--workdir={run}"]) == 0
    assert snapshot(run) == before
    out = capsys.readouterr().out
    assert all(f"{stage}: done before" in out for stage in ("pretrain", "tune", "evaluate"))


def test_a_run_is_exported(run, tmp_path, capsys):
    """What the program says of the histories of samples.npz is what the run said, also one that did not know a knob."""
    pytest.importorskip("flatbuffers")
    out, former = tmp_path / "model.stablehlo", tmp_path / "former"
    shutil.copytree(run, former)
    cfg = seal.read_json(former / "config.json")
    del cfg["views"], cfg["model"]["decoder_attention"]
    (former / "config.json").write_text(json.dumps(cfg))
    card = seal.read_json(former / "prompts" / "three-12-20.json")
    card |= {"levels": [0.1, 0.9], "content_hash": "of quantiles"}  # sorts before the forecast's, and is none
    (former / "prompts" / "three-12-20-quantiles.json").write_text(json.dumps(card))
    argv = ["export", f"--config.output={out}", f"--config.backbone={former}"]
    assert main.main(argv) == 0
    with np.load(run / "samples.npz") as kept:
        history_ST = np.where(kept["history_observed_ST"], kept["history_ST"], np.nan).astype(np.float32)
        found_SH = jax.export.deserialize(out.read_bytes()).call(history_ST)
        np.testing.assert_allclose(found_SH, kept["forecast_prompt_SH"], rtol=1e-4)
    page = json.loads(out.with_suffix(".json").read_text())
    assert page["prompt"] == json.loads((run / "prompts" / "three-12-20.json").read_text())["content_hash"]
    assert main.main([*argv, "--config.horizons=12,"]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["output"]["shape"] == ["rows", 12]
    before = snapshot(tmp_path)
    for more, words in (
        (["--config.horizons=13,"], "has no horizon 13 to export; accepted: 12, 20"),
        (["--config.seed=1"], "config.seed changes nothing of what"),
        ([f"--config.backbone={tmp_path}"], "config.json does not exist"),
        (["--config.output=model.onnx"], "accepted: a path like model.stablehlo"),
        (["--config.output="], "config.output is empty"),
    ):
        assert main.main([*argv, *more]) == 2
        assert words in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_run_is_repeated_from_its_own_config_json_bit_for_bit(run, tmp_path):
    again = tmp_path / "again"
    assert main.main([f"--config={run / 'config.json'}", f"--workdir={again}"]) == 0
    names = ["config", "data", "versions"]
    files = [*(f"{n}.json" for n in names), *(f"{n}.csv" for n in ("results", "steps", "channels"))]
    for name in (*files, "samples.npz", "exhibits.npz"):
        assert (run / name).read_bytes() == (again / name).read_bytes(), name
    assert {"git", "jax", "numpy", "python", "device"} <= {*seal.read_json(run / "versions.json")}
    assert {"name", "fingerprint", "splits"} <= {*seal.read_json(run / "data.json")}
    for name in ("backbone.json", "prompts/three-12-20.json"):  # the weights' content hashes among them
        ours, theirs = (seal.read_json(r / name) for r in (run, again))
        own = ("seconds", "run", "backbone_run")  # of this run alone
        assert {k: v for k, v in ours.items() if k not in own} == {k: v for k, v in theirs.items() if k not in own}
    ours, theirs = (pd.read_json(r / "metrics.jsonl", lines=True).drop(columns="seconds") for r in (run, again))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_another_config_in_the_same_workdir_is_refused_and_nothing_is_lost(run, files, capsys):
    before = snapshot(run)
    argv = [*TINY, f"--config.data.path={files / 'three.csv'}", f"--workdir={run}", "--config.tune.steps=6"]
    assert main.main(argv) == 2
    assert "config.tune.steps = 4, not 6" in capsys.readouterr().err
    assert snapshot(run) == before


def test_a_backbone_is_reused_on_data_of_more_channels_with_its_own_architecture(run, files, tmp_path, capsys):
    before, five = snapshot(run), files / "changing.csv.gz"
    shutil.copy(files / "five.csv.gz", five)
    argv = [*TINY, f"--config.data.path={five}", f"--workdir={tmp_path / 'five'}", "--config.model.width=32"]
    assert main.main([*argv, f"--config.backbone={run}"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert snapshot(run) == before
    card = json.loads((tmp_path / "five" / "backbone.json").read_text())
    assert card["content_hash"] == json.loads((run / "backbone.json").read_text())["content_hash"]
    assert json.loads((tmp_path / "five" / "config.json").read_text())["model"]["width"] == 16
    assert not (tmp_path / "five" / "backbone").exists()
    # data that changed under a run are refused
    table(401, 5, 1).to_csv(five, index=False)
    assert main.main([*argv, f"--config.backbone={run}"]) == 2
    assert "holds a run on other data than changing holds now" in capsys.readouterr().err
    # and through the second run, which has no weights of its own; data of another step are a warning
    again = [*TINY, f"--config.data.path={files / 'quarters.csv'}", f"--workdir={tmp_path / 'quarters'}"]
    assert main.main([*again, f"--config.backbone={tmp_path / 'five'}"]) == 0
    assert "warning: the backbone learned from steps of 'h' (three), not '15min'" in capsys.readouterr().out


def test_a_backbone_that_saw_the_test_rows_is_refused(run, files, tmp_path, capsys):
    argv = [
        *TINY,
        f"--config.data.path={files / 'three.csv'}",
        f"--config.backbone={run}",
        f"--workdir={tmp_path / 'r'}",
    ]
    assert main.main([*argv, "--config.data.split=.5,.2,.3"]) == 2
    assert (
        "learned from the first 280 rows of the same data, past the end of the train split at 200"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
def mixed(files):
    """A run whose backbone learned from two files: 'three.csv' is its own, 'five.csv.gz' came also, from where data
    lies."""
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    patch.setattr(main, "set_up", lambda cfg: None)
    patch.setitem(sys.modules, "matplotlib", None)
    patch.setenv("PTT_DATA_DIR", str(files))
    argv = [
        *TINY,
        f"--config.data.path={files / 'three.csv'}",
        "--config.pretrain.also=five.csv.gz",
        f"--workdir={files / 'mixed'}",
    ]
    assert main.main(argv) == 0
    patch.undo()
    return files / "mixed"


def test_a_backbone_of_several_series_names_them(mixed):
    card = json.loads((mixed / "backbone.json").read_text())
    assert card["data"] == "three"
    assert [(seen["data"], seen["train_end"]) for seen in card["also"]] == [("five", 280)]
    plain = json.loads((mixed / "data.json").read_text())
    assert [*plain["also"]] == ["five"]


def test_a_series_that_came_also_is_no_test_data(mixed, files, tmp_path, capsys):
    argv = [*TINY, f"--config.data.path={files / 'five.csv.gz'}", f"--config.backbone={mixed}"]
    assert main.main([*argv, "--config.data.split=.5,.2,.3", f"--workdir={tmp_path / 'r'}"]) == 2
    words = "learned from the first 280 rows of the same data, past the end of the train split at 200"
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("also", "words"),
    [
        ("nowhere.csv", "config.pretrain.also: "),
        ("three.csv", "which is there already"),
        ("ETTh9", "ETTh9 does not exist"),
    ],
)
def test_further_series_that_cannot_be_had_are_one_sentence(files, tmp_path, capsys, also, words):
    name = str(files / also) if also == "three.csv" else also
    argv = [*TINY, f"--config.data.path={files / 'three.csv'}", f"--config.pretrain.also={name}"]
    assert main.main([*argv, f"--workdir={tmp_path / 'r'}"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--config=configs/csv.py", "--config.model.widht=32"], "nearest: model.width"),
        (["--config=configs/csv.py", "--config.data.path=none.csv"], "none.csv"),
        (["--config=configs/csv.py", "--config.data.name=ETTh9"], "ETTh1"),
        (["--config=configs/quickstart.py", "--config.backbone=nowhere"], "nowhere/backbone.json does not exist"),
        (["--config=configs/quickstart.py", "--config.data.rows=200"], "too few for one window"),
        (["--config=configs/quickstart.py", "--config.devices=99"], "config.devices = 99, but there are"),
        (["--config=configs/quickstart.py", "--config.devices=4", "--config.tune.batch=30"], "does not divide by 4"),
        (["--config=configs/quickstart.py", "--workdir=README.md"], "README.md: File exists; accepted:"),
        (["--config=configs/quickstart.py", "--workdir=tests"], "is not empty and holds no config.json"),
    ],
)  # fmt: skip
def test_what_is_mistyped_gets_one_sentence_and_exit_code_2(argv, sentence, capsys, tmp_path):
    where = [] if any(a.startswith("--workdir=") for a in argv) else [f"--workdir={tmp_path / 'run'}"]
    assert main.main([*argv, *where]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ptt_jax: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    assert not (tmp_path / "run").exists()


def test_help_is_no_error(capsys):
    assert main.main(["--help"]) == 0
    assert "--config.lookback=" in capsys.readouterr().out


@contextlib.contextmanager
def unread(monkeypatch):
    """Standard output is a pipe whose reader has gone; it is flushed once more, as at the exit."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        yield
        gone.flush()


def test_help_whose_reader_has_gone_is_no_error(capsys, monkeypatch):
    with unread(monkeypatch):
        assert main.main(["--help"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_that_nobody_reads_goes_on_with_the_same_command(files, tmp_path, monkeypatch, capsys):
    words = [*TINY, f"--config.data.path={files / 'three.csv'}", f"--workdir={tmp_path / 'run'}"]
    with unread(monkeypatch):
        assert main.main(words) == 1
    said = "ptt_jax: standard output cannot be written (Broken pipe); the same command goes on from what is saved\n"
    assert capsys.readouterr().err == said
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main, "set_up", lambda cfg: None)
    assert main.main(words) == 0


@pytest.mark.parametrize("closed", [">&-", ">/dev/full 2>&1"])
def test_without_any_output_help_is_no_traceback(closed, tmp_path):
    line = f"{sys.executable} -m ptt_jax.main --help {closed}"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0 if closed == ">&-" else 1, "", "")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "run", stop)
    assert main.main(["--config=configs/quickstart.py"]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_the_program_itself_exits_with_2_and_one_line():
    command = [sys.executable, "-m", "ptt_jax.main", "--config=configs/quickstart.py", "--config.model.widht=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"ptt_jax: config key model.widht does not exist; nearest: model.width\b.*\n", done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("words", "more"), [(["--help"], ""), (TINY, "; the same command goes on from what is saved")])
def test_a_full_standard_output_ends_with_one_sentence(words, more, files, tmp_path, monkeypatch, capsys):
    place = [f"--config.data.path={files / 'three.csv'}", f"--workdir={tmp_path / 'run'}"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main.main([*words, *place]) == 1
        full.flush()  # what it could not take is not tried again at the exit
    said = f"ptt_jax: standard output cannot be written (No space left on device){more}\n"
    assert capsys.readouterr().err == said


@pytest.mark.skipif(not os.environ.get("PTT_DATA_DIR"), reason="PTT_DATA_DIR is not set: no real ETTh1 to slice")
def test_the_main_job_on_a_slice_of_real_etth1_beats_the_seasonal_naive(tmp_path):
    frame = pd.read_csv(Path(os.environ["PTT_DATA_DIR"]) / "ETTh1.csv").iloc[:3000]
    frame.to_csv(tmp_path / "slice.csv", index=False)
    command = [
        sys.executable, "-m", "ptt_jax.main", "--config=configs/csv.py", f"--config.data.path={tmp_path / 'slice.csv'}",
        "--config.lookback=168", "--config.horizons=24,48", "--config.model.patch=12", "--config.model.width=32",
        "--config.model.mlp=64", "--config.model.encoder_layers=1", "--config.pretrain.steps=150",
        "--config.pretrain.batch=128", "--config.pretrain.learning_rate=3e-3", "--config.pretrain.validations=3",
        "--config.tune.steps=60", "--config.tune.learning_rate=3e-3", f"--workdir={tmp_path / 'run'}",
        f"--config.cache_dir={jax.config.jax_compilation_cache_dir}",
    ]  # fmt: skip
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # half of its time would be XLA's
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"warn|Traceback", done.stderr, re.IGNORECASE), done.stderr
    results = pd.read_csv(tmp_path / "run" / "results.csv").query("split == 'test'")
    mse = results.pivot(index="horizon", columns="model", values="mse")
    assert (mse.prompt < mse.seasonal_naive).all(), mse
    assert set(results[results.horizon == 48].windows) == {600 - 48 + 1}


@pytest.mark.parametrize("count", [1, 2])
def test_each_of_several_processes_has_a_folder_of_its_own_for_its_trace(count, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(main.processes, "join", lambda where: None)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: count - 1)
    monkeypatch.setattr(main, "run", lambda cfg, workdir, command, profile: folders.append(profile))
    argv = ["--config=configs/quickstart.py", f"--profile={tmp_path}", f"--distributed=127.0.0.1:1234,{count},0"]
    assert main.main(argv) == 0
    assert folders == [str(tmp_path) if count == 1 else f"{tmp_path}/1"]


def test_a_streamed_series_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main.foresight, "look", lambda *_: main.foresight.Plans())
    for module, stage in ((main.train, "pretrain"), (main.tune, "tune"), (main.score, "score")):
        monkeypatch.setattr(module, stage, lambda *_: None)
    for room in (main.report, main.page):
        monkeypatch.setattr(room, "write", lambda *_: "")
    run = ["--config=configs/quickstart.py", "--config.data.rows=2000", "--config.devices=1"]
    for budget, said in ((40_000, []), (39_999, ["40,000 bytes, more than config.data.device_bytes = 39,999"])):
        assert main.main([*run, f"--workdir={tmp_path / str(budget)}", f"--config.data.device_bytes={budget}"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "streamed" in line]
        assert lines == [
            f"data: the series takes {s}: it is streamed from the host, and no encoding is cached" for s in said
        ]


def test_processes_with_other_flags_are_told_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        main.processes, "gather", lambda said: [said, said.replace('"config.seed": 0', '"config.seed": 1')]
    )
    assert main.main(["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "ptt_jax: config.seed = 0 in process 0, but 1 in process 1; accepted: one command line for all"
    )
    assert not (tmp_path / "run").exists()


def test_two_seeds_have_rows_of_their_own_and_the_page_their_mean_and_spread(run, files, tmp_path):
    argv = [*TINY, f"--config.data.path={files / 'three.csv'}", f"--config.backbone={run}", "--config.tune.steps=2"]
    more = ["--config.tune.seeds=2", "--config.tune.learning_rate=0.1", "--config.tune.validations=1"]
    assert main.main([*argv, *more, f"--workdir={tmp_path / 'run'}"]) == 0
    results = pd.read_csv(tmp_path / "run" / "results.csv")
    assert results.groupby("model").seed.unique().map(list).to_dict() == {
        "seasonal_naive": [0], "linear": [0], "zero_shot": [0], "prompt": [0, 1]
    }  # fmt: skip
    test = results.query("model == 'prompt' and split == 'test'")
    assert test.groupby("horizon").mse.nunique().to_dict() == {12: 2, 20: 2}
    page = (tmp_path / "run" / "report.md").read_text()
    line, *_ = (line for line in page.splitlines() if line.startswith("| `prompt` |"))  # of test comes first
    for h, cell in zip((12, 20), line.replace("*", "").split("|")[2:], strict=False):
        mse = test[test.horizon == h].mse
        assert cell.split("/")[0].strip() == f"{mse.mean():.3f} ±{mse.std():.3f}"
    steps = pd.read_csv(tmp_path / "run" / "steps.csv").query("model == 'prompt' and split == 'test' and horizon == 12")
    np.testing.assert_allclose(steps.mse.mean(), test.query("horizon == 12 and seed == 0").mse.iloc[0], rtol=1e-5)


def test_no_test_value_is_seen_while_something_is_chosen(files, tmp_path):
    """A run that chooses, on a series and on one whose test rows are another's: nothing that it writes differs."""
    clean = table(400, 3, 0)
    poisoned = clean.copy()
    poisoned.iloc[-80:, 1:] = table(400, 3, 9).iloc[-80:, 1:] * 1e3  # the test split: a fifth of the rows
    outcomes = []
    for name, frame in (("clean", clean), ("poisoned", poisoned)):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "data.csv", index=False)
        argv = [*TINY, f"--config.data.path={tmp_path / name / 'data.csv'}", f"--workdir={tmp_path / name / 'run'}"]
        assert main.main([*argv, "--config.evaluate.test=False"]) == 0
        run = tmp_path / name / "run"
        cards = [json.loads(path.read_text()) for path in (run / "backbone.json", *(run / "prompts").glob("*.json"))]
        with np.load(run / "samples.npz") as samples:
            kept = {key: samples[key].tolist() for key in samples}
        results = (run / "results.csv").read_text()
        outcomes.append((results, (run / "steps.csv").read_text(), [c["content_hash"] for c in cards], kept))
    assert outcomes[0] == outcomes[1]
    assert {*pd.read_csv(tmp_path / "clean/run/results.csv").split} == {"validation"}
    page = (tmp_path / "clean/run/report.md").read_text()
    assert "## Validation" in page
    assert "The test split is not scored" in page
    assert "## Test" not in page


def test_every_file_that_a_report_is_made_from_is_known_by_its_mark(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    files = sorted(path for path in copy.iterdir() if path.suffix in (".csv", ".npz", ".jsonl"))
    assert len(files) == 6
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
        with pytest.raises(UserError, match=re.escape(str(path))):
            seal.check_files(copy / "results.json")
        path.write_bytes(whole)
    seal.check_files(copy / "results.json")


@pytest.mark.parametrize(("more", "words"), [({"flux": 3}, "flux does not exist"), ({"model": 3}, "model does not")])
def test_a_run_with_knobs_that_are_not_known_is_not_exported(run, tmp_path, capsys, more, words):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    seal.write_json(copy / "config.json", {**seal.read_json(copy / "config.json"), **more})
    assert main.main(["export", f"--config.backbone={copy}", f"--config.output={tmp_path / 'm.stablehlo'}"]) == 2
    assert f"{copy}/config.json: config key {words}" in capsys.readouterr().err
