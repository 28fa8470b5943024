"""The linear map of a backbone: what it says, the share that a prompt gives it, and that it stays as it was made."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_forecaster import TINY, make
from test_train import TASK, finish, interrupted, longer, make_config, open_run, outcome

from ptt_jax import (
    Bank,
    Forecaster,
    architecture,
    baselines,
    checkpoint,
    data,
    encodings,
    finetune,
    imputation,
    layers,
    linear,
    mesh,
    problems,
    prompts,
    tasks,
    train,
    tune,
    windows,
)
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.model import group
from ptt_jax.store import Store

SHARES = np.array([0.25, 0.75], np.float32)


@pytest.fixture(scope="module")
def beside(model, params):
    """The model with a map of its four patches to the next two; random."""
    rng = np.random.default_rng(0)
    return model.clone(linear=4), {**params, "linear_map": jnp.asarray(rng.normal(size=(48, 24)) / 7, jnp.float32)}


def shared(*lead: int) -> np.ndarray:
    """Tokens for two patches and the shares that they give the map."""
    tokens = np.random.default_rng(1).normal(size=(*lead, 2, 17)).astype(np.float32)
    tokens[..., -1] = SHARES
    return tokens


@pytest.fixture(scope="module")
def say():
    """f(model, params, history, horizon, prompt) -> y_RH, under jit."""

    def forecast(model, params, history, horizon=24, prompt=None):
        ask = jax.jit(lambda p, *a: model.apply({"params": p}, *a, horizon, method=model.forecast))
        return np.asarray(ask(params, *history, prompt))

    return forecast


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("lead", [(), (5,), (1, 1)], ids=["position", "channel", "layer"])
def test_a_forecast_is_the_shares_of_what_map_and_network_say(model, params, beside, history, say, views, lead):
    whole, weights = beside
    prompt, share_H = shared(*lead), np.repeat(SHARES, 12)
    network_RH = say(model.clone(views=views), params, history, prompt=prompt[..., :-1])
    map_RH = np.asarray(layers.linear(weights["linear_map"], *history))
    expected_RH = share_H * map_RH + (1 - share_H) * network_RH
    assert np.abs(map_RH - network_RH).mean() > 0.3
    found_RH = say(whole.clone(views=views), weights, history, prompt=prompt)
    np.testing.assert_allclose(found_RH, expected_RH, rtol=1e-4, atol=1e-4)


def test_without_a_share_and_without_a_prompt_the_network_speaks_alone(model, params, beside, history, say):
    whole, weights = beside
    silent = shared()
    silent[:, -1] = 0
    found = say(whole, weights, history, prompt=silent)
    np.testing.assert_allclose(found, say(model, params, history, prompt=silent[:, :-1]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(say(whole, weights, history), say(model, params, history), rtol=1e-5, atol=1e-5)


def test_a_shorter_horizon_is_the_first_steps_and_past_the_map_the_network_speaks_alone(
    model, params, beside, history, say
):
    prompt = np.concatenate([shared(), shared()])
    far_RH = say(*beside, history, 40, prompt)
    np.testing.assert_allclose(say(*beside, history, 7, prompt[:1]), far_RH[:, :7], rtol=1e-4, atol=1e-5)
    network_RH = say(model, params, history, 40, prompt[:, :-1])
    np.testing.assert_allclose(far_RH[:, 24:], network_RH[:, 24:], rtol=1e-4, atol=1e-5)


def test_a_map_reads_the_last_steps_and_of_less_what_there_is(beside, history, say):
    (whole, weights), (x_RT, observed_RT) = beside, history
    alone = shared()
    alone[:, -1] = 1
    more = jnp.pad(x_RT, ((0, 0), (12, 0)), constant_values=5.0), jnp.pad(observed_RT, ((0, 0), (12, 0)))
    longer = more[0], more[1].at[:, :12].set(True)
    expected = say(whole, weights, history, prompt=alone)
    np.testing.assert_allclose(expected, layers.linear(weights["linear_map"], *history), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(say(whole, weights, longer, prompt=alone), expected, rtol=1e-4, atol=1e-4)
    late = (jnp.arange(48) >= 12)[None]
    hidden = say(whole, weights, (x_RT, observed_RT & late), prompt=alone)
    shorter = say(whole, weights, (x_RT[:, 12:], observed_RT[:, 12:]), prompt=alone)
    np.testing.assert_allclose(shorter, hidden, rtol=1e-4, atol=1e-4)


def test_a_share_does_not_learn(problem, beside):
    (whole, weights), span = beside, problem.span("train", 48, (20,))
    loss = tasks.forecasting(whole, span, penalty="mse")

    def of(prompt_ME):
        tree = {"backbone": weights, "prompt": {"tokens_MD": prompt_ME}}
        return loss(tree, encodings.Cached(problem.panel), jnp.arange(40), jax.random.key(0))[0].sum()

    slope_ME = np.asarray(jax.jit(jax.grad(of))(jnp.asarray(shared())))
    assert not slope_ME[:, -1].any()
    assert slope_ME[:, :-1].all()


def test_a_cache_holds_what_the_map_says(problem, beside):
    (whole, weights), span = beside, problem.span("train", 48, (20,))
    kept = encodings.encode_all(whole, weights, problem, span, 64, 2**30, jnp.float32)
    assert kept.complete
    losses = [
        jax.jit(tasks.forecasting(whole, span, penalty="mse"))(
            {"backbone": weights, "prompt": {"tokens_MD": jnp.asarray(shared())}},
            source,
            jnp.arange(40),
            jax.random.key(0),
        )[0]
        for source in (kept, encodings.Cached(problem.panel))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_the_map_is_the_ridge_regression_of_the_longest_window(problem, model):
    whole = model.clone(linear=4)
    train_, validation = (problem.span(split, 48, (24,)) for split in ("train", "validation"))
    expected = baselines.fit_linear(problem, train_, validation)
    np.testing.assert_array_equal(linear.fit(whole, problem, 48), expected)


def test_further_series_teach_the_map(problem, tiny):
    span = problem.span("train", 48, (24,))
    validation = problem.span("validation", 48, (24,))
    alone = baselines.fit_linear(problem, span, validation)
    twice = baselines.fit_linear(problem, span, validation, [(problem, span)])
    np.testing.assert_allclose(twice, alone, atol=1e-4)
    tiny.data.seed = 5
    other = problems.prepare(data.load(tiny.data), mesh.make(1))
    with_other = baselines.fit_linear(problem, span, validation, [(other, other.span("train", 48, (24,)))])
    assert np.abs(with_other - alone).max() > 1e-3


@pytest.fixture(scope="module")
def run(problem, tmp_path_factory):
    """A finished run with a map."""
    return finish(with_map(), tmp_path_factory.mktemp("linear") / "run", problem)


def with_map():
    cfg = make_config()
    cfg.model.linear, cfg.pretrain.linear_towards = True, "last"
    return cfg


def weights(folder):
    card = checkpoint.find_backbone(folder)
    model = architecture.build(card["architecture"], "float32")
    return model, checkpoint.load_backbone(card, architecture.shapes(model))


def test_a_run_keeps_map_and_network_in_one_backbone_and_each_horizon_its_share(run, problem, tmp_path):
    cfg = make_config()
    bare = open_run(tmp_path / "bare", cfg)
    train.pretrain(cfg, bare, problem, Log(bare / "metrics.jsonl"))
    (model, whole), (_, network) = weights(run), weights(bare)
    assert (model.linear, model.patches) == (4, 6)
    np.testing.assert_array_equal(whole["linear_map"], linear.fit(model, problem, 48, towards="last"))
    assert np.abs(whole["linear_map"] - linear.fit(model, problem, 48)).max() > 1e-3
    assert {group(name) for name in stores.names(whole)} - {group(name) for name in stores.names(network)} == {"linear"}
    for name, a in stores.names(network).items():  # what learns is not touched by what stands beside it
        np.testing.assert_array_equal(a, stores.names(whole)[name])
    card = json.loads((run / "prompts" / f"{TASK}.json").read_text())
    assert {k for k, of in card["groups"].items() if of["tuned"]} == {"prompt"}
    assert card["groups"]["linear"]["parameters"] == 48 * 24
    assert {setting["linear_share"] for setting in card["setting"].values()} - {0.0}  # a network of six steps is poor
    for h, (prompt,) in checkpoint.load_prompts(run, TASK, checkpoint.find_backbone(run)["content_hash"]).items():
        assert prompt["tokens_MD"].shape == (h // 12 + (h % 12 > 0), 17)
        assert {*prompt["tokens_MD"][:, -1].tolist()} == {card["setting"][str(h)]["linear_share"]}


def test_the_member_without_a_share_learns_what_it_learns_alone(run, problem, tmp_path):
    cfg = with_map()
    cfg.tune.linear_shares, cfg.backbone = (0.0,), str(run)
    one = open_run(tmp_path / "one", cfg)
    checkpoint.refer(one, card := checkpoint.find_backbone(run))
    tune.tune(cfg, one, problem, Log(one / "metrics.jsonl"))
    bare = finish(make_config(), tmp_path / "bare", problem)
    found, expected = (
        checkpoint.load_prompts(of, TASK, checkpoint.find_backbone(of)["content_hash"]) for of in (one, bare)
    )
    for h in (12, 20):
        alone = found[h][0]["tokens_MD"]
        assert not alone[:, -1].any()
        np.testing.assert_allclose(alone[:, :-1], expected[h][0]["tokens_MD"], rtol=1e-4, atol=1e-6)
    assert card["content_hash"] != checkpoint.find_backbone(bare)["content_hash"]


def test_three_values_tell_where_a_parabola_is_least():
    rng = np.random.default_rng(0)
    first_N, second_N = rng.normal(size=(2, 1000))
    second_N = 0.6 * second_N + 0.3 * first_N

    def error(share):
        return float(np.square(share * second_N + (1 - share) * first_N).mean())

    share = linear.best_share(*map(np.array, (error(0), error(0.5), error(1))))
    assert 0.5 < share < 1
    assert error(share) < min(error(share - 0.01), error(share + 0.01))
    values = [(1, 2, 4), (4, 2, 1), (1, 1, 1), (2, 3, 1), (1, 3, 2), (np.inf, 2, 1), (1, 2, np.inf), (1, np.nan, 0)]
    # Least outside, on either side; the same forecast twice; rounded until it bends down; one diverged.
    np.testing.assert_array_equal(linear.best_share(*np.array(values, float).T), [0, 1, 0, 1, 0, 0, 0, 0])


def test_each_member_and_horizon_takes_a_share_of_its_own():
    """Of forecasts that are drawn: a member's is the first number of its last token that a horizon reads."""
    rng = np.random.default_rng(0)
    truth_N = rng.normal(size=1000)
    map_N, network_SGN = truth_N + rng.normal(size=1000), truth_N + rng.normal(size=(2, 3, 1000)) * [[[1]], [[2]]]
    asked = []

    def look(prompt):
        tokens_SGME = prompt["tokens_MD"]
        assert tokens_SGME.shape == (2, 3, 4, 5)
        assert (tokens_SGME[..., -1] == tokens_SGME[0, 0, 0, -1]).all()
        asked.append(float(tokens_SGME[0, 0, 0, -1]))

        def error(tokens_SGE):
            y_SGN = tokens_SGE[..., :1] * network_SGN
            mix_SGN = y_SGN + tokens_SGE[..., -1:] * (map_N - y_SGN)
            return np.square(mix_SGN - truth_N).mean(-1)

        return {"2": error(tokens_SGME[..., 1, :]), "4": error(tokens_SGME[..., 3, :])}

    best = {h: {"tokens_MD": rng.uniform(0.5, 1.5, (2, 3, int(h), 5)) * [1, 1, 1, 1, 0]} for h in ("2", "4")}
    out = linear.with_best_shares(look, best, 4, {})
    assert asked == [1, 0, 0.5, 0, 0.5]  # the map once, since it is the same for all
    whole = {h: np.pad(p["tokens_MD"], ((0, 0), (0, 0), (0, 4 - int(h)), (0, 0))) for h, p in best.items()}
    known = {h: look({"tokens_MD": tokens})[h] for h, tokens in whole.items()}
    asked.clear()
    jax.tree.map(np.testing.assert_array_equal, linear.with_best_shares(look, best, 4, known), out)
    assert asked == [1, 0.5, 0.5]
    shares = []
    for h, found in out.items():
        tokens_SGME = found["tokens_MD"]
        np.testing.assert_array_equal(tokens_SGME[..., :-1], best[h]["tokens_MD"][..., :-1])
        assert not best[h]["tokens_MD"][..., -1].any()
        y_SGN = tokens_SGME[..., -1, :1] * network_SGN
        away_SGN = map_N - y_SGN
        exact_SG = ((truth_N - y_SGN) * away_SGN).sum(-1) / np.square(away_SGN).sum(-1)
        share_SG = np.minimum(exact_SG, linear.MOST_SHARE)
        np.testing.assert_allclose(tokens_SGME[..., -1], share_SG[..., None].repeat(int(h), -1), rtol=1e-9)
        shares += exact_SG.ravel().tolist()
    assert 0 < min(shares) < linear.MOST_SHARE < max(shares) < 1
    assert len({*shares}) == 12


@pytest.fixture(scope="module")
def even(problem, tmp_path_factory):
    """A backbone whose map is about as poor as its network of six steps."""
    cfg, map_TH = with_map(), 0.15 * np.random.default_rng(0).normal(size=(48, 24)).astype(np.float32)
    folder = open_run(tmp_path_factory.mktemp("even") / "run", cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "fit", lambda *asked: map_TH)
        train.pretrain(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    return folder


@pytest.fixture(scope="module")
def after(even, problem, tmp_path_factory):
    """f(name, when, loss) -> a run on that map whose prompts, of two seeds and two rates, learned alone, and its task's
    card; under 'after' they took a share in the end."""

    def learn(name, when, loss):
        cfg = with_map()
        cfg.tune.loss = loss
        cfg.tune.update(linear_when=when, seeds=2, learning_rates=(1e-2, 3e-3))
        cfg.tune.linear_shares = (0.0,) if when == "beside" else cfg.tune.linear_shares
        cfg.backbone = str(even)
        folder = open_run(tmp_path_factory.mktemp(name) / "run", cfg)
        checkpoint.refer(folder, checkpoint.find_backbone(even))
        tune.tune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
        return folder, json.loads((folder / "prompts" / f"{TASK}.json").read_text())

    return learn


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_prompts_that_learned_alone_take_the_share_that_is_best_on_validation(after, even, problem, loss):
    folder, card = after("after", "after", loss)
    plain, other = after("plain", "beside", loss)
    model, backbone = weights(even)
    span, key = problem.span("validation", 48, (12, 20)), checkpoint.find_backbone(even)["content_hash"]
    mixed, alone = (checkpoint.load_prompts(of, TASK, key) for of in (folder, plain))
    assert {k: v for k, v in card.items() if k in ("chosen", "step")} == {k: other[k] for k in ("chosen", "step")}

    @functools.partial(jax.jit, static_argnums=2)
    def error(tokens_ME, share, horizon):
        x_RL, seen_RL = windows.take(problem.panel, span, jnp.arange(span.counts[(12, 20).index(horizon)] * 3))
        tokens_ME = tokens_ME.at[:, -1].set(share)
        y_RH = model.apply(
            {"params": backbone}, x_RL[:, :48], seen_RL[:, :48], tokens_ME, horizon, method=model.forecast
        )
        ahead = slice(48, 48 + horizon)
        away_RH = jnp.abs(y_RH - x_RL[:, ahead])
        return ((away_RH**2 if loss == "mse" else away_RH) * seen_RL[:, ahead]).sum() / seen_RL[:, ahead].sum()

    for h in (12, 20):
        for s in range(2):
            tokens_ME, share = mixed[h][s]["tokens_MD"], card["linear_shares"][str(h)][s]
            np.testing.assert_array_equal(tokens_ME[:, :-1], alone[h][s]["tokens_MD"][:, :-1])  # nothing else is new
            assert {*tokens_ME[:, -1].tolist()} == {np.float32(share)}
            parabola = [error(jnp.asarray(tokens_ME), at, h) for at in (0.0, 0.5, 1.0)]
            np.testing.assert_allclose(linear.best_share(*np.array(parabola)), share, atol=2e-3)
            apart = {"mse": 0.02, "mae": 0.1}[loss]  # of absolute errors a parabola is near the truth
            near = [error(jnp.asarray(tokens_ME), at, h) for at in (share, share - apart, share + apart, 0.0)]
            assert 0.1 < share < 0.75
            assert near[0] <= min(near[1:]) + 1e-7


def test_a_run_that_was_stopped_gives_the_same_shares_in_the_end(run, problem, tmp_path):
    cfg = with_map()
    cfg.tune.linear_when = "after"
    whole = outcome(finish(cfg, tmp_path / "whole", problem))
    assert outcome(interrupted(cfg, tmp_path / "again", problem)) == whole


@pytest.mark.parametrize("kind", ["shared", "channel", "layer"])
def test_prompts_of_every_kind_take_a_share_in_the_end(run, problem, tmp_path, kind):
    cfg = with_map()
    cfg.tune.update(linear_when="after", prompts=kind, steps=2, validations=1)
    cfg.backbone = str(run)
    folder = open_run(tmp_path / kind, cfg)
    checkpoint.refer(folder, card := checkpoint.find_backbone(run))
    tune.tune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    shares = json.loads((folder / "prompts" / f"{TASK}.json").read_text())["linear_shares"]
    for h, (prompt,) in checkpoint.load_prompts(folder, TASK, card["content_hash"]).items():
        (tokens,) = prompt.values()
        assert {*tokens[..., -1].ravel().tolist()} == {np.float32(shares[str(h)][0])} != {0.0}


def test_a_run_that_was_stopped_goes_on_to_the_same_map(run, problem, tmp_path):
    assert outcome(interrupted(with_map(), tmp_path / "again", problem)) == outcome(run)


def test_another_task_takes_the_map_with_the_backbone(run, problem, tmp_path):
    cfg, _ = longer(run, tmp_path / "other", problem)
    assert cfg.model.linear


def test_weight_decay_leaves_the_share(run, problem, tmp_path):
    cfg = with_map()
    cfg.tune.update(linear_shares=(0.25, 0.5), weight_decay=1.0, learning_rate=0.1, quantiles=(0.1, 0.9))
    cfg.backbone = str(run)
    folder = open_run(tmp_path / "pulled", cfg)
    checkpoint.refer(folder, card := checkpoint.find_backbone(run))
    tune.tune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    about = json.loads((folder / "prompts" / f"{TASK}.json").read_text())
    share = {int(h): setting["linear_share"] for h, setting in about["setting"].items()}
    for task in (TASK, prompts.quantiles(TASK)):
        for h, (prompt,) in checkpoint.load_prompts(folder, task, card["content_hash"]).items():
            assert {*prompt["tokens_MD"][..., -1].ravel().tolist()} == {share[h]}
    store = Store(folder / "prompts" / TASK, ("prompt", "state"), write=False)
    last = store.read(store.latest(), "state", ocp.args.StandardRestore())["prompt"]["tokens_MD"]
    store.close()
    np.testing.assert_array_equal(last[0, :, :, -1], [[0.25, 0.25], [0.5, 0.5]])  # of a step at which all had learned
    assert np.abs(last[..., :-1]).min() > 0


def test_a_prompt_for_gaps_has_nothing_to_do_with_the_map(run, problem, tmp_path):
    cfg = with_map()
    cfg.backbone, cfg.impute.ratios = str(run), (0.25,)
    cfg.tune.update(steps=2, validations=1, learning_rate=1e-3)
    folder = open_run(tmp_path / "gaps", cfg)
    checkpoint.refer(folder, checkpoint.find_backbone(run))
    task = imputation.tuning(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    about = json.loads((folder / "prompts" / f"{task}.json").read_text())
    assert {shape[-1] for shape in about["shapes"].values()} == {16}
    assert all("linear_share" not in setting for setting in about["setting"].values())


def test_what_fine_tunes_everything_leaves_the_map(run, problem, tmp_path):
    cfg = with_map()
    cfg.tune.update(mode="full", steps=2)
    cfg.backbone = str(run)
    _, before = weights(run)
    folder, card = open_run(tmp_path / "full", cfg), checkpoint.find_backbone(run)
    checkpoint.refer(folder, card)
    task = finetune.finetune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    about = json.loads((folder / "finetuned" / f"{task}.json").read_text())
    assert {k for k, of in about["groups"].items() if not of["tuned"]} == {"linear"}
    for params in finetune.load(cfg, folder, task, card, before, 3).values():
        np.testing.assert_array_equal(params["backbone"]["linear_map"], before["linear_map"])


def test_an_architecture_that_no_version_wrote_is_refused(tiny):
    tiny.model.linear = True
    card = architecture.of(tiny)
    assert card["linear"] == 4
    for wrong in (0, 6, True, 4.0):
        with pytest.raises(UserError, match="is none of this version's"):
            architecture.build({**card, "linear": wrong}, "float32")


def test_a_window_too_long_for_the_map_is_known_before_anything_is_learned(tiny):
    tiny.data.rows, tiny.horizons, tiny.pretrain.horizon, tiny.data.split = 110, (1,), 0, (0.5, 0.2, 0.3)
    short = problems.prepare(data.load(tiny.data), mesh.make(1))
    train.check(tiny, short)
    tiny.model.linear = True
    tiny.data.rows, tiny.data.split = 500, (0.7, 0.1, 0.2)
    long_one = problems.prepare(data.load(tiny.data), mesh.make(1))
    train.check(tiny, long_one)
    for series in ((short,), (long_one, short)):
        with pytest.raises(UserError, match=r"too few for one window of 48 steps of history and 12 to forecast"):
            train.check(tiny, series[0], series[1:])
    tiny.data.rows, tiny.data.split = 110, (0.5, 0.2, 0.3)
    with pytest.raises(UserError, match=r"too few for one window of 48 steps of history and 12 to forecast; accepted"):
        train.check(tiny, short)


@pytest.mark.slow
def test_a_forecaster_with_a_map_is_saved_exported_and_banked_with_it(tmp_path):
    knobs = {**TINY, "model.linear": True}
    f = Forecaster(30, knobs=knobs, quantiles=(0.1, 0.9)).fit(make())
    found = f.predict(levels=(80,))
    assert f.fitted.predictor.prompt["tokens_MD"][0, -1] > 0
    np.testing.assert_array_equal(  # a quantile's prompt begins at the forecast's, and has its share
        f.fitted.predictor.quantiles["tokens_MD"][..., -1],
        f.fitted.predictor.prompt["tokens_MD"][None, :, -1].repeat(2, 0),
    )
    f.save(tmp_path / "kept")
    again = Forecaster.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.predict(levels=(80,)).drop(columns="ds"), found.drop(columns="ds"))
    bank = Bank.create(tmp_path / "bank", f)
    bank.add("one", f)
    np.testing.assert_allclose(bank.predict({"one": make()})["one"]["load"], found["load"], rtol=1e-5)
    task = Forecaster(12, knobs={k: v for k, v in TINY.items() if k.startswith(("tune", "cache"))}).tune(make(), f)
    assert task.fitted.cfg.model.linear
    pytest.importorskip("flatbuffers")
    f.export(tmp_path / "model.stablehlo")
    program = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    history = make()[["load", "wind"]].to_numpy("float32").T[:, -f.fitted.cfg.lookback :]
    y_RH, _ = jax.jit(program.call)(history)
    np.testing.assert_allclose(y_RH[0], found["load"], rtol=1e-4)
