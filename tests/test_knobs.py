"""What a knob of the ablations changes, and what it must leave as it is."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ptt_jax import architecture, baselines, checkpoint, config, encodings, finetune, main, prompts, tasks, train
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.knobs import PARTS
from ptt_jax.layers import flatten, instance_stats, sincos
from ptt_jax.model import GROUPS, LEARNED, CrossMAE, group, init

SIZES = {"patch": 12, "width": 16, "mlp": 16, "heads": 2, "encoder_layers": 1, "patches": 8}


@functools.cache
def make(**knobs):
    """A model of two decoder blocks with weights that show in its output."""
    model = CrossMAE(**{**SIZES, "decoder_layers": 2, **knobs})
    params = init(model, jax.random.key(3))
    params["mask_token"] = 50 * params["mask_token"]
    return model, params


def forecast(model, params, history, prompt=None, horizon=36):
    ask = jax.jit(lambda params, prompt: model.apply({"params": params}, *history, prompt, horizon, method="forecast"))
    return ask(params, prompt)


def tokens(*shape):
    return jax.random.normal(jax.random.key(7), shape)


def by_patch(model, params, history, prompt):
    """Largest derivative of each answered patch by each asked patch's tokens."""
    ask = jax.jit(jax.jacobian(lambda p: forecast(model, params, history, p)))
    return np.abs(np.asarray(ask(prompt))).reshape(5, 3, 12, -1, 3, 16).max((0, 2, 3, 5))


def test_prompts_of_zeros_at_every_block_give_the_zero_shot_forecast_to_the_bit(history):
    model, params = make()
    zero = prompts.tokens(prompts.make("layer", 3, 16, blocks=2), 3, jnp.zeros(5, int))
    np.testing.assert_array_equal(forecast(model, params, history, zero), forecast(model, params, history))
    for block in range(2):
        moved = forecast(model, params, history, zero.at[block].set(tokens(1, 3, 16)))
        assert np.abs(moved - forecast(model, params, history)).max() > 1e-2


def test_prompts_at_every_block_begin_with_those_on_the_mask_token(history):
    model, params = make()
    whole = jnp.zeros((2, 1, 3, 16)).at[0, 0].set(tokens(3, 16))
    np.testing.assert_array_equal(
        forecast(model, params, history, whole), forecast(model, params, history, tokens(3, 16))
    )


def test_prompts_at_every_block_are_a_prefix_and_stay_apart(history):
    model, params = make()
    prompt = {"tokens_IMD": tokens(2, 3, 16)}
    apart = by_patch(model, params, history, prompts.tokens(prompt, 3, None))
    assert (apart[~np.eye(3, dtype=bool)] == 0).all()
    long = forecast(model, params, history, prompts.tokens(prompt, 3, None))
    short = forecast(model, params, history, prompts.tokens(prompts.cut(prompt, 1), 1, None), 12)
    np.testing.assert_allclose(short, long[:, :12], rtol=1e-5, atol=1e-5)


def test_prompts_at_every_block_learn_from_the_cache_as_without_it(problem):
    (model, params), span = make(), problem.span("train", 48, (12, 20))
    data = encodings.encode_all(model, params, problem, span, 64, 2**30, jnp.float32)
    assert data.complete
    loss = tasks.forecasting(model, span, penalty="mse")

    @jax.jit
    def gradient(data):
        def total(prompt):
            return loss({"backbone": params, "prompt": prompt}, data, jnp.arange(30), jax.random.key(0))[0].sum()

        return jax.grad(total)(prompts.make("layer", 2, 16, blocks=2))["tokens_IMD"]

    np.testing.assert_allclose(gradient(data), gradient(encodings.Cached(problem.panel)), rtol=1e-4, atol=1e-4)
    assert (np.abs(gradient(data)).max((1, 2)) > 1).all()


def test_the_usual_base_is_that_of_the_first_transformer():
    at, i = np.arange(50)[:, None], np.arange(16)
    phase = at / 10000 ** (2 * i / 32)
    e_ND = sincos(jnp.arange(50)[None], 32, 0.0)[0]
    np.testing.assert_allclose(e_ND, np.concatenate([np.sin(phase), np.cos(phase)], axis=1), atol=1e-4)


def test_the_base_is_what_the_position_says(history):
    (model, params), (usual, _) = make(position="sincos"), make(position="sincos10000")
    a, b = forecast(model, params, history), forecast(usual, params, history)
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, forecast(model.copy(position="sincos"), params, history))


@pytest.mark.parametrize(("kind", "seen"), [("cross", False), ("self", True)])
def test_queries_see_each_other_under_self_alone(history, kind, seen):
    model, params = make(decoder_attention=kind)
    apart = by_patch(model, params, history, tokens(3, 16))
    others = apart[~np.eye(3, dtype=bool)]
    assert (others > 1e-4).all() if seen else (others == 0).all()
    assert (np.diag(apart) > 1e-4).all()


def test_self_attention_of_queries_adds_leaves_and_renames_none():
    plain, more = (stores.names(make(decoder_attention=kind)[1]) for kind in ("cross", "self"))
    new = {*more} - {*plain}
    assert {*plain} <= {*more}
    assert {name.split("/")[1] for name in new} == {"norm_self", "self_attention"}
    assert {group(name) for name in new} == {"decoder"}


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_what_stands_beside_it_in_a_call_changes_no_forecast(problem, kind):
    """Where queries see each other, a short horizon is the beginning of the longest one's answer to its own prompt."""
    (model, params), span = make(decoder_attention=kind), problem.span("train", 48, (12, 36))
    row_R = jnp.arange(5)
    encoded = encodings.encode(model, params, encodings.Cached(problem.panel), span, row_R)
    one, other = {"tokens_MD": tokens(3, 16)}, {"tokens_MD": -tokens(3, 16)}

    @jax.jit
    def ask(*wanted):
        pairs = [(prompt, horizon) for prompt, horizon in zip(wanted, (36, 36, 12, 12), strict=False)]
        return tasks.forecasts(model, params, encoded, pairs, row_R % 3)

    zero_RH, one_RH, short_RH, short_zero_RH = ask(None, one, other, None)
    alone = [ask(prompt)[0] for prompt in (None, one, other)]
    for found, whole in zip((zero_RH, one_RH, short_RH), alone, strict=True):
        np.testing.assert_allclose(found, whole[:, : found.shape[1]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(short_zero_RH, alone[0][:, :12], rtol=1e-5, atol=1e-5)
    assert np.abs(alone[0] - alone[2]).max() > 1e-2


@pytest.mark.parametrize("hiding", ["feature", "value"])
def test_forecasting_is_the_reconstruction_of_a_hidden_future(history, hiding):
    """And so both hide it alike."""
    (model, params), (x_RT, observed_RT) = make(hiding=hiding), history
    window = jnp.pad(x_RT, ((0, 0), (0, 48)), constant_values=1e3), jnp.pad(observed_RT, ((0, 0), (0, 48)))
    at = (jnp.broadcast_to(jnp.arange(*ends), (5, 4)) for ends in ((0, 4), (4, 8)))
    y_RMP, *_ = model.apply({"params": params}, *window, *at, norm="visible", method="reconstruct")
    seen_RT = observed_RT.astype(jnp.float32)
    mean_R1, scale_R1 = instance_stats(x_RT, seen_RT)
    assert (scale_R1 > 0.1).all()
    y_RH = forecast(model, params, history, None, 48)
    np.testing.assert_allclose(flatten(y_RMP) * scale_R1 + mean_R1, y_RH, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hiding", ["feature", "value"])
def test_hidden_values_never_reach_the_encoder(hiding):
    model, params = make(hiding=hiding)
    visible, hidden = jnp.array([[0, 2, 3], [1, 4, 5]]), jnp.array([[1, 4, 5], [0, 2, 3]])

    @jax.jit
    @jax.grad
    def gradient(x_RL):
        window = x_RL, jnp.ones_like(x_RL, bool), visible, hidden
        return model.apply({"params": params}, *window, norm="visible", method="reconstruct")[0][0].sum()

    size = np.abs(gradient(jax.random.normal(jax.random.key(0), (2, 72)))).reshape(2, 6, 12)
    assert (size[0, [1, 4, 5]] == 0).all()
    assert (size[0, [0, 2, 3]] > 0).all()
    assert (size[1] == 0).all()


def test_the_encoder_reads_hidden_patches_as_zeros_under_value(history):
    """Of the window alone: not beyond it, and no more of it for a longer horizon."""
    model, params = make(hiding="value")
    encoded = model.apply({"params": params}, *history, method="observe")
    assert encoded.keep_RN.shape == (5, 4)
    assert {keys.shape[1] for keys, _ in encoded.memory} == {8}
    short, long = (forecast(model, params, history, None, horizon) for horizon in (12, 48))
    np.testing.assert_allclose(short, long[:, :12], rtol=1e-5, atol=1e-5)
    plain, _ = make()
    assert np.abs(long - forecast(plain, params, history, None, 48)).max() > 1e-3
    z_RSD = model.apply({"params": params}, *history, method="read")[0]
    assert z_RSD.shape == (5, 8, 16)
    probe = {"backbone": params, "probe": {"kernel": jnp.ones((4 * 16, 12)), "bias": jnp.zeros(12)}}
    assert baselines.probe(model, probe, *history).shape == (5, 12)


def test_windows_of_the_lookback_alone_end_with_it(tiny):
    tiny.pretrain.horizon = 0
    assert train.window(tiny) == (36, (12,))
    assert train.window(config.default()) == (504, (720,))
    tiny.pretrain.horizon = 13
    assert train.window(tiny) == (48, (24,))
    tiny.pretrain.horizon, tiny.lookback = 0, 12
    with pytest.raises(UserError, match=r"accepted: a config\.lookback of at least 24"):
        config.check(tiny)


THAWS = ("mask_token,head",)
TASK = "generated-12-20"


def looks(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_mse"] for line in lines if line["stage"] == "tune"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{what thaws: run}, '' for prompts alone: all of them on the backbone of that one, whose queries see each other
    and whose encoder reads hidden patches as zeros."""
    folder, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    for room in (main.report, main.page):
        patch.setattr(room, "write", lambda run, command: run / "report.md")
    for parts in ("", *THAWS):
        cfg = config.default()
        cfg.lookback, cfg.horizons, cfg.cache_dir = 48, (12, 20), ""
        cfg.data.rows, cfg.data.channels = 500, 3
        cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1, decoder_layers=2)
        cfg.model.update(decoder_attention="self", hiding="value")
        cfg.pretrain.update(steps=4, batch=16, validations=1, validation_rows=32, horizon=0)
        cfg.tune.update(steps=4, batch=16, validations=2, learning_rate=3e-2, prompts="layer")
        cfg.tune.update(mode="thaw", thaw=parts) if parts else cfg.tune.update(seeds=2)
        cfg.evaluate.update(batch=600, samples=2)
        cfg.backbone, cfg.devices = str(folder / "prompts") if parts else "", 1
        main.run(cfg, folder / (parts or "prompts"))
    patch.undo()
    return {parts: folder / (parts or "prompts") for parts in ("", *THAWS)}


@pytest.mark.parametrize("parts", ["", *THAWS])
def test_what_is_scored_is_what_was_chosen(runs, parts):
    """The forecast of a short horizon is that of the looks, the beginning of the longest one's; tuning begins with the
    zero-shot forecast."""
    results = pd.read_csv(runs[parts] / "results.csv").query("split == 'validation'")
    mean, found = results.groupby(["model", "horizon"]).mse.mean(), looks(runs[parts])
    name = "thaw" if parts else "prompt"
    for horizon in (12, 20):
        assert mean["zero_shot", horizon] == pytest.approx(found[0][str(horizon)], rel=1e-4)
        best = min(look[str(horizon)] for look in found)
        assert mean[name, horizon] <= best * (1 + 1e-4)  # of several seeds each has its own best
        assert mean[name, horizon] == pytest.approx(best, rel=1e-4 if parts else 1e-2)
    assert mean[name, 20] < mean["zero_shot", 20]


def test_prompts_of_queries_that_see_each_other_are_kept_whole(runs):
    card = json.loads((runs[""] / "prompts" / f"{TASK}.json").read_text())
    assert card["leaf"] == "tokens_IMD"
    assert card["shapes"] == {"12": [2, 1, 2, 2, 16], "20": [2, 1, 2, 2, 16]}  # (S, G, I, M, D), never cut
    assert card["tuned_parameters"] == 2 * 2 * 16


@pytest.mark.parametrize("parts", THAWS)
def test_what_is_not_thawed_stays_as_it_is_to_the_bit(runs, parts):
    card = checkpoint.find_backbone(runs[parts])
    before = checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
    cfg = config.from_json((runs[parts] / "config.json").read_text())
    for params in finetune.load(cfg, runs[parts], f"thaw-{TASK}", card, before, 3).values():
        after = stores.names(params["backbone"])
        changed = {group(n) for n, a in stores.names(before).items() if a.tobytes() != after[n].tobytes()}
        assert changed == {*parts.split(",")}
        assert (np.abs(params["prompt"]["tokens_IMD"]).max((1, 2)) > 0).all()
    about = json.loads((runs[parts] / "finetuned" / f"thaw-{TASK}.json").read_text())
    assert {k for k, v in about["groups"].items() if v["tuned"]} == {*parts.split(","), "prompt"}


@pytest.mark.parametrize(
    ("parts", "drops"), [(("mask_token", "head"), False), (("embed",), True), (("decoder",), True), (LEARNED, True)]
)
def test_what_thaws_drops(problem, parts, drops):
    (model, params), span = make(), problem.span("train", 48, (20,))
    loss = jax.jit(baselines.thawing(model.copy(dropout=0.5), span, penalty="mse", thawed=parts))
    tree = {"backbone": params, "prompt": {"tokens_MD": tokens(2, 16)}}
    data = encodings.Cached(problem.panel)
    a, b = (loss(tree, data, jnp.arange(4), jax.random.key(i))[0] for i in range(2))
    assert bool((a != b).any()) == drops


def test_what_the_cache_holds_does_not_depend_on_what_thaws_with_it(problem):
    """A thawed head and mask token learn from the cache; with dropout 0, as a thawed decoder does without it."""
    (model, params), span = make(), problem.span("train", 48, (12, 20))
    data = encodings.encode_all(model, params, problem, span, 64, 2**30, jnp.float32)
    tree = {"backbone": params, "prompt": {"tokens_MD": tokens(2, 16)}}
    found = []
    for parts, source in (("head", data), ("decoder", encodings.Cached(problem.panel))):
        loss = baselines.thawing(model, span, penalty="mse", thawed=(parts,))
        found.append(jax.jit(loss)(tree, source, jnp.arange(30), jax.random.key(0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *found)
    cfg = config.default()
    cfg.tune.update(mode="thaw", thaw="decoder")
    assert not {*finetune.thawed(cfg.tune)} <= finetune.UNREAD


def test_the_config_knows_the_parts_of_the_model():
    assert PARTS == LEARNED == GROUPS[:-1]


@pytest.mark.parametrize(
    "argv",
    [
        ["tune.mode=thaw"], ["tune.thaw=head"], ["tune.mode=thaw", "tune.thaw=heads"],
        ["tune.mode=thaw", "tune.thaw=head,,decoder"], ["tune.mode=thaw", "tune.thaw=prompt"],
        ["tune.mode=thaw", "tune.thaw=head", "tune.seeds=2"], ["tune.prompts=deep"],
        ["model.position=sincos1000"], ["model.decoder_attention=causal"], ["model.hiding=token"],
        ["pretrain.horizon=-2"],
    ],
)  # fmt: skip
def test_a_knob_that_is_set_wrongly_is_one_sentence(argv, capsys, tmp_path):
    flags = [f"--config.{text}" for text in argv]
    assert main.main(["--config=configs/quickstart.py", *flags, f"--workdir={tmp_path / 'r'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "accepted" in err
    assert not (tmp_path / "r").exists()


def test_a_card_of_before_these_knobs_is_a_model_of_their_defaults(tiny):
    card = architecture.of(tiny)
    old = {k: v for k, v in card.items() if k not in ("decoder_attention", "hiding")}
    assert architecture.build(old, "float32") == architecture.build(card, "float32")
    tiny.model.update(decoder_attention="self", hiding="value")
    architecture.adopt(tiny, {"architecture": old, "run": "old"})
    assert (tiny.model.decoder_attention, tiny.model.hiding) == ("cross", "feature")
    assert architecture.of(tiny) == card


def test_value_hiding_reads_no_more_than_its_longest_window(tiny):
    tiny.model.hiding = "value"
    card = {"architecture": architecture.of(tiny), "run": "short"}
    architecture.adopt(tiny, card)
    tiny.horizons = (12, 36)
    with pytest.raises(UserError, match="learned 6 patches; accepted: "):
        architecture.adopt(tiny, card)
