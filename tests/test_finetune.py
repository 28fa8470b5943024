"""What prompts are compared with learns what its mode says, and no more."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ptt_jax import architecture, checkpoint, config, finetune, history, main, tune
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.loop import keys
from ptt_jax.model import group, init
from ptt_jax.seal import read_json
from ptt_jax.store import Store
from ptt_jax.windows import span

MODES = ("probe", "head", "full", "thaw")


def make_config(mode, backbone=""):
    cfg = config.default()
    cfg.lookback, cfg.horizons, cfg.cache_dir, cfg.backbone = 48, (12, 20), "", str(backbone)
    cfg.data.rows, cfg.data.channels = 500, 3
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(epochs=0.0, batch=16, validation_rows=32)
    cfg.tune.update(mode=mode, steps=4, batch=16, validations=2, learning_rate=1e-2)
    cfg.tune.thaw = "mask_token,head" if mode == "thaw" else ""  # which learn from cached encodings
    cfg.evaluate.update(batch=600, samples=2)
    return cfg


@pytest.fixture(scope="module")
def runs(tmp_path_factory, foretold):
    """A run of each mode, on one random backbone, each of programs that were foreseen."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in MODES:
        with foretold() as known, pytest.MonkeyPatch.context() as patch:
            if mode != "full":  # whose figures are drawn
                patch.setitem(sys.modules, "matplotlib", None)
            main.run(make_config(mode, folder / "probe" if mode != "probe" else ""), folder / mode)
        encoded = ["encoding"] if mode == "thaw" else []
        assert known[-3 - len(encoded) :] == ["evaluation", *encoded, "tune", "evaluation"], known
    return folder


def weights(run, mode):
    """The backbone before, and the parameters of each horizon after."""
    card = checkpoint.find_backbone(run)
    model = architecture.build(card["architecture"], "float32")
    backbone = checkpoint.load_backbone(card, architecture.shapes(model))
    task = f"{mode}-generated-12-20"
    return backbone, finetune.load(make_config(mode), run, task, card, backbone), task


def test_no_epochs_of_pretraining_leave_a_random_backbone(runs):
    card = checkpoint.find_backbone(runs / "full")
    backbone, _, _ = weights(runs / "full", "full")
    fresh = init(architecture.build(card["architecture"], "float32"), keys(0, "pretrain")[0])
    assert card["step"] == 0
    assert stores.content_hash(backbone) == stores.content_hash(fresh)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_what_it_says(runs, mode):
    before, after, _ = weights(runs / mode, mode)
    for params in after.values():
        changed = set()
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(params["backbone"]), strict=True
        ):
            changed |= {group("/".join(k.key for k in path))} if (np.asarray(a) != np.asarray(b)).any() else set()
        changed |= {"probe", "prompt"} & {*params}
        assert changed == set(finetune.groups_of(make_config(mode).tune).tuned)
        assert "probe" not in params or np.abs(params["probe"]["kernel"]).max() > 0


@pytest.mark.parametrize("mode", MODES)
def test_each_horizon_keeps_what_was_best_on_validation(runs, mode):
    results = pd.read_csv(runs / mode / "results.csv").query("split == 'validation' and model == @mode")
    looks = [json.loads(line) for line in (runs / mode / "metrics.jsonl").read_text().splitlines()]
    looks = [line["validation_mse"] for line in looks if line["stage"] == "tune"]
    assert len(looks) == 3
    for horizon, mse in zip(results["horizon"], results["mse"], strict=True):
        assert mse == pytest.approx(min(look[str(horizon)] for look in looks), rel=1e-4)


def test_the_report_says_what_learned(runs):
    text = (runs / "head" / "report.md").read_text()
    about = json.loads((runs / "head/finetuned/head-generated-12-20.json").read_text())
    backbone = sum(v["tuned"] for k, v in about["groups"].items() if k != "probe")
    assert about["tuned_parameters"] == 4 * 16 * 20 + 20 + backbone
    assert "## Fine-tuning" in text
    assert f"{about['tuned_parameters']}" in text


def test_a_second_call_does_nothing(runs, capsys):
    card = (runs / "full/finetuned/full-generated-12-20.json").read_bytes()
    main.run(make_config("full", runs / "probe"), runs / "full")
    assert "tune: done before" in capsys.readouterr().out
    assert (runs / "full/finetuned/full-generated-12-20.json").read_bytes() == card


def test_a_stopped_run_ends_as_if_it_had_not(runs, tmp_path, monkeypatch, problem):
    save, left = Store.save, itertools.count(1)

    def stop(self, *args):
        save(self, *args)
        if next(left) == 2:
            raise KeyboardInterrupt

    cfg, log = make_config("head", runs / "probe"), Log(tmp_path / "metrics.jsonl")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run in (whole, halves):
        run.mkdir()
        checkpoint.refer(run, checkpoint.find_backbone(runs / "probe"))
    finetune.finetune(cfg, whole, problem, log)
    monkeypatch.setattr(Store, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(cfg, halves, problem, log)
    finetune.finetune(cfg, halves, problem, log)
    ours, theirs = (read_json(r / "finetuned/head-generated-12-20.json") for r in (halves, whole))
    assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


def test_weights_of_another_backbone_are_refused(runs):
    card = {**checkpoint.find_backbone(runs / "full"), "content_hash": "f" * 64}
    backbone, _, task = weights(runs / "full", "full")
    with pytest.raises(UserError, match="belongs to backbone"):
        finetune.load(make_config("full"), runs / "full", task, card, backbone)


@pytest.mark.parametrize(("mode", "drops"), [("probe", False), ("head", True), ("full", True)])
def test_what_learns_drops_and_what_is_frozen_does_not(mode, drops, problem, model, params):
    train_span = span((0, 350), 48, (20,), 3, "train")
    data = finetune.Cached(problem.panel)
    tree = {
        "backbone": params,
        "probe": {"kernel": jax.random.normal(jax.random.key(9), (64, 20)), "bias": jnp.zeros(20)},
    }
    a, b = (
        finetune.loss(mode, model.copy(dropout=0.5), train_span, "mse")(tree, data, jnp.arange(4), jax.random.key(i))[0]
        for i in range(2)
    )
    assert bool((a != b).any()) == drops


def looks(run, key):
    """What tuning said of each look."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["stage"] == "tune"]


def test_watched_training_rows_choose_nothing_and_are_read_alike_by_all_who_tune(runs, tmp_path, problem):
    said = {}
    for mode in ("full", "prompt"):
        cfg, run = make_config(mode, runs / "probe"), tmp_path / mode
        cfg.tune.watch_train = 50
        run.mkdir()
        checkpoint.refer(run, checkpoint.find_backbone(runs / "probe"))
        adapt = tune.tune if mode == "prompt" else finetune.finetune
        adapt(cfg, run, problem, Log(run / "metrics.jsonl"))
        said[mode] = looks(run, "train_mse")
        assert len(said[mode]) == 3
    # Both begin with the mask token's forecast, and looking drops nothing.
    assert said["full"][0] == pytest.approx(said["prompt"][0], rel=1e-5)
    assert said["full"][2]["20"] < said["full"][0]["20"]
    for ours, plain in zip(*(looks(r / "full", "validation_mse") for r in (tmp_path, runs)), strict=True):
        assert ours == pytest.approx(plain, rel=1e-4)


def test_the_training_error_of_a_sweep_is_that_of_the_setting_which_validation_chose():
    validation, train = {"12": np.array([[2.0, 1.0], [1.0, np.nan]])}, {"12": np.array([[3.0, 4.0], [5.0, 6.0]])}
    assert history.logged(train, validation) == {"12": 4.5}
    assert history.logged({"12": np.full((2, 2), np.nan)}, validation) == {}


@pytest.mark.parametrize(("key", "value"), [("seeds", 2), ("learning_rates", (1e-3,)), ("weight_decays", (0.1,))])
def test_sweeps_are_for_prompts(key, value):
    cfg = make_config("head")
    cfg.tune[key] = value
    with pytest.raises(UserError, match=f"config.tune.{key} = .* is for prompts"):
        config.check(cfg)
