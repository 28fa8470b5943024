"""Prompts for scores: what they learn from, what chooses them, and whose they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import config, lessons, mesh, prompts
from ptt_jax import store as stores
from ptt_jax.detect import Detector, question
from ptt_jax.errors import UserError


@pytest.fixture
def detector(model, params):
    section = config.default().detect
    section.update(window=48, units="scaled")
    return Detector(model, params, question(section, 12, 48), "scaled", mesh.make(1))


@pytest.fixture
def parts():
    """Training parts of two series: 300 steps of two channels, one of which stands still, and 30 steps of one."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(300) / 3)[:, None] + 0.1 * rng.normal(size=(300, 2))
    wave[:, 1] = 4.0
    short = rng.normal(size=(30, 1))
    return [(wave, rng.random((300, 2)) > 0.1), (short, np.ones((30, 1), bool))]


@pytest.fixture
def section():
    tune = config.default().tune
    tune.update(steps=6, batch=16, validations=3, learning_rate=1e-2)
    return tune


def test_the_end_of_a_training_part_is_held_back(detector, parts):
    """Steps are their own values here."""
    steps = [(np.arange(300.0)[:, None], np.ones((300, 1), bool)), (1000 + np.arange(30.0)[:, None], parts[1][1])]
    learn, choose = lessons.lessons(detector, steps)

    def counted(of):
        return {int(x) for hidden, counts in zip(of.hidden, of.counts, strict=True) for x in np.asarray(hidden[counts])}

    assert counted(learn) == {*range(240), *range(1000, 1024)}
    assert counted(choose) == {*range(240, 300), *range(1024, 1030)}


def test_channels_that_stand_still_teach_nothing(detector, parts):
    learn, _ = lessons.lessons(detector, parts)
    assert not any((np.asarray(hidden) == 4.0).any() for hidden in learn.hidden)
    still = [(np.ones((100, 2)), np.ones((100, 2), bool))]
    with pytest.raises(UserError, match="moves"):
        lessons.lessons(detector, still)


def test_of_many_windows_evenly_spread_ones_are_kept(detector, parts, monkeypatch):
    monkeypatch.setattr(lessons, "MOST_ROWS", 5)
    learn, choose = lessons.lessons(detector, parts)
    assert (learn.rows, choose.rows) == (5, 4)
    assert len(learn.encoded[0].keep_RN) == 5


def test_step_0_is_the_score_of_the_mask_token_alone(detector, parts, section):
    """The loss is the mean error of what counts, as scores have it."""
    x_TC, observed_TC = parts[0]
    learn, choose = lessons.lessons(detector, [(x_TC[:, :1], observed_TC[:, :1])])
    tuned = lessons.tune(detector, learn, choose, section, 0)
    error_T = detector.errors(x_TC[:, :1], observed_TC[:, :1], begin=240)[0]
    whole = detector._replace(asked=detector.asked._replace(stride=48))
    assert tuned.looks[0][0] == 0
    assert tuned.looks[0][1] == pytest.approx(error_T[observed_TC[240:, :1]].mean(), rel=0.2)  # overlaps weigh more
    learn, choose = lessons.lessons(whole, [(x_TC[:240, :1], observed_TC[:240, :1])])  # 192 to 240: one window
    assert lessons.tune(whole, learn, choose, section, 0).looks[0][1] == pytest.approx(
        whole.errors(x_TC[192:240, :1], observed_TC[192:240, :1])[0][observed_TC[192:240, :1]].mean(), rel=1e-3
    )


@pytest.mark.parametrize("kind", ["position", "shared"])
def test_prompts_alone_learn_and_never_make_the_held_back_rows_worse(detector, parts, section, kind):
    before = stores.content_hash(detector.backbone)
    section.update(prompts=kind, loss="mae")
    tuned = lessons.tune(detector, *lessons.lessons(detector, parts), section, 0)
    assert stores.content_hash(detector.backbone) == before
    assert tuned.prompt["tokens_MD"].shape == ((4, 16) if kind == "position" else (1, 16))
    assert [at for at, _ in tuned.looks] == [0, 2, 4, 6]
    assert tuned.penalty == "mae"
    values = [value for _, value in tuned.looks]
    assert len({*values}) == 4
    assert dict(tuned.looks)[tuned.chosen] == min(values)
    assert np.any(tuned.prompt["tokens_MD"]) == (tuned.chosen > 0)


def test_a_prompt_that_helps_nothing_is_the_mask_token_alone(detector, parts, section):
    section.learning_rate = -1e-2  # goes up the hill
    tuned = lessons.tune(detector, *lessons.lessons(detector, parts), section, 0)
    assert tuned.looks[-1][1] > tuned.looks[0][1]
    assert tuned.chosen == 0
    assert not np.any(tuned.prompt["tokens_MD"])


def test_another_seed_or_series_of_as_many_rows_makes_no_program_again(detector, parts, section, monkeypatch):
    tuned = lessons.tune(detector, *lessons.lessons(detector, parts), section, 0)
    monkeypatch.setattr(lessons, "loss_of", None)
    other = [(x_TC[::-1], observed_TC[::-1]) for x_TC, observed_TC in parts]
    again, elsewhere = (lessons.tune(detector, *lessons.lessons(detector, of), section, 0) for of in (parts, other))
    assert again.looks == tuned.looks
    np.testing.assert_array_equal(again.prompt["tokens_MD"], tuned.prompt["tokens_MD"])
    assert elsewhere.looks[0] != tuned.looks[0]
    assert lessons.tune(detector, *lessons.lessons(detector, parts), section, 1).looks[1] != tuned.looks[1]


def test_a_saved_prompt_belongs_to_its_backbone_and_its_question(detector, tmp_path):
    tuned = lessons.Tuned({"tokens_MD": jax.random.normal(jax.random.key(0), (4, 16))}, [(0, 1.0), (6, 0.5)], 6, "mse")
    card = {"content_hash": "a" * 64, "run": "somewhere"}
    lessons.save(tmp_path, "UCR", tuned, detector, card, 0)
    found = lessons.load(tmp_path, "UCR", detector, card, "mse")
    np.testing.assert_array_equal(found["tokens_MD"], tuned.prompt["tokens_MD"])
    assert prompts.size(found) == 64
    with pytest.raises(UserError, match="belongs to backbone aaaaaaaaaaaa, not to bbbbbbbbbbbb"):
        lessons.load(tmp_path, "UCR", detector, {**card, "content_hash": "b" * 64}, "mse")
    other = detector._replace(asked=detector.asked._replace(stride=48))
    with pytest.raises(UserError, match="windows of 48 steps"):
        lessons.load(tmp_path, "UCR", other, card, "mse")
    with pytest.raises(UserError, match=r"tuned with config.detect.units = scaled, not window; accepted: the same"):
        lessons.load(tmp_path, "UCR", detector._replace(units="window"), card, "mse")
    with pytest.raises(UserError, match=r"tuned with config.tune.loss = mse, not mae; accepted: the same"):
        lessons.load(tmp_path, "UCR", detector, card, "mae")


@pytest.mark.parametrize("kind", ["channel", "layer"])
def test_prompts_of_other_kinds_are_refused_and_neither_learn_nor_answer(detector, parts, section, kind):
    section.prompts = kind
    with pytest.raises(UserError, match=f"config.tune.prompts = {kind} .* accepted: position or shared"):
        lessons.tune(detector, None, None, section, 0)
    for prompt in (prompts.make(kind, 4, 16, 3, 1), prompts.make("position", 3, 16)):
        with pytest.raises(UserError, match="is not for windows of 4 patches; accepted: "):
            detector.errors(*parts[0], (prompt,))


def test_the_frozen_encoder_is_not_in_a_tuning_step(detector, parts, section):
    """Its outputs are: no program of the tuning step reads a weight of it."""
    learn, _ = lessons.lessons(detector, parts)
    loss = lessons.loss_of(detector.model, detector.asked, detector.units, "mse")
    prompt = prompts.make("position", 4, 16)

    def of(backbone):
        return loss({"backbone": backbone, "prompt": prompt}, learn, jnp.arange(8), jax.random.key(0))[0]

    spoilt = jax.tree.map(lambda a: a, detector.backbone)
    for name in ("embed", "encoder_0", "encoder_norm"):
        spoilt[name] = jax.tree.map(lambda a: a * jnp.nan, spoilt[name])
    np.testing.assert_array_equal(jax.jit(of)(detector.backbone), jax.jit(of)(spoilt))
