"""A backbone of several networks: they learn and answer apart, a forecast is their mean, a prompt speaks to each."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_forecaster import TINY, make
from test_train import TASK, finish, interrupted, longer, make_config, open_run, outcome

from ptt_jax import (
    Bank,
    Forecaster,
    architecture,
    checkpoint,
    config,
    data,
    detect,
    encodings,
    exhibits,
    imputation,
    impute,
    layers,
    members,
    mesh,
    predict,
    problems,
    tasks,
)
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.model import init


@pytest.fixture(scope="module")
def three(model, params):
    """The model with three networks, and their parameters: random, and none like another."""
    whole = model.clone(members=3)
    return whole, jax.tree.map(lambda a, b: a + b[None], init(whole, jax.random.key(5)), params)


def network(tree, z):
    return jax.tree.map(lambda a: a[z], tree)


def tokens(*lead, width=48):
    return np.random.default_rng(1).normal(size=(*lead, 2, width)).astype(np.float32)


def say(model, params, history, prompt, horizon=24):
    return np.asarray(
        jax.jit(lambda p, *a: model.apply({"params": p}, *a, horizon, method=model.forecast))(params, *history, prompt)
    )


def ask(whole, weights, history, prompt):
    """What several networks say of two patches."""

    @jax.jit
    def forecast(weights, prompt, *history):
        encoded = members.observe(whole, weights, *history)
        return members.foretell(whole, weights, encoded, jnp.arange(2), prompt)

    return np.asarray(forecast(weights, prompt, *history)).reshape(len(history[0]), -1)


KINDS = {
    "position": ((), {}), "channel": ((5,), {}), "layer": ((1, 1), {}), "views": ((), {"views": 3}),
    "channel, views": ((5,), {"views": 3}), "self": ((), {"decoder_attention": "self"}),
    "value, learned": ((), {"hiding": "value", "position": "learned"}),
}  # fmt: skip


@pytest.mark.parametrize(("lead", "knobs"), KINDS.values(), ids=KINDS)
def test_a_forecast_is_the_mean_of_what_each_network_says_to_its_part_of_the_prompt(model, history, lead, knobs):
    one = model.clone(**knobs)
    whole, prompt = one.clone(members=3), tokens(*lead)
    weights = init(whole, jax.random.key(5))
    weights["mask_token"] = 50 * weights["mask_token"]
    each = [say(one, network(weights, z), history, prompt[..., 16 * z : 16 * (z + 1)]) for z in range(3)]
    assert min(np.abs(a - b).mean() for a, b in itertools.pairwise(each)) > 0.1
    np.testing.assert_allclose(ask(whole, weights, history, prompt), np.mean(each, 0), rtol=1e-4, atol=1e-5)


def test_what_is_learned_depends_on_neither_devices_nor_a_cache(problem, three, tiny):
    whole, weights = three
    span, row_R = problem.span("train", 48, (20,)), jnp.arange(40)
    four = problems.prepare(data.load(tiny.data), mesh.make(4))
    assert four.mesh.size == 4
    each = encodings.encode_all(whole, weights, problem, span, 64, 2**30, jnp.float32).encoded_bytes // span.rows

    def slope(of, budget):
        source = encodings.encode_all(whole, weights, of, span, 8, budget, jnp.float32)
        loss = tasks.forecasting(whole, span, penalty="mse")

        def total(prompt):
            return loss({"backbone": weights, "prompt": prompt}, source, row_R, jax.random.key(0))[0].sum()

        return source.stored, jax.jit(jax.value_and_grad(total))({"tokens_MD": jnp.asarray(tokens())})

    (none, expected), (some, partly), (most, cached) = (
        slope(of, size) for of, size in ((problem, 0), (four, 20 * each), (four, 2**30))
    )
    assert none == 0 < some < 40 < most
    for found in (partly, cached):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(found[1]["tokens_MD"], expected[1]["tokens_MD"], rtol=1e-4, atol=1e-4)


def test_beside_a_map_there_is_one_share(three, history):
    whole, weights = three
    map_TH = jnp.asarray(np.random.default_rng(0).normal(size=(48, 24)) / 7, jnp.float32)
    prompt = tokens(width=49)
    prompt[:, -1] = 0.25, 0.75
    share_H = np.repeat(prompt[:, -1], 12)
    alone = ask(whole, weights, history, prompt[:, :-1])
    expected = share_H * np.asarray(layers.linear(map_TH, *history)) + (1 - share_H) * alone
    found = ask(whole.clone(linear=4), {**weights, "linear_map": map_TH}, history, prompt)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_each_network_learns_under_masks_of_its_own_as_if_alone(problem, model, three):
    whole, weights = three
    span, key, row_R = problem.span("train", 48, (24,)), jax.random.key(2), jnp.arange(40)
    terms = {"ratio": 0.5, "tail_share": 0.25, "norm": "visible", "train": True, "flip": 0.5, "blend": 0.5}
    data = encodings.Cached(problem.panel)

    def slopes(model, tree, key):
        loss = tasks.reconstruction(model.clone(dropout=0.1), span, **terms)

        def total(tree):
            sum_R, count_R = loss({"backbone": tree}, data, row_R, key)
            return sum_R.sum(), count_R.sum()

        return jax.jit(jax.value_and_grad(total, has_aux=True))(tree)

    found, grads = slopes(whole, weights, key)
    alone = [slopes(model, network(weights, z), k) for z, k in enumerate(jax.random.split(key, 3))]
    np.testing.assert_allclose(found, np.sum([of for of, _ in alone], 0), rtol=1e-5)
    for z, (_, expected) in enumerate(alone):
        for a, b in zip(jax.tree.leaves(network(grads, z)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    assert len({round(float(value)) for (value, _), _ in alone}) == 3


def several():
    cfg = make_config()
    cfg.model.members = 3
    return cfg


@pytest.fixture(scope="module")
def run(problem, tmp_path_factory):
    """A finished run of three networks."""
    return finish(several(), tmp_path_factory.mktemp("members") / "run", problem)


def test_a_run_has_networks_that_differ_and_tokens_for_each(run):
    card = checkpoint.find_backbone(run)
    model = architecture.build(card["architecture"], "float32")
    assert (card["architecture"]["members"], model.members, model.token) == (3, 3, 48)
    backbone = stores.names(checkpoint.load_backbone(card, architecture.shapes(model)))
    assert {len(a) for a in backbone.values()} == {3}
    kernel = backbone["head/kernel"]
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(kernel)) > 0.1
    about = json.loads((run / "prompts" / f"{TASK}.json").read_text())
    assert {k for k, of in about["groups"].items() if of["tuned"]} == {"prompt"}
    for h, (prompt,) in checkpoint.load_prompts(run, TASK, card["content_hash"]).items():
        assert prompt["tokens_MD"].shape == (-(-h // 12), 48)
    last = checkpoint.load_prompts(run, TASK, card["content_hash"])[20][0]["tokens_MD"].reshape(-1, 3, 16)
    assert all(np.abs(last[:, z]).max() > 0 for z in range(3))


def test_a_run_of_several_that_was_stopped_goes_on_to_the_same(run, problem, tmp_path):
    assert outcome(interrupted(several(), tmp_path / "again", problem)) == outcome(run)


def test_another_task_takes_all_networks_with_the_backbone(run, problem, tmp_path):
    cfg, about = longer(run, tmp_path / "other", problem)
    assert (cfg.model.members, about["shapes"]["30"][-1]) == (3, 48)


def test_a_prompt_for_gaps_asks_the_first_network(run, problem, tmp_path):
    cfg = several()
    cfg.backbone, cfg.impute.ratios = str(run), (0.25,)
    cfg.tune.update(steps=2, validations=1, learning_rate=1e-3)
    folder = open_run(tmp_path / "gaps", cfg)
    checkpoint.refer(folder, checkpoint.find_backbone(run))
    task = imputation.tuning(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    about = json.loads((folder / "prompts" / f"{task}.json").read_text())
    assert {shape[-1] for shape in about["shapes"].values()} == {16}


@pytest.mark.parametrize("kind", ["embed", "gaps", "scores", "attention"])
def test_what_is_no_forecast_is_said_by_the_first_network(problem, model, three, history, kind, monkeypatch):
    monkeypatch.setattr(exhibits, "ROWS", 16)
    whole, weights = three
    asked = detect.Question(12, 4, ((1,), (3,)), 48)

    def of(model, backbone):
        if kind == "embed":
            return predict.read(model, backbone, *history)
        if kind == "gaps":
            way = impute.Way("mean", 12.0, 24)
            return impute.impute(model, {"backbone": backbone}, way, *history, jnp.zeros(5, int))
        if kind == "scores":
            return detect.reconstruct(model, backbone, asked, "scaled", problem.mesh, (None,), *history)
        return exhibits.attend(problem, model, backbone, None, problem.span("test", 48, (12, 20)))

    found, others = of(whole, weights), [of(model, network(weights, z)) for z in (0, 1)]
    np.testing.assert_allclose(found, others[0], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(found) - np.asarray(others[1])).max() > 1e-4


def test_prompts_alone_learn_on_several(run, tiny):
    tiny.model.members, tiny.tune.mode = 3, "full"
    words = r"config\.model\.members = 3 networks answer prompts, and config\.tune\.mode = full trains one"
    with pytest.raises(UserError, match=words):
        config.check(tiny)
    tiny.model.members = 1
    config.check(tiny)
    with pytest.raises(UserError, match=words):
        architecture.adopt(tiny, checkpoint.find_backbone(run))


def test_a_card_says_how_many_only_where_there_are_several(tiny):
    assert "members" not in architecture.of(tiny)
    tiny.model.members = 2
    card = architecture.of(tiny)
    for wrong in (0, 65, True, 2.0):
        with pytest.raises(UserError, match="is none of this version's"):
            architecture.build({**card, "members": wrong}, "float32")


@pytest.mark.slow
def test_a_forecaster_of_several_is_saved_exported_and_banked(tmp_path):
    knobs = {**TINY, "model.members": 2, "model.linear": True}
    f = Forecaster(30, knobs=knobs, quantiles=(0.1, 0.9)).fit(make())
    found = f.predict(levels=(80,))
    assert f.fitted.predictor.prompt["tokens_MD"].shape[-1] == 33
    f.save(tmp_path / "kept")
    again = Forecaster.load(tmp_path / "kept")
    np.testing.assert_array_equal(again.predict(levels=(80,)).drop(columns="ds"), found.drop(columns="ds"))
    bank = Bank.create(tmp_path / "bank", f)
    bank.add("one", f)
    np.testing.assert_allclose(bank.predict({"one": make()})["one"]["load"], found["load"], rtol=1e-5)
    gappy = make()
    gappy.loc[100:110, "load"] = np.nan
    assert f.impute(gappy)["load"].notna().all()
    assert f.detect(make()).notna().all(axis=None)
    assert f.embed(make()).shape == (2, 16)
    pytest.importorskip("flatbuffers")
    f.export(tmp_path / "model.stablehlo")
    program = jax.export.deserialize((tmp_path / "model.stablehlo").read_bytes())
    y_RH, _ = jax.jit(program.call)(make()[["load", "wind"]].to_numpy("float32").T[:, -f.fitted.cfg.lookback :])
    np.testing.assert_allclose(y_RH[0], found["load"], rtol=1e-4)
