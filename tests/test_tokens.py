"""What the study of tokens says of queries and attention is what the model computes with."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from test_experiments import script, without_matplotlib

from ptt_jax import config, rundir, train, tune
from ptt_jax.log import Log
from ptt_jax.windows import future


@pytest.fixture(scope="module")
def tokens():
    return script("tokens")


def test_attention_is_measured_in_patches(tokens):
    rows, heads, queries, keys = 4, 2, 3, 5
    even = np.full((rows, heads, queries, keys), 1 / keys)
    latest = np.zeros_like(even)
    latest[..., -1] = 1
    np.testing.assert_allclose(tokens.distance(latest), [[1, 2, 3]] * heads)
    np.testing.assert_allclose(tokens.distance(even), [[3, 4, 5]] * heads)
    np.testing.assert_allclose(tokens.breadth(even), keys)
    np.testing.assert_allclose(tokens.latest(even), 1 / keys)
    np.testing.assert_allclose(tokens.breadth(latest), 1)
    np.testing.assert_allclose(tokens.by_lag(even), np.ones((heads, queries + keys - 1)))


def test_labels_tell_what_depends_on_them_alone(tokens):
    label_RM = np.arange(12).reshape(4, 3) % 2
    state_RMD = np.stack([label_RM, 3.0 * label_RM], -1)
    assert tokens.told(state_RMD, label_RM) == pytest.approx(1)
    assert tokens.told(state_RMD, np.arange(12).reshape(4, 3) // 6) == pytest.approx(0)
    assert np.isnan(tokens.told(np.ones((4, 3, 2)), label_RM))


def test_the_phase_is_the_one_that_tells_most(tokens):
    start_R = pd.date_range("2024-01-01", periods=400, freq="h").to_numpy()
    stamp_RM = start_R[:, None] + np.arange(5) * np.timedelta64(24, "h")
    label = tokens.labels(stamp_RM, np.arange(400) % 3)
    assert (label["hour of day"] == label["hour of day"][:, :1]).all()
    for name in ("hour of day", "day of week"):
        angle_RM = 2 * np.pi * label[name] / label[name].max()
        states = [[None, np.stack([np.sin(angle_RM), np.cos(angle_RM)], -1)]]
        assert tokens.phase(states, label) == name
    assert "month" not in tokens.labels(stamp_RM[:24], np.zeros(24, int))


@pytest.mark.slow
def test_a_run_is_looked_at_once_and_its_table_stands_in_the_readme(
    tokens, tiny, problem, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    run = rundir.open_run(tmp_path / "main" / "ETTh1-s0", tiny, {"name": "generated"})
    tiny.tune.learning_rate = 3e-2
    log = Log(run / "metrics.jsonl")
    train.pretrain(tiny, run, problem, log)
    tune.tune(tiny, run, problem, log)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table tokens -->\nyesterday\n<!-- end tokens -->\nafter\n")
    monkeypatch.setattr(tokens, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys.modules["ledger"], "README", readme)
    monkeypatch.setattr(tokens, "ROWS", 64)
    assert tokens.study([f"--runs={tmp_path}", "--data=ETTh1"]) == 0
    pictures = {p.name for p in (tmp_path / "results" / "tokens").iterdir()}
    assert pictures == {f"generated-s0-{name}.png" for name in ("encodings", "attention", "lags", "norms")}
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "yesterday" not in text
    rows = pd.read_csv(tmp_path / "results" / "tokens.csv")
    distance = rows[rows["quantity"].str.startswith("attention distance") & (rows["head"] == 0)]
    assert len(distance) == 4  # two horizons, without and with
    assert distance["value"].between(1, 6).all()
    fingerprint = sys.modules["ledger"].fingerprint
    cfg = config.from_json((run / "config.json").read_text())
    assert set(rows["config"]) == {fingerprint(cfg, rows=64, phases=[*tokens.PHASES])}
    capsys.readouterr()
    assert tokens.study([f"--runs={tmp_path}", "--data=ETTh1"]) == 0
    assert "done before" in capsys.readouterr().out
    assert readme.read_text() == text


@pytest.fixture
def tuned(tiny, problem, tmp_path):
    """f(name, knobs of the config) -> a finished run."""

    def make(name, **knobs):
        tiny.tune.learning_rate = 3e-2
        tiny.update(knobs)
        run = rundir.open_run(tmp_path / name, tiny, {"name": "generated"})
        log = Log(run / "metrics.jsonl")
        train.pretrain(tiny, run, problem, log)
        tune.tune(tiny, run, problem, log)
        return run

    return make


@pytest.mark.slow
def test_errors_are_those_of_the_forecast_that_the_run_makes_with_all_its_views(tokens, tuned, problem, monkeypatch):
    run = tuned("run", views=2)
    monkeypatch.setattr(tokens, "ROWS", 10**6)  # all: what tuning looked at
    seen = tokens.look(run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    said = [line["validation_mse"]["20"] for line in lines if line["stage"] == "tune"]
    span = problem.span("validation", 48, (20,))
    _, observed_RH = future(problem.panel, span, np.arange(span.rows))
    count_M = np.array([observed_RH[:, :12].sum(), observed_RH[:, 12:].sum()])
    of_all = [mse_M @ count_M / count_M.sum() for mse_M in seen.mse_M]
    assert of_all == pytest.approx([said[0], min(said)], rel=1e-5)
    assert of_all[1] < of_all[0]
    assert seen.weights[0][0].shape[-1] == 4  # attention is of the whole lookback


@pytest.mark.slow
def test_of_several_networks_beside_a_map_the_first_alone_is_looked_at(tokens, tuned, monkeypatch):
    monkeypatch.setattr(tokens, "ROWS", 32)
    seen = tokens.look(tuned("run", model={"members": 2, "linear": True}, tune={"linear_shares": (0.0,)}))
    assert seen.weights[0][0].shape[-1] == 4
    assert [a.shape[-1] for a in seen.states[1]] == [16, 16]
    assert np.abs(seen.states[1][0] - seen.states[0][0]).max() > 0  # its part of the prompt moves its queries


def test_a_run_that_is_looked_at_again_replaces_its_rows(tokens, tmp_path):
    """Another config or backbone of a data set and seed."""
    file = tmp_path / "tokens.csv"
    for version, value in (("11111111", 0.25), ("22222222", 0.5)):
        rows = [("MSE of future patch", np.nan, np.nan, 1.0, side, value) for side in tokens.SIDES]
        frame = pd.DataFrame(rows, columns=["quantity", "stage", "head", "at", "side", "value"])
        frame = frame.assign(data="ETTh1", seed=0, config=version, backbone=version)
        ledger = sys.modules["ledger"].Ledger(file, tokens.KEYS, tokens.VERSIONS)
        ledger.add(frame)
    assert "| MSE of future patch 1 | 0.500 | 0.500 |" in tokens.markdown(ledger.rows)
    assert len(pd.read_csv(file)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [{"model": {"hiding": "value"}}, {"model": {"decoder_attention": "self"}}, {"tune": {"prompts": "layer"}}],
)
def test_queries_that_cannot_be_followed_are_one_sentence(tokens, tuned, tmp_path, monkeypatch, capsys, knobs):
    monkeypatch.setattr(tokens, "RESULTS", tmp_path / "results")
    ((section, of),) = knobs.items()
    ((key, value),) = of.items()
    run = tuned("run", **knobs)
    assert tokens.study([f"--run={run}"]) == 2
    err = capsys.readouterr().err
    assert f"has config.{section}.{key} = {value}" in err
    assert err.count("\n") == 1


def test_without_matplotlib_a_run_is_looked_at_all_the_same(tokens, tuned, tmp_path, monkeypatch, capsys):
    without_matplotlib(monkeypatch)
    monkeypatch.setattr(tokens, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys.modules["ledger"], "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("<!-- table tokens -->\n<!-- end tokens -->\n")
    assert tokens.study([f"--run={tuned('run')}"]) == 0
    assert capsys.readouterr().out.count("pictures need `pip install ptt_jax[plot]`\n") == 1
    assert "| norm of mask token |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("argv", [["--data=none"], ["--run=nowhere"]])
def test_a_run_that_is_not_there_is_one_sentence(tokens, argv, capsys):
    assert tokens.study(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("tokens: ")
    assert err.count("\n") == 1
