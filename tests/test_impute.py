"""Imputation: what the answer may know, what stays as it is, what is counted, what is learned."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import (
    architecture,
    bridge,
    checkpoint,
    config,
    data,
    gaps,
    imputation,
    impute,
    loop,
    mesh,
    optim,
    problems,
    prompts,
    restoration,
    step,
    train,
)
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.impute import Way
from ptt_jax.log import Log
from ptt_jax.seal import read_json, write_json
from ptt_jax.windows import take

WAYS = [Way("mean", 0.0, 12), Way("line", 1e9, 12), Way("season", 6.0, 12)]
HIDING = gaps.law("blocks", (0.25, 0.5), (0.25, 1.0), 12)
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.fill)


@pytest.fixture
def prompted(params):
    return {"backbone": params, "prompt": {"tokens_MD": jax.random.normal(jax.random.key(5), (4, 16))}}


@pytest.fixture
def close(model):
    """f(params, way, x_RL, seen_RL) -> y_RL."""
    run = jax.jit(
        lambda params, way, x_RL, seen_RL: impute.impute(model, params, way, x_RL, seen_RL, jnp.zeros(len(x_RL), int)),
        static_argnums=1,
    )
    return lambda params, way, *window: np.asarray(run(params, way, *window))


@ways
def test_what_is_hidden_never_reaches_the_answer(close, prompted, history, way):
    x_RL, seen_RL = history
    other_RL = jnp.where(seen_RL, x_RL, 99.0)
    np.testing.assert_array_equal(close(prompted, way, x_RL, seen_RL), close(prompted, way, other_RL, seen_RL))


@ways
def test_what_is_seen_comes_back_as_it_is_and_is_what_the_answer_depends_on(close, prompted, history, way):
    x_RL, seen_RL = (np.asarray(a) for a in history)
    y_RL = close(prompted, way, x_RL, seen_RL)
    np.testing.assert_array_equal(y_RL[seen_RL], x_RL[seen_RL])
    moved_RL = close(prompted, way, x_RL + np.linspace(0, 1, 48, dtype=np.float32), seen_RL)
    assert (moved_RL[~seen_RL] != y_RL[~seen_RL]).all()


@ways
def test_a_prompt_of_zeros_is_the_mask_token_alone(close, prompted, history, way):
    zero = {**prompted, "prompt": prompts.make("position", 4, 16)}
    y_RL = close({"backbone": prompted["backbone"]}, way, *history)
    np.testing.assert_array_equal(close(zero, way, *history), y_RL)
    assert np.abs(close(prompted, way, *history) - y_RL).max() > 0.1


@ways
def test_an_answer_moves_with_a_shift_and_a_scale_of_the_series(close, prompted, history, way):
    x_RL, seen_RL = history
    y_RL = close(prompted, way, x_RL, seen_RL)
    np.testing.assert_allclose(close(prompted, way, 2.5 * x_RL - 7, seen_RL), 2.5 * y_RL - 7, atol=1e-4)


@ways
def test_where_nothing_is_seen_the_answer_is_finite(close, prompted, history, way):
    assert np.isfinite(close(prompted, way, history[0], jnp.zeros((5, 48), bool))).all()


@pytest.mark.parametrize("hiding", ["feature", "value"])
def test_whole_patches_are_reconstructed_as_in_pretraining(model, params, hiding):
    model = model.clone(hiding=hiding)
    x_RL = np.cumsum(np.random.default_rng(2).normal(size=(3, 48)), axis=1).astype(np.float32)
    seen_RL = np.repeat([[True, False, True, False]], 12, axis=1) & np.ones((3, 1), bool)
    visible_RV, hidden_RM = (jnp.tile(jnp.array([at]), (3, 1)) for at in ([0, 2], [1, 3]))
    window = jnp.asarray(x_RL), jnp.ones((3, 48), bool), visible_RV, hidden_RM
    y_RMP, target_RMP, _ = jax.jit(
        lambda *w: model.apply(*w, norm="visible", units="scaled", method=model.reconstruct)
    )({"params": params}, *window)
    given = {"backbone": params}, Way("mean", 0.0, 12), x_RL, seen_RL, jnp.zeros(3, int)
    y_RL = np.asarray(impute.impute(model, *given))
    truth_RMP = x_RL.reshape(3, 4, 12)[:, [1, 3]]
    want_RMP = truth_RMP + np.asarray(y_RMP - target_RMP)  # around the mean of what is seen, both
    np.testing.assert_allclose(y_RL.reshape(3, 4, 12)[:, [1, 3]], want_RMP, atol=1e-5)


def test_each_channel_may_have_a_prompt_of_its_own(model, prompted, close, history):
    tokens_CMD = jnp.stack([0 * prompted["prompt"]["tokens_MD"], prompted["prompt"]["tokens_MD"]])
    own = {**prompted, "prompt": {"tokens_CMD": tokens_CMD}}
    run = jax.jit(lambda params, *a: impute.impute(model, params, WAYS[2], *a))
    y_RL = run(own, *history, jnp.array([0, 1, 0, 1, 0]))
    np.testing.assert_allclose(y_RL[1], close(prompted, WAYS[2], *history)[1], atol=1e-5)
    alone_RL = close({"backbone": prompted["backbone"]}, WAYS[2], *history)
    np.testing.assert_allclose(y_RL[::2], alone_RL[::2], atol=1e-5)


def test_the_loss_is_the_squared_error_of_hidden_observed_values(problem, model, prompted, close):
    span, row_R, key = restoration.span(problem, "train", 48), jnp.arange(60), jax.random.key(0)
    loss = jax.jit(imputation.imputing(model, span, HIDING, WAYS[2]))
    total_R, count_R = loss(prompted, Cached(problem.panel), row_R, key)
    x_RL, observed_RL = take(problem.panel, span, row_R)
    hidden_RL = np.asarray(gaps.hide(HIDING, key, row_R, observed_RL))
    assert not observed_RL.all()
    y_RL = close(prompted, WAYS[2], x_RL, np.asarray(observed_RL) & ~hidden_RL)
    np.testing.assert_allclose(total_R, (((y_RL - x_RL) ** 2) * hidden_RL).sum(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(count_R, hidden_RL.sum(1))
    hole = problem.panel.replace(values_CT=jnp.where(problem.panel.observed_CT, problem.panel.values_CT, 99.0))
    np.testing.assert_array_equal(loss(prompted, Cached(hole), row_R, key)[0], total_R)


def test_errors_are_those_of_plain_numpy_over_windows_that_cover_the_split(problem, model, prompted):
    span = restoration.span(problem, "test", 48)
    row_A = restoration.every(span, 15)
    start_A = span.first + row_A // 3
    covered = {(r % 3, t) for r, s in zip(row_A, start_A, strict=True) for t in range(s, s + 48)}
    assert covered == {(c, t) for c in range(3) for t in range(*problem.series.splits["test"])}
    assert len(row_A) % 32  # the last batch is padded

    def line(inputs, x_RL, seen_RL, channel_R):
        return {"line": gaps.interpolate(x_RL, seen_RL), "two": jnp.stack([x_RL, x_RL + 2])}

    found = [restoration.evaluator(line, mesh.make(1), b, 15)(problem.panel, None, span, HIDING) for b in (32, 128)]
    assert found[0]["line"].hidden == found[1]["line"].hidden
    np.testing.assert_allclose(found[0]["line"][:2], found[1]["line"][:2], rtol=1e-6)
    np.testing.assert_allclose(found[0]["two"].mse, [0, 4], atol=1e-6)
    x_RL, observed_RL = take(problem.panel, span, jnp.asarray(row_A))
    key = jax.random.fold_in(loop.keys(0, "validation")[1], span.first)
    hidden_RL = np.asarray(gaps.hide(HIDING, key, jnp.asarray(row_A), observed_RL))
    e = np.asarray(gaps.interpolate(x_RL, observed_RL & ~hidden_RL) - x_RL)[hidden_RL]
    np.testing.assert_allclose(found[0]["line"][:2], [(e**2).mean(), np.abs(e).mean()], rtol=1e-5)
    assert found[0]["line"].hidden == hidden_RL.sum()


@pytest.mark.parametrize("devices", [0, 4], ids=["streamed", "four devices"])
def test_errors_are_the_same_streamed_and_on_several_devices(problem, devices):
    def line(inputs, x_RL, seen_RL, channel_R):
        return {"line": gaps.interpolate(x_RL, seen_RL)}

    if not devices:
        pytest.importorskip("grain")
    other = problems.prepare(problem.series, mesh.make(devices or 1), 1e9 if devices else 9e4)
    errors = [
        restoration.evaluator(line, of.mesh, 64, 13)(of.panel, None, restoration.span(of, "test", 48), HIDING)["line"]
        for of in (problem, other)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-6)


@pytest.fixture(scope="module")
def tuned(problem, tmp_path_factory):
    """A run with a random backbone, and the imputation prompt tuned on it."""
    cfg, run = config.default(), tmp_path_factory.mktemp("impute")
    cfg.lookback, cfg.horizons, cfg.cache_dir = 48, (12,), ""
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(epochs=0.0, validation_rows=32)
    cfg.tune.update(steps=20, batch=16, validations=2, learning_rate=3e-2)
    cfg.evaluate.batch, cfg.impute.kind, cfg.impute.ratios = 64, "blocks", (0.25, 0.5)
    log = Log(run / "metrics.jsonl", quiet=True)
    train.pretrain(cfg, run, problem, log)
    before = (run / "backbone.json").read_bytes(), checkpoint.find_backbone(run)
    return cfg, run, imputation.tuning(cfg, run, problem, log), before


def test_a_task_is_tuned_on_a_frozen_backbone_and_helps_on_validation(tuned):
    cfg, run, task, (card_bytes, card) = tuned
    assert task == "generated-blocks-25-50"
    assert (run / "backbone.json").read_bytes() == card_bytes
    model = architecture.build(card["architecture"], "float32")
    checkpoint.load_backbone(card, architecture.shapes(model))  # by content hash
    (prompt,) = checkpoint.load_prompts(run, task, card["content_hash"])[cfg.lookback]
    assert prompt["tokens_MD"].shape == (4, 16)
    assert np.abs(prompt["tokens_MD"]).max() > 0
    about = read_json(run / "prompts" / f"{task}.json")
    assert about["chosen"]["48"] != [0]
    assert about["groups"]["encoder"]["tuned"] == 0
    assert (about["impute"]["kind"], about["impute"]["fill"], about["impute"]["reach"]) == ("blocks", "season", 6.0)
    (again,), way = imputation.load(run, task, card["content_hash"])
    np.testing.assert_array_equal(again["prompt"]["tokens_MD"], prompt["tokens_MD"])
    assert way == Way("season", 6.0, 24)
    with pytest.raises(UserError, match="belongs to backbone"):
        imputation.load(run, task, "0" * 64)


OTHERWISE = [
    ("impute.fill", "mean", "impute.fill = 'season', not 'mean'"),
    ("impute.reach", 0.25, "impute.reach = 6.0, not 3.0"),
    ("impute.blocks", (0.25, 1.0), "impute.longest = 48, not 24"),
    ("tune.learning_rate", 1e-3, "tune.learning_rate = 0.03, not 0.001"),
    ("tune.prompts", "shared", "tune.prompts = 'position', not 'shared'"),
    ("seed", 1, "seed = 0, not 1"),
]


@pytest.mark.parametrize(("knob", "value", "said"), OTHERWISE, ids=[knob for knob, *_ in OTHERWISE])
def test_a_prompt_that_was_tuned_otherwise_is_not_taken_for_what_is_asked(tuned, problem, tmp_path, knob, value, said):
    cfg, run, task, _ = tuned
    other = cfg.copy_and_resolve_references()
    other.update_from_flattened_dict({knob: value})
    shutil.copy(run / "backbone.json", tmp_path)
    (tmp_path / "prompts").mkdir()
    for file in (f"{task}.asked", f"{task}.json"):  # what was begun alone, and what is finished
        shutil.copy(run / "prompts" / file, tmp_path / "prompts")
        with pytest.raises(UserError, match=rf"{file} is of .*{said}; accepted: the same, or another run directory"):
            imputation.tuning(other, tmp_path, problem, Log(tmp_path / "metrics.jsonl", quiet=True))


def test_what_decides_no_prompt_may_differ(tuned, problem):
    cfg, run, task, _ = tuned
    before = (run / "prompts" / f"{task}.json").read_bytes()
    other = cfg.copy_and_resolve_references()
    other.tune.watch_train, other.tune.cache_bytes, other.evaluate.batch = 8, 0, 32
    assert imputation.tuning(other, run, problem, Log(run / "metrics.jsonl", quiet=True)) == task
    assert (run / "prompts" / f"{task}.json").read_bytes() == before


def test_a_backbone_whose_queries_see_each_other_is_refused(model, prompted, history, problem, tmp_path):
    words = r"model.decoder_attention = self.*accepted: a backbone of model.decoder_attention = cross"
    with pytest.raises(UserError, match=words):
        impute.impute(model.clone(decoder_attention="self"), prompted, WAYS[0], *history, jnp.zeros(5, int))
    cfg = config.default()
    cfg.model.decoder_attention = "self"
    card = {"run": "", "step": 0, "content_hash": "a", "architecture": architecture.of(cfg)}
    (tmp_path / "backbone.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=words):
        imputation.tuning(cfg, tmp_path, problem, Log(tmp_path / "metrics.jsonl", quiet=True))
    assert not (tmp_path / "prompts").exists()


def test_a_prompt_that_forecasts_is_no_prompt_to_impute(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "generated-12.json").write_text('{"task": "generated-12", "backbone": "a"}')
    with pytest.raises(UserError, match="was tuned to forecast; accepted: one that was tuned to impute"):
        imputation.load(tmp_path, "generated-12", "a")


def test_a_step_leaves_every_bit_of_the_backbone(problem, model, params):
    span = restoration.span(problem, "train", 48)
    start = {"backbone": params, "prompt": prompts.make("position", 4, 16)}
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.1, steps=9, weight_decay=0.1, clip=1.0), start)
    loss = imputation.imputing(model, span, HIDING, WAYS[2])
    chunk = step.many(step.one(loss, tx, optim.PROMPT, problem.mesh, 16, span.rows))
    state = step.start(jax.tree.map(jnp.copy, start), tx)
    state, _ = chunk(state, jnp.int32(3), Cached(problem.panel), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], params)
    assert (np.abs(state.params["prompt"]["tokens_MD"]).max(1) > 1e-3).all()


def test_a_split_without_a_window_is_refused(problem):
    with pytest.raises(UserError, match=r"validation split has rows .* too few for one window of 60 steps"):
        restoration.span(problem, "validation", 60)
    begin, end = problem.series.splits["validation"]
    assert restoration.span(problem, "validation", end - begin).counts == (1,)
    with pytest.raises(UserError, match=r"too few for one window of [0-9]+ steps;"):
        restoration.span(problem, "validation", end - begin + 1)


def test_windows_that_are_measured_begin_at_every_step_of_a_patch(problem):
    span = restoration.span(problem, "train", 48)
    start_A = restoration.every(span, restoration.stride(12)) // 3
    assert {int(start) % 12 for start in start_A} == set(range(12))


@pytest.mark.skipif(not os.environ.get("PTT_DATA_DIR"), reason="PTT_DATA_DIR is not set: no real gaps")
def test_real_gaps_are_neither_hidden_nor_counted(model, prompted):
    path = Path(os.environ["PTT_DATA_DIR"]) / "more" / "gefcom2012_load.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    cfg = config.default()
    cfg.data.name, cfg.data.path = "csv", str(path)
    problem = problems.prepare(data.load(cfg.data), mesh.make(1))
    span = restoration.span(problem, "train", 48)
    observed_CT = np.asarray(problem.panel.observed_CT)
    gone = int(np.nonzero(~observed_CT[:, : span.end].all(0))[0][0])
    window_W = np.arange(max(gone - 60, 0), gone + 30)  # whole ones, ones with a gap, ones of which nothing is seen
    row_R = jnp.asarray((window_W[:, None] * span.channels + np.arange(span.channels)).ravel())
    _, observed_RL = take(problem.panel, span, row_R)
    seen_R = np.asarray(observed_RL).sum(1)
    some_R = seen_R > 0
    assert (~some_R).sum() > 20
    assert (some_R & (seen_R < 48)).sum() > 20
    for kind in gaps.KINDS:
        hidden_RL = jax.jit(gaps.hide)(HIDING.replace(kind=kind), jax.random.key(0), row_R, observed_RL)
        assert not (hidden_RL & ~observed_RL).any()
        assert abs(hidden_RL.sum() / seen_R.sum() - 0.375) < 0.02
    loss = jax.jit(imputation.imputing(model, span, HIDING, WAYS[2]))
    total_R, count_R = (np.asarray(a) for a in loss(prompted, Cached(problem.panel), row_R, jax.random.key(0)))
    assert np.isfinite(total_R).all()
    assert (count_R[some_R] > 0).mean() > 0.95
    assert (count_R[~some_R] == 0).all()
    assert (count_R <= 0.5 * seen_R + 0.5).all()


@pytest.mark.parametrize(("knob", "value"), [("ratios", (0.5, 1.0)), ("ratios", ()), ("blocks", (2.0, 0.25))])
def test_shares_and_lengths_that_hide_nothing_or_everything_are_refused(knob, value):
    cfg = config.default()
    cfg.impute[knob] = value
    with pytest.raises(UserError, match=f"config.impute.{knob} = .* is out of range"):
        config.check(cfg)


def test_answers_lean_on_lines_by_the_shares_of_their_width_and_channel(model, prompted, history):
    x_RL, seen_RL = history
    rung_RL, line_RL = np.asarray(bridge.rung(seen_RL)), np.asarray(gaps.interpolate(x_RL, seen_RL))
    run = jax.jit(lambda params, channel_R: impute.impute(model, params, WAYS[2], x_RL, seen_RL, channel_R))
    channel_R = jnp.array([0, 1, 0, 1, 1])
    alone_RL = np.asarray(run(prompted, channel_R))
    share_CA = np.zeros((2, bridge.RUNGS), np.float32)
    share_CA[1, 0], share_CA[1, 1] = 1, 0.5
    y_RL = np.asarray(run({**prompted, "share_CA": share_CA}, channel_R))
    np.testing.assert_allclose(y_RL[[0, 2]], alone_RL[[0, 2]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y_RL[seen_RL], x_RL[seen_RL])
    leaning = np.array(channel_R == 1)[:, None]
    for rung, expected_RL in ((0, line_RL), (1, (alone_RL + line_RL) / 2), (2, alone_RL)):
        there_RL = leaning & (rung_RL == rung) & ~np.asarray(seen_RL)
        assert there_RL.any() or rung == 2
        np.testing.assert_allclose(y_RL[there_RL], expected_RL[there_RL], rtol=1e-5, atol=1e-6)


def test_shares_are_those_that_are_best_on_validation(tuned, problem):
    cfg, run, task, (_, card) = tuned
    (asked,), way = imputation.load(run, task, card["content_hash"])
    model = architecture.build(card["architecture"], "float32")
    backbone = checkpoint.load_backbone(card, architecture.shapes(model))
    params, hiding = {"backbone": backbone, "prompt": asked["prompt"]}, imputation.law(cfg, problem.series)

    def close(params, *window):
        return {"": impute.impute(model, params, way, *window)}

    measure = restoration.evaluator(close, problem.mesh, 64, restoration.stride(12))  # compiled once

    def at(share_CA):
        given = {**params, "share_CA": share_CA}
        return measure(problem.panel, given, restoration.span(problem, "validation", 48), hiding)[""].mse

    best = at(asked["share_CA"])
    assert asked["share_CA"].shape == (3, bridge.RUNGS)
    assert 0.05 < asked["share_CA"].max() <= 1
    assert (np.diff(asked["share_CA"]) <= 0).all()
    for other_CA in (asked["share_CA"] * 0, asked["share_CA"] * 0.9, asked["share_CA"][::-1]):
        assert best < at(other_CA)

    def of(split):
        span = restoration.span(problem, split, 48)
        row_R = jnp.asarray(restoration.every(span, 13))
        x_RL, observed_RL = take(problem.panel.at(0), span, row_R)
        key = jax.random.fold_in(loop.keys(0, "validation")[1], span.first)
        hidden_RL = gaps.hide(hiding, key, row_R, observed_RL)
        seen_RL = observed_RL & ~hidden_RL
        y_RL = jax.jit(close)(params, x_RL, seen_RL, row_R % 3)[""]
        m_R3A = np.asarray(bridge.moments(x_RL, y_RL, seen_RL, hidden_RL))
        return bridge.shares(np.stack([m_R3A[np.asarray(row_R % 3) == c].sum(0) for c in range(3)]))

    np.testing.assert_allclose(asked["share_CA"], of("validation"), atol=1e-3)
    assert np.abs(asked["share_CA"] - of("train")).max() > 5e-3


def test_each_seed_has_shares_of_its_own_and_a_task_without_any_gets_them(tuned, problem, tmp_path, monkeypatch):
    cfg, run, task, (_, card) = tuned
    cfg, log = cfg.copy_and_resolve_references(), Log(tmp_path / "metrics.jsonl", quiet=True)
    cfg.tune.seeds = 2
    checkpoint.refer(tmp_path, card)
    imputation.tuning(cfg, tmp_path, problem, log)
    path = tmp_path / "prompts" / f"{task}.json"
    whole = read_json(path)
    one, other = whole["line_shares"]
    assert one != other
    assert one == read_json(run / "prompts" / f"{task}.json")["line_shares"][0]  # the same first seed
    before = path.read_bytes()
    write_json(path, {key: value for key, value in whole.items() if key not in ("line_shares", "seal")})
    found, _ = imputation.load(tmp_path, task, card["content_hash"])  # by an earlier version
    assert [sorted(params) for params in found] == [["prompt"], ["prompt"]]
    imputation.tuning(cfg, tmp_path, problem, log)
    assert path.read_bytes() == before
    monkeypatch.setattr(restoration, "totalling", lambda *_: pytest.fail("that was done"))
    imputation.tuning(cfg, tmp_path, problem, log)
