"""The loops: what stops goes on bit for bit, what is frozen stays, what is chosen is chosen on validation."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ptt_jax import (
    architecture,
    checkpoint,
    config,
    encodings,
    foresight,
    loop,
    memory,
    preemption,
    processes,
    prompts,
    rundir,
    score,
    seal,
    step,
    tally,
    tasks,
    train,
    tune,
    watch,
    windows,
)
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.history import History
from ptt_jax.log import Log
from ptt_jax.preemption import Preempted
from ptt_jax.store import Store, content_hash


class Stop(Exception):
    """Stands for the power that goes."""


@pytest.fixture(scope="module")
def finished(problem, tmp_path_factory):
    """A run of pretrain and tune without interruption."""
    return finish(make_config(), tmp_path_factory.mktemp("run") / "whole", problem)


def finish(cfg, run, problem):
    both(cfg, open_run(run, cfg), problem)
    return run


def interrupted(cfg, run, problem):
    """A run that is stopped by its first save and by its second one after that, and goes on."""
    open_run(run, cfg)
    for after in (1, 2):
        with stopped(after):
            both(cfg, run, problem)
    both(cfg, run, problem)
    return run


def longer(run, folder, problem):
    """Another task on a finished run's backbone, of a longer history and horizon: its config and what its card says."""
    cfg = make_config()
    cfg.lookback, cfg.horizons, cfg.backbone = 72, (30,), str(run)
    card = checkpoint.find_backbone(run)
    architecture.adopt(cfg, card)
    open_run(folder, cfg)
    checkpoint.refer(folder, card)
    task = tune.tune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    about = seal.read_json(folder / "prompts" / f"{task}.json")
    assert about["backbone"] == card["content_hash"]
    return cfg, about


def make_config():
    cfg = config.default()
    cfg.lookback, cfg.horizons, cfg.cache_dir = 48, (12, 20), ""
    cfg.data.rows, cfg.data.channels = 500, 3
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(steps=6, batch=16, validations=3, validation_rows=32, flip=0.5, blend=0.5, average=0.9)
    cfg.tune.update(steps=6, batch=16, validations=3, learning_rate=3e-2)
    cfg.evaluate.batch = 128
    return cfg


def open_run(path, cfg):
    return rundir.open_run(path, cfg, {"name": "generated"})


def both(cfg, run, problem):
    log = Log(run / "metrics.jsonl")
    train.pretrain(cfg, run, problem, log)
    return tune.tune(cfg, run, problem, log)


TASK = "generated-12-20"


def outcome(run):
    """All that a run learned, without what depends on the clock."""
    backbone, prompt = (seal.read_json(run / f) for f in ("backbone.json", f"prompts/{TASK}.json"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in (backbone, prompt, *lines):
        record.pop("seconds", None)
        record.pop("backbone_run", None)
    store = Store(run / "prompts" / TASK, ("prompt", "state"))
    meta = store.meta(store.latest())["history"]
    store.close()
    return backbone, prompt, lines, meta


@contextlib.contextmanager
def stopped(after):
    """A run in it is stopped by its save of that number."""
    save, left = Store.save, itertools.count(1)

    def cut(self, *args):
        save(self, *args)
        if next(left) == after:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "save", cut)
        try:
            yield
        except Stop:
            return
    pytest.fail("nothing stopped the run")


def test_a_run_that_was_stopped_ends_as_if_it_had_not(finished, problem, tmp_path):
    """Stopped after saves 1, 2, 4 and 5: twice in either stage, once after the first step of tuning."""
    cfg, run = make_config(), tmp_path / "run"
    open_run(run, cfg)
    for after in (1, 1, 2, 1):
        with stopped(after):
            both(cfg, run, problem)
        with (run / "metrics.jsonl").open("a") as f:
            f.write('{"stage": "tune", "st')  # and a torn line
    both(cfg, run, problem)
    assert outcome(run) == outcome(finished)


def test_a_run_goes_on_from_the_last_whole_step_to_the_same_bits(finished, problem, tmp_path, capsys):
    """Damaged in either stage: its weights, and what was noted with them."""
    cfg, run = make_config(), tmp_path / "run"
    open_run(run, cfg)
    with stopped(2):
        both(cfg, run, problem)
    (run / "backbone/4/params/_METADATA").write_text("{")
    with stopped(4):
        both(cfg, run, problem)
    (run / f"prompts/{TASK}/2/meta/metadata").write_text("{}")
    both(cfg, run, problem)
    assert outcome(run) == outcome(finished)
    said = capsys.readouterr().out
    assert re.search(f"pretrain: {run}/backbone/4/params .*; step 2 is whole, and step 4 is done again\n", said)
    assert "pretrain: going on from step 2\n" in said
    assert re.search(f"tune: {run}/prompts/{TASK}/2 .*; step 0 is whole, and step 2 is done again\n", said)
    assert [p.name for p in (run / "backbone").iterdir() if p.name.isdigit()] == ["6"]


@contextlib.contextmanager
def told(dispatch):
    """A run in it is told to end while its dispatch of that number runs."""
    start, left = loop.Loop.dispatch, itertools.count(1)

    def tell(self, *args, **kwargs):
        if next(left) == dispatch:
            os.kill(os.getpid(), signal.SIGTERM)
        return start(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "dispatch", tell)
        with pytest.raises(Preempted), preemption.heeded():
            yield


def test_a_run_that_was_told_to_end_saves_between_two_looks_and_goes_on_to_the_same_bits(
    finished, problem, tmp_path, monkeypatch, capsys
):
    """A step in a dispatch, two to a look. Told in the first of a look and in the last one, and while tuning. And what
    was learned and seen is what a run with more steps in a dispatch did."""
    monkeypatch.setattr(loop, "CHUNK", 1)
    cfg = make_config()
    whole, run = (open_run(tmp_path / name, cfg) for name in ("whole", "run"))
    both(cfg, whole, problem)
    for dispatch in (1, 1, 5):
        with told(dispatch):
            both(cfg, run, problem)
    both(cfg, run, problem)
    out = capsys.readouterr().out
    assert all(
        f"{step}\n" in out for step in ("pretrain: going on from step 1", "from step 2", "tune: going on from step 1")
    )
    assert outcome(run) == outcome(whole)
    few, many = ([outcome(of)[i] for i in (0, 1, 3)] for of in (whole, finished))
    assert few == many


def test_what_a_process_learns_again_is_not_traced_again(finished, problem, tmp_path):
    """And a run whose knobs are others is."""
    cfg, traced = make_config(), []

    def listen(event, *_, fun_name="", **__):
        traced.extend([fun_name] if event == "/jax/core/compile/jaxpr_trace_duration" else [])

    both(cfg, open_run(tmp_path / "once", cfg), problem)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        both(cfg, open_run(tmp_path / "again", cfg), problem)
        assert {*traced} <= {"<lambda>"}  # shapes of weights
        cfg.tune.clip = 0.5
        shutil.copytree(tmp_path / "again", tmp_path / "other", ignore=shutil.ignore_patterns("prompts"))
        tune.tune(cfg, tmp_path / "other", problem, Log(tmp_path / "other" / "metrics.jsonl"))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert traced.count("chunk") == 1
    once, again, other = (outcome(tmp_path / name)[1]["content_hash"] for name in ("once", "again", "other"))
    assert once == again == outcome(finished)[1]["content_hash"] != other


def test_a_second_call_changes_no_file(finished, problem):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    both(make_config(), finished, problem)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_tuning_leaves_every_bit_of_the_backbone(finished):
    card = checkpoint.find_backbone(finished)
    model = architecture.build(card["architecture"], "float32")
    assert content_hash(checkpoint.load_backbone(card, architecture.shapes(model))) == card["content_hash"]
    prompt = json.loads((finished / "prompts" / f"{TASK}.json").read_text())
    assert prompt["backbone"] == card["content_hash"]
    assert sum(row["tuned"] for row in prompt["groups"].values()) == 2 * 16 == prompt["tuned_parameters"]


def test_each_horizon_keeps_the_tokens_of_its_best_look_at_validation(finished):
    _, prompt, lines, _ = outcome(finished)
    looks = [line for line in lines if line["stage"] == "tune"]
    assert [line["step"] for line in looks] == [0, 2, 4, 6]
    for h in ("12", "20"):
        best = min(looks, key=lambda line: line["validation_mse"][h])
        assert prompt["chosen"][h] == [best["step"]]


def test_step_zero_is_the_zero_shot_forecast_and_wins_when_tuning_hurts(finished, problem, tmp_path):
    cfg, run = make_config(), tmp_path / "run"
    cfg.tune.learning_rate, cfg.tune.warmup, cfg.tune.clip = 1e6, 0.0, 1e6
    cfg.backbone = str(finished)
    open_run(run, cfg)
    checkpoint.refer(run, checkpoint.find_backbone(finished))
    tune.tune(cfg, run, problem, Log(run / "metrics.jsonl"))
    card = checkpoint.find_backbone(run)
    assert json.loads((run / "prompts" / f"{TASK}.json").read_text())["chosen"] == {"12": [0], "20": [0]}
    chosen = checkpoint.load_prompts(run, TASK, card["content_hash"])
    assert all((p["tokens_MD"] == 0).all() for (p,) in chosen.values())


def test_prompts_refuse_another_backbone(finished, problem, tmp_path):
    with pytest.raises(UserError, match=r"belongs to backbone .* not to aaaa.*accepted: the backbone it was tuned on"):
        checkpoint.load_prompts(finished, TASK, "a" * 64)


def test_another_seed_gives_other_weights(finished, problem, tmp_path):
    cfg = make_config()
    cfg.seed = 1
    run = open_run(tmp_path / "run", cfg)
    train.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    ours, theirs = (json.loads((r / "backbone.json").read_text())["content_hash"] for r in (run, finished))
    assert ours != theirs


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(problem, tmp_path):
    cfg = make_config()
    cfg.pretrain.update(steps=16, learning_rate=1e30, warmup=0.0, validations=4)
    run = open_run(tmp_path / "run", cfg)
    for _ in range(2):  # the second call goes on from the checkpoint of the first
        with pytest.raises(UserError, match=r"pretrain lost its footing: the loss of step \d+, .* is not finite"):
            train.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    assert not (run / "backbone.json").exists()


def test_the_rows_that_lost_the_loss_are_named_and_what_was_before_is_there(problem, tmp_path):
    """An infinity where a file cannot have one, in the first step of a channel: it is in one window."""
    cfg = make_config()
    cfg.pretrain.update(steps=40, validations=10, flip=0.0, blend=0.0)
    values_CT = problem.panel.values_CT.at[1, 0].set(np.inf)
    torn = problem._replace(panel=problem.panel.replace(values_CT=values_CT))
    run = open_run(tmp_path / "run", cfg)
    with pytest.raises(UserError) as e:
        train.pretrain(cfg, run, torn, Log(run / "metrics.jsonl"))
    span, (_, key) = problem.span("train", *train.window(cfg)), loop.keys(cfg.seed, "pretrain")
    batches = [np.asarray(step.order(key, jnp.int32(at), 16, span.rows)) for at in range(40)]
    bad = next(at for at, row_R in enumerate(batches) if 1 in row_R)
    name = problem.series.names_C[1]
    assert (
        f"the loss of step {bad}, in 1 of the 16 rows of its batch (series {name!r}; the first of them is rows 0 to 71 "
        in str(e.value)
    )
    assert bad >= 4  # a checkpoint is there
    store = Store(run / "backbone", ("params", "state"))
    last = store.latest()
    assert last == max(at for at in range(4, 41, 4) if at <= bad)
    like = architecture.shapes(architecture.build(architecture.of(cfg), "float32"))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(store.restore(last, "params", like)))


def test_pretraining_learns_and_its_validation_masks_are_fixed(problem, tmp_path):
    cfg = make_config()
    cfg.pretrain.update(steps=120, batch=64, learning_rate=3e-3, validations=4)
    run = open_run(tmp_path / "run", cfg)
    train.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation_loss"] < 0.8 * lines[0]["validation_loss"]
    card = checkpoint.find_backbone(run)
    model = architecture.build(card["architecture"], "float32")
    params = {"backbone": checkpoint.load_backbone(card, architecture.shapes(model))}
    hiding = {"ratio": cfg.pretrain.mask_ratio, "tail_share": cfg.pretrain.tail_share, "norm": "window"}
    span = problem.span("validation", 48, (24,))
    keys = loop.keys(0, "validation")
    look = watch.sampler(model, problem, span, 32, hiding, keys)
    looks = [look(params) for _ in range(2)]
    assert looks[0] == looks[1]
    chosen = next(line for line in lines if line["step"] == card["chosen"])
    np.testing.assert_allclose(looks[0]["reconstruction"], chosen["validation_loss"], rtol=1e-5)
    assert chosen["validation_loss"] == min(line["validation_loss"] for line in lines)


def scripted(monkeypatch, name, looks):
    """Validation says what the script says, and notes the parameters that it was shown."""
    shown, script = [], iter(looks)

    def make(*_):
        def look(params, *_):
            shown.append(jax.device_get(params))
            return next(script)

        return types.SimpleNamespace(read=lambda *_: look) if name == "Watcher" else look

    monkeypatch.setattr(watch, name, make)
    return shown


@pytest.mark.parametrize(("losses", "best"), [((3.0, 1.0, 2.0), 1), ((1.0, 1.0, 1.0), 0), ((3.0, 2.0, 1.0), 2)])
def test_the_backbone_is_the_best_on_validation_the_first_of_equals(problem, tmp_path, monkeypatch, losses, best):
    shown = scripted(monkeypatch, "sampler", [{"reconstruction": v, "forecast": 9.0} for v in losses])
    run = open_run(tmp_path / "run", cfg := make_config())
    train.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    card = checkpoint.find_backbone(run)
    assert card["chosen"] == (best + 1) * 2
    assert card["content_hash"] == content_hash(shown[best]["backbone"])
    params = checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
    assert content_hash(params) == card["content_hash"]


def test_each_horizon_keeps_its_own_best_tokens(finished, problem, tmp_path, monkeypatch):
    script = [{"12": np.full((1, 1), a), "20": np.full((1, 1), b)} for a, b in ((5, 5), (1, 4), (2, 3), (3, 2))]
    shown = scripted(monkeypatch, "Watcher", script)
    cfg, run = make_config(), tmp_path / "run"
    cfg.backbone = str(finished)
    open_run(run, cfg)
    checkpoint.refer(run, checkpoint.find_backbone(finished))
    tune.tune(cfg, run, problem, Log(run / "metrics.jsonl"))
    chosen = checkpoint.load_prompts(run, TASK, checkpoint.find_backbone(run)["content_hash"])
    np.testing.assert_array_equal(chosen[12][0]["tokens_MD"], shown[1]["prompt"]["tokens_MD"][0, 0, :1])
    np.testing.assert_array_equal(chosen[20][0]["tokens_MD"], shown[3]["prompt"]["tokens_MD"][0, 0])
    assert np.abs(shown[1]["prompt"]["tokens_MD"] - shown[3]["prompt"]["tokens_MD"]).max() > 1e-4


def test_a_validation_that_is_not_finite_is_never_saved(problem, tmp_path, monkeypatch):
    scripted(
        monkeypatch,
        "sampler",
        [{"reconstruction": 1.0, "forecast": 1.0}, {"reconstruction": np.nan, "forecast": 1.0}],
    )
    run = open_run(tmp_path / "run", cfg := make_config())
    with pytest.raises(UserError, match="validation after step 4 is not finite"):
        train.pretrain(cfg, run, problem, Log(run / "metrics.jsonl"))
    assert [p.name for p in (run / "backbone").iterdir() if p.name.isdigit()] == ["2"]


def test_validation_rows_are_real_rows_of_every_channel_and_padding_weighs_nothing(problem, monkeypatch):
    """The loss is replaced by the row's own number: the mean over rows is that of the numbers drawn."""
    span = problem.span("validation", 48, (24,))

    def spy(*_, **__):
        return lambda params, data, row_R, key: (row_R.astype(float), np.ones(1, np.float32) * (row_R >= 0))

    monkeypatch.setattr(tasks, "reconstruction", spy)
    monkeypatch.setattr(tasks, "forecasting", spy)
    for most in (7, span.rows, 10**6):
        found = watch.sampler(None, problem, span, most, {}, loop.keys(0, "validation"))(None)["reconstruction"]
        rows = np.asarray(windows.shuffle(loop.keys(0, "validation")[0], np.arange(min(most, span.rows)), span.rows))
        assert len(set(rows.tolist())) == min(most, span.rows)
        np.testing.assert_allclose(found, rows.mean(), rtol=1e-5)
    assert set(rows % 3) == {0, 1, 2}


def test_patience_counts_looks_without_a_better_one():
    assert not loop.stalled([3, 2, 1], 2)
    assert not loop.stalled([1, 2], 2)
    assert loop.stalled([1, 2, 3], 2)
    assert loop.stalled([1, 1, 1], 2)
    assert not loop.stalled([2, 3, 1], 2)


def test_stages_share_no_random_number():
    seen = {tuple(jax.random.key_data(k).tolist()) for stage in loop.STAGES for k in loop.keys(0, stage)}
    assert len(seen) == 6


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_a_backbone_of_another_architecture_is_refused_by_the_leaf(copy):
    card = checkpoint.find_backbone(copy)
    other = architecture.build({**card["architecture"], "width": 32}, "float32")
    with pytest.raises(UserError, match=r"decoder_0/.* is float32\[.*\] in the file and float32\[.*\] in the model"):
        checkpoint.load_backbone(card, architecture.shapes(other))
    deeper = architecture.build({**card["architecture"], "encoder_layers": 2}, "float32")
    with pytest.raises(UserError, match=r"encoder_1/.* is nothing in the file"):
        checkpoint.load_backbone(card, architecture.shapes(deeper))


def test_a_dtype_is_not_cast_silently(copy):
    card = checkpoint.find_backbone(copy)
    like = architecture.shapes(architecture.build(card["architecture"], "float32"))
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.float16), like)
    with pytest.raises(UserError, match=r"float32\[.*\] in the file and float16\[.*\] in the model"):
        checkpoint.load_backbone(card, half)


def test_weights_that_are_not_those_of_the_card_are_refused(copy, finished):
    card = {**checkpoint.find_backbone(copy), "content_hash": "0" * 64}
    like = architecture.shapes(architecture.build(card["architecture"], "float32"))
    with pytest.raises(UserError, match="content hash differs"):
        checkpoint.load_backbone(card, like)


def test_the_hash_sees_names_shapes_dtypes_and_every_byte():
    a = {"x": np.zeros((2, 3), np.float32), "y": {"z": np.ones(4, np.float32)}}
    others = [
        {"w": a["x"], "y": a["y"]},
        {"x": a["x"].T.copy(), "y": a["y"]},
        {"x": a["x"].astype(np.float16), "y": a["y"]},
        {"x": -a["x"], "y": a["y"]},
    ]
    assert len({content_hash(t) for t in (a, *others)}) == 5
    assert content_hash(a) == content_hash({"y": a["y"], "x": a["x"]})


def tune_on(backbone, problem, run, seed=0, **knobs):
    """Tunes on a finished run's backbone with some knobs of its own; returns validation by step and the card."""
    cfg = make_config()
    cfg.seed = seed
    cfg.backbone = str(backbone)
    cfg.tune.update(knobs)
    open_run(run, cfg)
    checkpoint.refer(run, checkpoint.find_backbone(backbone))
    log = Log(run / "metrics.jsonl")
    ready = foresight.look(cfg, run, problem, log).prompts if cfg.tune.quantiles else ()
    tune.tune(cfg, run, problem, log, ready=ready)
    store = Store(run / "prompts" / TASK, ("prompt", "state"))
    history = store.meta(store.latest())["history"]
    store.close()
    return history, json.loads((run / "prompts" / f"{TASK}.json").read_text())


EACH = 4 * 2 * 16 * 4 + 4 + 2 * 4  # bytes of a row: keys and values of 4 patches, which are kept, mean and scale


@pytest.mark.parametrize("budget", [0, 600 * EACH], ids=["none", "two thirds"])
def test_the_cache_is_only_a_matter_of_speed(finished, problem, tmp_path, budget, capsys):
    history, _ = tune_on(finished, problem, tmp_path / "run", cache_bytes=budget)
    share = "0%" if budget == 0 else "57%"  # 4 blocks of 125 rows, of 873
    assert f"{share} of the rows encoded once" in capsys.readouterr().out
    theirs = outcome(finished)[3]
    for (at, ours), (_, values) in zip(history, theirs, strict=True):
        for h in ("12", "20"):
            np.testing.assert_allclose(ours[h], values[h], rtol=1e-5, err_msg=f"step {at}")


def test_a_cache_of_half_the_bytes_gives_nearly_the_same_result(finished, problem, tmp_path, capsys):
    history, _ = tune_on(finished, problem, tmp_path / "run", cache_dtype="bfloat16", cache_bytes=600 * EACH)
    assert "100% of the rows encoded once" in capsys.readouterr().out
    last, theirs = (
        np.array([values[h] for h in ("12", "20")]) for _, values in (history[-1], outcome(finished)[3][-1])
    )
    assert 0 < np.abs(last / theirs - 1).max() < 5e-3


SWEEP = {"seeds": 2, "learning_rates": (3e-2, 1e-2), "weight_decays": (0.0, 1.0)}


@pytest.fixture(scope="module")
def sweep(finished, problem, tmp_path_factory):
    return tune_on(finished, problem, tmp_path_factory.mktemp("sweep") / "run", **SWEEP)


def test_a_sweep_in_one_run_gives_what_each_member_gives_alone(finished, sweep, problem, tmp_path):
    """Two seeds, two learning rates and two weight decays side by side, against runs one by one: of each setting one,
    of each seed two. The second seed of a run is the run of the next seed."""
    looks, card = sweep
    assert np.shape(looks[-1][1]["20"]) == (2, 4)
    alone = {(0, 0): outcome(finished)[3]}
    for s, g, rate, decay in ((1, 1, 3e-2, 1.0), (0, 2, 1e-2, 0.0), (1, 3, 1e-2, 1.0)):
        knobs = {"learning_rate": rate, "weight_decay": decay}
        alone[s, g], _ = tune_on(finished, problem, tmp_path / f"{g}", s, **knobs)
    for (s, g), history in alone.items():
        for (_, ours), (_, theirs) in zip(history, looks, strict=True):
            np.testing.assert_allclose(ours["20"][0][0], theirs["20"][s][g], rtol=1e-5)
    assert len({round(looks[-1][1]["20"][s][g], 7) for s in (0, 1) for g in range(4)}) == 8  # and all differ
    for h in ("12", "20"):
        best_SG = np.array([values[h] for _, values in looks]).min(0)
        g = best_SG.mean(0).argmin()
        assert card["setting"][h]["index"] == g
        for s, at in enumerate(card["chosen"][h]):
            np.testing.assert_allclose(dict(map(tuple, looks))[at][h][s][g], best_SG[s, g])
    assert card["seeds"] == [0, 1]


def test_a_setting_that_diverges_is_never_chosen_and_stops_no_one(finished, problem, tmp_path, monkeypatch):
    looks = [[2.0, 2.0], [1.0, 1.9], [np.nan, 1.5], [np.nan, 1.4]]
    scripted(monkeypatch, "Watcher", [{h: np.array([look]) for h in ("12", "20")} for look in looks])
    history, card = tune_on(finished, problem, tmp_path / "run", learning_rates=(3e-2, 1e-2))
    assert history[-1][1]["20"] == [[None, 1.4]]  # JSON has no nan
    assert (card["setting"]["20"]["index"], card["chosen"]["20"]) == (0, [2])  # it was good while it lasted
    scripted(
        monkeypatch,
        "Watcher",
        [{h: np.array([look]) for h in ("12", "20")} for look in looks[:1] + looks[2:] * 2],
    )
    _, card = tune_on(finished, problem, tmp_path / "other", learning_rates=(3e-2, 1e-2))
    assert (card["setting"]["20"]["index"], card["chosen"]["20"]) == (1, [4])


def test_seeds_that_diverge_in_different_settings_go_on(finished, problem, tmp_path, monkeypatch):
    looks = [
        [[2.0, 2.0]] * 2,
        [[np.nan, 1.0], [1.5, np.inf]],
        [[np.nan, 0.9], [1.4, np.nan]],
        [[np.nan, 0.8], [1.2, 3]],
    ]
    scripted(monkeypatch, "Watcher", [{h: np.array(look) for h in ("12", "20")} for look in looks])
    _, card = tune_on(finished, problem, tmp_path / "run", seeds=2, learning_rates=(3e-2, 1e-2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_mse"]["20"] for line in lines] == [2.0, 1.25, 1.15, 1.0]
    assert card["setting"]["20"]["index"] == 1  # means over seeds of the best looks: 1.6 and 1.4


def history(patience, *looks):
    return History(patience, [(i, {"20": np.array(look, float)}) for i, look in enumerate(looks)])


def test_a_member_is_what_it_would_be_alone():
    """Patience 2: the first seed stops by itself after look 3; what it does beside the other counts for nothing."""
    alone = history(2, [[2.0]], [[1.0]], [[1.1]], [[1.2]])
    assert alone.settled()
    assert not history(2, [[2.0]], [[1.0]], [[1.1]]).settled()
    both_seeds = history(2, [[2.0], [2.0]], [[1.0], [1.9]], [[1.1], [1.8]], [[1.2], [1.7]], [[0.5], [1.6]])
    assert not both_seeds.settled()
    assert both_seeds.steps("20", 0) == [1, 4]
    better = both_seeds.better({"20": np.array([[0.1], [1.5]])})["20"]
    assert better.tolist() == [[False], [True]]
    assert history(2, [[2.0]], [[1.0]]).better({"20": np.array([[1.0]])})["20"].tolist() == [[False]]  # not below


def test_a_setting_is_chosen_by_the_mean_over_seeds_of_each_seeds_best_look():
    """Setting 0 is best at looks that differ by seed; at any one look setting 1 has the lower mean."""
    looks = [[[9.0, 9.0], [9.0, 9.0]], [[1.0, 4.0], [8.0, 4.0]], [[8.0, 4.5], [1.0, 4.5]]]
    assert history(4, *looks).setting("20") == 0
    assert history(4, *looks).steps("20", 0) == [1, 2]


def test_what_is_loaded_is_what_the_chosen_setting_learned(finished, problem, tmp_path, monkeypatch):
    looks = [[[2.0, 2.0]], [[2.5, 1.0]], [[2.5, 0.9]], [[2.5, 1.1]]]
    shown = scripted(monkeypatch, "Watcher", [{h: np.array(look) for h in ("12", "20")} for look in looks])
    tune_on(finished, problem, tmp_path / "run", learning_rates=(1e-2, 3e-2))
    (prompt,) = checkpoint.load_prompts(tmp_path / "run", TASK, checkpoint.find_backbone(finished)["content_hash"])[20]
    np.testing.assert_array_equal(prompt["tokens_MD"], shown[2]["prompt"]["tokens_MD"][0, 1])
    assert np.abs(prompt["tokens_MD"]).max() > 1e-3


def test_what_another_version_left_is_refused_in_a_sentence(copy, problem):
    path = copy / "prompts" / f"{TASK}.json"
    card = seal.read_json(path)
    assert card.pop("format") == stores.FORMAT
    seal.write_json(path, card)
    with pytest.raises(
        UserError, match=r"is of another version of ptt_jax \(format 1, not 2 or 3\); accepted: prompts tuned"
    ):
        checkpoint.load_prompts(copy, TASK, card["backbone"])


def test_a_stage_that_another_version_began_is_refused_in_a_sentence(finished, copy, problem, monkeypatch):
    (copy / "prompts" / f"{TASK}.json").unlink()
    monkeypatch.setattr(stores, "READ", (4,))
    with pytest.raises(UserError, match=r"/6 is of another version of ptt_jax \(format 3, not 4\)"):
        tune.tune(make_config(), copy, problem, Log(copy / "metrics.jsonl"))


def test_training_and_validation_share_one_budget(finished, problem, tmp_path, monkeypatch):
    budgets = []
    call = encodings.Encoder.__call__

    def spy(self, backbone, budget):
        data = call(self, backbone, budget)
        budgets.append((budget, data.encoded_bytes))
        return data

    monkeypatch.setattr(encodings.Encoder, "__call__", spy)
    tune_on(finished, problem, tmp_path / "run", cache_bytes=900 * EACH)
    (first, used), (second, _) = budgets
    assert first == 900 * EACH
    assert used > 0
    assert second == first - used


def test_a_loss_that_is_not_finite_counts_only_when_a_seed_has_no_other(tmp_path):
    of_step = lambda step_J: 100 * step_J[:, None, None] + jnp.array([[1, 2, 3], [11, 12, 13]])[None]  # noqa: E731
    one = lambda step_J: of_step(step_J)[:, 0]  # noqa: E731

    def fetch(loss, first, bad_R, order=of_step):
        made = loop.Loop("quantiles", 4, 1, None, None, None, order, (), Log(tmp_path / "m"), knob="tune.quantile_rate")
        return made.fetch(step.Sums(*map(jnp.asarray, (loss, first, bad_R))))

    bad_SGR = np.zeros((2, 2, 3), bool)
    bad_SGR[1] = [[True, False, False], [False, True, False]]
    assert fetch([[np.nan, 1.0], [2.0, np.inf]], [[5, -1], [-1, 6]], bad_SGR) == 1.5
    # The second seed is lost when the second of its settings is, of which one row is.
    with pytest.raises(UserError, match=r"of step 7, in 1 of the 3 rows of its batch \(\[712\]\) is not finite"):
        fetch([[np.nan, 1.0], [np.inf, np.nan]], [[5, -1], [6, 7]], bad_SGR)
    with pytest.raises(UserError, match=r"quantiles lost its footing: .* smaller config.tune.quantile_rate, say"):
        fetch([[np.nan, np.nan], [2.0, 1.0]], [[5, 4], [-1, -1]], bad_SGR)
    with pytest.raises(UserError, match=r"of step 3, in all 3 rows of its batch \(\[301 302 303\]\)"):
        fetch(np.nan, 3, [True] * 3, one)


def test_a_sweep_that_was_stopped_goes_on(finished, sweep, problem, tmp_path):
    with stopped(2):
        tune_on(finished, problem, tmp_path / "cut", **SWEEP)
    again, card = tune_on(finished, problem, tmp_path / "cut", **SWEEP)
    assert again == sweep[0]
    assert card["content_hash"] == sweep[1]["content_hash"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_one_value_to_forecast_says_so(problem, split):
    """One value outside what the windows forecast is not enough; one inside is."""
    begin, end = problem.series.splits[split]
    first = max(begin, 48)  # no window forecasts the first lookback of a series
    observed_TC = problem.series.observed_TC.copy()
    observed_TC[first:end] = False
    train.check(make_config(), problem)
    with pytest.raises(UserError, match=rf"the {split} split has no .* rows {first} to {end}, .* horizon 12, 20 fore"):
        train.check(make_config(), on_observed(problem, observed_TC))
    observed_TC[end - 1, 0] = True
    train.check(make_config(), on_observed(problem, observed_TC))


def on_observed(problem, observed_TC):
    return problem._replace(series=dataclasses.replace(problem.series, observed_TC=observed_TC))


@pytest.mark.parametrize("stage", ["resume", "tune", "score"])
@pytest.mark.parametrize("who", ["this one", "the other"])
def test_what_one_process_cannot_read_ends_all_at_once(copy, problem, monkeypatch, stage, who):
    """As in one of two processes. orbax's own barriers would fail here, since there is no other to meet."""
    said, torn = [], "params cannot be read"
    store = Store(copy / "backbone", ("params", "state"))
    like = architecture.shapes(architecture.build(checkpoint.find_backbone(copy)["architecture"], "float32"))
    if stage == "tune":
        (copy / "prompts" / f"{TASK}.json").unlink()

    def gather(text):
        said.append(text)
        return [text, torn if who == "the other" and not text.startswith("[") else ""]

    def tear(self, step, item, like):
        raise UserError(torn)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather", gather)
    if who == "this one":
        monkeypatch.setattr(Store, "restore", tear)
    log, calls = Log(copy / "metrics.jsonl"), {
        "resume": lambda: checkpoint.resume(store, {"params": like}, log, "pretrain", problem.mesh),
        "tune": lambda: tune.tune(make_config(), copy, problem, log),
        "score": lambda: score.score(make_config(), copy, problem, TASK, log),
    }  # fmt: skip
    with pytest.raises(UserError, match=f"^{torn}$" if who == "this one" else f"^process 1 cannot go on: {torn}$"):
        calls[stage]()
    assert said[-1] == (torn if who == "this one" else "")
    store.close()


def test_prompts_of_channels_are_kept_and_read_like_others(finished, problem, tmp_path):
    """The best of each horizon, for each seed: what is saved is what the task's json says, and scores as it did."""
    _, card = tune_on(finished, problem, tmp_path / "run", prompts="channel", seeds=2, learning_rate=3e-2)
    assert card["shapes"] == {"12": [2, 1, 3, 1, 16], "20": [2, 1, 3, 2, 16]}
    assert card["tuned_parameters"] == 3 * 2 * 16
    found = checkpoint.load_prompts(tmp_path / "run", TASK, card["backbone"])
    assert [p["tokens_CMD"].shape for p in found[20]] == [(3, 2, 16)] * 2
    apart = [np.abs(p["tokens_CMD"] - p["tokens_CMD"][:1]).max() for of in found.values() for p in of]
    assert max(apart) > 1e-4  # channels went ways of their own, wherever a look was better than step 0
    cfg = make_config()
    cfg.tune.update(prompts="channel", seeds=2, learning_rate=3e-2)
    score.score(cfg, tmp_path / "run", problem, TASK, Log(tmp_path / "metrics.jsonl"))
    looks = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    best = min(look["validation_mse"]["20"] for look in looks if look["stage"] == "tune")
    results = pd.read_csv(tmp_path / "run/results.csv").query("split == 'validation' and model == 'prompt'")
    assert results.query("horizon == 20").mse.mean() <= best + 1e-5


def test_few_shot_learns_from_its_share_alone(finished, problem, tmp_path):
    """Training values past the share may be anything, as long as no validation window looks back at them."""
    cfg = make_config()
    cfg.tune.share = 0.3
    end, border = problem.learning(cfg).end, problem.series.splits["train"][1] - cfg.lookback
    assert end < border
    other = problem._replace(
        panel=problem.panel.replace(values_CT=problem.panel.values_CT.at[:, end:border].multiply(-7.0))
    )
    cards = [tune_on(finished, p, tmp_path / n, share=0.3)[1] for n, p in (("one", problem), ("other", other))]
    assert cards[0]["content_hash"] == cards[1]["content_hash"]
    whole = [tune_on(finished, p, tmp_path / n)[1] for n, p in (("three", problem), ("four", other))]
    assert whole[0]["content_hash"] != whole[1]["content_hash"]


def test_quantile_prompts_start_at_the_forecasts_own_which_stay_what_they_are(
    finished, problem, tmp_path, foretold, monkeypatch
):
    levels, (_, _, _, theirs) = (0.1, 0.5, 0.9), outcome(finished)
    with foretold() as known:
        history, card = tune_on(finished, problem, tmp_path / "run", quantiles=levels, quantile_rate=1e-2)
    assert known == ["encoding", "encoding", "evaluation", "tune", "evaluation", "quantiles"]
    point = json.loads((finished / "prompts" / f"{TASK}.json").read_text())
    assert (history, card["content_hash"]) == (theirs, point["content_hash"])
    task = prompts.quantiles(TASK)
    about = json.loads((tmp_path / "run" / "prompts" / f"{task}.json").read_text())
    assert (about["levels"], about["tuned_parameters"]) == ([*levels], 3 * point["tuned_parameters"])
    store = Store(tmp_path / "run" / "prompts" / task, ("prompt", "state"))
    looks = store.meta(store.latest())["history"]
    store.close()
    for h in ("12", "20"):
        pinball_AQ = np.array([values[h][0] for _, values in looks])
        assert pinball_AQ[0, 0] + pinball_AQ[0, 2] == pytest.approx(2 * pinball_AQ[0, 1], rel=1e-5)  # |e| both
        assert (pinball_AQ.min(0) < pinball_AQ[0])[[0, 2]].all()
        assert about["chosen"][h] == [[looks[a][0]] for a in pinball_AQ.argmin(0)]
    ours, of_point = (
        checkpoint.load_prompts(tmp_path / "run", name, card["backbone"])[20][0]["tokens_MD"] for name in (task, TASK)
    )
    assert ours.shape == (3, *of_point.shape)
    assert (ours[0] != ours[2]).any()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["tune"] * 4 + ["quantiles"] * len(looks)

    cfg = make_config()
    cfg.tune.quantiles = levels
    judged, judge = [], tally.judge
    monkeypatch.setattr(tally, "judge", lambda levels, *of: judged.append(of) or judge(levels, *of))
    score.score(cfg, tmp_path / "run", problem, TASK, Log(tmp_path / "metrics.jsonl"))
    for past, seen, _ in judged:
        for of_QHBK, split in ((past, "validation"), (seen, "test")):  # the former calibrates
            windows = problem.span(split, 48, (of_QHBK.shape[1],)).rows
            assert 0.8 * windows < of_QHBK[0, ..., 0].sum(1).max() <= windows
    rows = pd.read_csv(tmp_path / "run" / "results.csv").query("split == 'test'").set_index("model")
    raw = rows.pop("raw_coverage_80"), rows.pop("raw_crps")
    assert all(of["quantile"].notna().all() and of.drop("quantile").isna().all() for of in raw)
    assert rows.drop(columns="coverage_95").notna().all(axis=None)  # .025 is no level of the quantile prompts
    assert (rows.loc["quantile", "mae"].to_numpy() < 1.05 * rows.loc["prompt", "mae"].to_numpy()).all()

    cfg, hurt = make_config(), tmp_path / "hurt"
    cfg.backbone = str(finished)
    cfg.tune.update(quantiles=levels, quantile_rate=1e6, warmup=0.0, clip=1e6)
    open_run(hurt, cfg)
    checkpoint.refer(hurt, checkpoint.find_backbone(finished))
    shutil.copytree(tmp_path / "run" / "prompts" / TASK, hurt / "prompts" / TASK)
    shutil.copy(tmp_path / "run" / "prompts" / f"{TASK}.json", hurt / "prompts")
    tune.tune(cfg, hurt, problem, Log(hurt / "metrics.jsonl"))
    kept = checkpoint.load_prompts(hurt, task, card["backbone"])[20][0]["tokens_MD"]
    np.testing.assert_array_equal(kept[1], of_point)  # the longest horizon's, as it was


def test_quantiles_are_for_prompts_and_ascend():
    cfg = make_config()
    assert config.content_hash(cfg) == "607e3a23"  # knobs that came later, at their defaults, change no hash
    for levels in ((0.5, 0.1), (0.0, 0.5), (0.5, 0.5), (0.9,)):
        cfg.tune.quantiles = levels
        with pytest.raises(UserError, match="two numbers between 0 and 1 or more, ascending"):
            config.check(cfg)
    cfg.tune.update(quantiles=(0.1, 0.9), mode="full")
    with pytest.raises(UserError, match=r"config\.tune\.quantiles = .* is for prompts"):
        config.check(cfg)


def pretrain_on(_, problem, run):
    """Pre-trains, on nothing."""
    cfg = make_config()
    train.pretrain(cfg, open_run(run, cfg), problem, Log(run / "metrics.jsonl"))


def tight(monkeypatch, what, times=10**6):
    """The first `times` programs of that name need 6,000 bytes more than are free."""
    left, weigh = [times], memory.Program.weigh

    def strict(program, arguments):
        if program.what == what and left[0]:
            left[0] -= 1
            raise memory.TooLarge(f"{what} is too large", 6000)
        weigh(program, arguments)

    monkeypatch.setattr(memory.Program, "weigh", strict)


def test_a_step_that_does_not_fit_beside_the_encodings_learns_the_same_from_fewer(
    finished, problem, tmp_path, monkeypatch, capsys
):
    whole, _ = tune_on(finished, problem, tmp_path / "whole")
    tight(monkeypatch, "tune", 1)
    fewer, _ = tune_on(finished, problem, tmp_path / "fewer")
    assert re.search(
        r"memory: tune does not fit beside \d+ \w+ of encodings; [\d.]+ \w+ are kept", capsys.readouterr().out
    )
    for (at, ours), (step_too, theirs) in zip(whole, fewer, strict=True):
        assert at == step_too
        np.testing.assert_allclose(ours["20"], theirs["20"], rtol=1e-5)


@pytest.mark.parametrize("what", ["pretrain", "tune"])
def test_a_run_whose_first_step_does_not_fit_leaves_nothing_and_its_backbone_alone(
    what, finished, problem, tmp_path, monkeypatch
):
    tight(monkeypatch, what)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    run = tmp_path / "run"
    stage = tune_on if what == "tune" else pretrain_on
    with pytest.raises(UserError, match=f"{what} is too large"):
        stage(finished, problem, run)
    assert not run.exists()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
