"""A stage that will not fit in memory is refused before the first step of the first one, with nothing left behind."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptt_jax import foresight, main, memory, rundir, train, watch
from ptt_jax.errors import UserError
from ptt_jax.forecaster import Forecaster
from ptt_jax.log import Log
from ptt_jax.memory import Room

MIB = 2**20
CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def needs(monkeypatch):
    """f({what: bytes}, limit): what each program needs to work in, none of which is compiled, and what is free."""

    def say(sizes, limit=MIB):
        monkeypatch.setattr(memory.Program, "need", lambda self, arguments: sizes.get(self.what, 0))
        monkeypatch.setattr(memory, "of_device", lambda on: Room(0, limit))

    return say


def begin(cfg, tmp_path):
    run = rundir.open_run(tmp_path / "run", cfg, {"name": "generated"})
    return run, Log(run / "metrics.jsonl")


@pytest.mark.parametrize(
    ("what", "mode", "knob"),
    [
        ("encoding", "prompt", "config.tune.cache_bytes or config.evaluate.batch"),
        ("evaluation", "prompt", "config.evaluate.batch or config.tune.cache_bytes"),
        ("tune", "prompt", "config.tune.batch, or config.compute_dtype=bfloat16"),
        ("quantiles", "prompt", "config.tune.batch, or config.compute_dtype=bfloat16"),
        ("encoding", "thaw", "config.tune.cache_bytes or config.evaluate.batch"),
        ("evaluation", "probe", "config.evaluate.batch"),
        ("tune", "full", "config.tune.batch"),
    ],
)
def test_what_will_not_fit_is_refused_and_leaves_nothing(tiny, problem, tmp_path, needs, what, mode, knob):
    tiny.tune.update(mode=mode, thaw="head" * (mode == "thaw"), quantiles=(0.1, 0.9) if mode == "prompt" else ())
    run, log = begin(tiny, tmp_path)
    needs({what: 4 * MIB}, 2 * MIB)
    with pytest.raises(memory.TooLarge, match=rf"{what} needs \d MiB more .* accepted: less by {knob}"):
        foresight.look(tiny, run, problem, log)
    assert not run.exists()


def test_scoring_is_foreseen_by_itself(tiny, problem, tmp_path, needs, monkeypatch):
    monkeypatch.setattr(watch.Watcher, "foresee", lambda *_, **__: None)  # what validation takes while prompts learn
    run, log = begin(tiny, tmp_path)
    needs({"evaluation": 4 * MIB}, 2 * MIB)
    assert foresight.look(tiny, run, problem, log, scored=False).scoring is None
    with pytest.raises(memory.TooLarge, match="evaluation needs"):
        foresight.look(tiny, run, problem, log)


def test_a_cache_that_will_not_fit_beside_a_step_is_no_reason(tiny, problem, tmp_path, needs, capsys):
    """It gives way when that step comes; what counts is the step without one."""
    run, log = begin(tiny, tmp_path)
    for limit, fits in ((700 * 1024, True), (550 * 1024, False)):  # the encodings take some 200 KiB
        needs({"tune": 600 * 1024}, limit)
        if fits:
            foresight.look(tiny, run, problem, log)
        else:
            with pytest.raises(memory.TooLarge, match=r"tune needs"):
                foresight.look(tiny, run, problem, log)
    said = capsys.readouterr().out
    assert "memory: to come: tune 6" in said
    assert "; evaluation " in said


@pytest.fixture
def unlearned(monkeypatch):
    """Nothing is learned."""

    def never(*_, **__):
        raise AssertionError("a step would come")

    monkeypatch.setattr(train, "pretrain", never)


def test_a_run_is_refused_before_its_first_step(needs, unlearned, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(main, "set_up", lambda cfg: None)
    needs({"tune": 64 * MIB}, 32 * MIB)
    argv = [f"--config={CONFIGS / 'quickstart.py'}", "--config.devices=1", f"--workdir={tmp_path / 'run'}"]
    assert main.main(argv) == 2
    assert "ptt_jax: tune needs" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_forecaster_is_refused_before_its_first_step(needs, unlearned):
    needs({"tune": 64 * MIB}, 32 * MIB)
    stamps = pd.date_range("2024-01-01", periods=600, freq="h")
    frame = pd.DataFrame({"ds": stamps, "load": np.sin(np.arange(600) * np.pi / 12)})
    with pytest.raises(UserError, match="tune needs"):
        Forecaster(12).fit(frame)
