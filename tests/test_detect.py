"""Scores of steps: what is hidden stays hidden, every step has one, and the arithmetic around the backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import config, detect, mesh, optim, prompts, step, tasks
from ptt_jax.detect import Detector, combine, moves, moving_z, question
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.model import init
from ptt_jax.problems import Panel, Problem
from ptt_jax.windows import span

SCORES = ("reconstruction", "forecast")


def ask(score="reconstruction", window=48, stride=0.5, groups=2, patch=12):
    section = config.default().detect
    section.update(score=score, window=window, stride=stride, groups=groups)
    return question(section, patch, 504)


@pytest.fixture
def detector(model, params):
    return Detector(model, params, ask(), "window", mesh.make(1))


@pytest.fixture
def series():
    """x_TC and observed_TC: 170 steps of two channels, no multiple of a patch, a tenth of them missing."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(170, 2)).cumsum(0), rng.random((170, 2)) > 0.1


@pytest.mark.parametrize("groups", [2, 3])
def test_each_patch_is_hidden_once_between_visible_ones(groups):
    asked = ask(window=96, groups=groups)
    assert sorted(sum(asked.groups, ())) == [*range(8)]
    for hidden in asked.groups:
        visible = asked.visible(hidden)
        assert sorted(hidden + visible) == [*range(8)]
        assert {n + side for n in hidden for side in (-1, 1)} & {*range(8)} <= {*visible}


def test_a_window_is_the_backbones_lookback_unless_it_is_told():
    assert ask(window=0).length == 504
    assert ask(window=60).length == 60
    assert ask("forecast", window=48, stride=0.25).groups == ((3,),)


@pytest.mark.parametrize("window", [50, 36])
def test_a_window_that_cannot_be_asked_is_one_sentence(window):
    with pytest.raises(UserError, match=f"config.detect.window = {window} .*multiple of 12, at least 48"):
        ask(window=window)


@pytest.mark.parametrize("score", SCORES)
def test_windows_hide_every_step_that_is_scored(score):
    for window, stride in ((48, 0.5), (60, 0.3), (60, 1.0)):
        asked = ask(score, window, stride)
        for begin, end in ((0, 1), (0, 11), (0, 48), (0, 170), (37, 60), (100, 170), (169, 170)):
            count_T = np.zeros(end + 2 * asked.length)
            starts = asked.starts(begin, end)
            for start in starts + asked.length:
                count_T[start : start + asked.length] += asked.hidden_L
            assert (count_T[asked.length + begin : asked.length + end] > 0).all(), (window, begin, end)
            assert -asked.length < starts.min()
            assert starts.max() < end


@pytest.mark.parametrize("score", SCORES)
def test_hidden_values_never_reach_their_own_reconstruction(detector, history, score):
    x_RL, observed_RL = history
    asked = ask(score)
    observe = jax.jit(
        lambda x: detector.model.apply({"params": detector.backbone}, x, observed_RL, asked, method=detect.observe)
    )
    for g, hidden in enumerate(asked.groups):
        at_L = np.repeat(np.isin(np.arange(4), hidden), 12)
        plain, spoilt = observe(x_RL), observe(jnp.where(at_L, 1e3, x_RL))
        jax.tree.map(np.testing.assert_array_equal, plain[g], spoilt[g])
        assert score == "forecast" or np.abs(plain[1 - g].mean_R1 - spoilt[1 - g].mean_R1).min() > 1


def test_a_forecast_score_knows_nothing_of_what_comes_later(detector, series):
    x_TC, observed_TC = series
    later = x_TC.copy()
    later[100:] = 5 * later[100:] + 3
    causal = detector._replace(asked=ask("forecast", stride=0.25))
    now, then = (causal.errors(x, observed_TC)[0] for x in (x_TC, later))
    np.testing.assert_array_equal(now[:100], then[:100])
    both, changed = (detector.errors(x, observed_TC)[0] for x in (x_TC, later))
    assert not np.allclose(both[80:96], changed[80:96])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("units", ["window", "scaled"])
def test_every_step_has_a_finite_score(detector, score, units):
    judge = detector._replace(asked=ask(score), units=units)
    rng = np.random.default_rng(0)
    for steps in (1, 5, 13, 47, 48, 49, 131):
        values = rng.normal(size=(steps, 3))
        odd = values.copy()
        odd[steps // 2] = [1e30, np.inf, np.nan]
        for x_TC in (values, odd, np.ones_like(values), np.full_like(values, np.nan)):
            for observed_TC in (~np.isnan(x_TC), ~np.isnan(x_TC) & (rng.random(values.shape) > 0.6)):
                error_STC = judge.errors(x_TC, observed_TC)
                assert error_STC.shape == (1, steps, 3)
                assert np.isfinite(error_STC).all()
                assert (error_STC >= 0).all()
                assert np.isfinite(moving_z(x_TC, observed_TC, 20)).all()


def test_a_missing_value_has_no_error_and_its_number_changes_nothing(detector, series):
    x_TC, observed_TC = series
    error_TC = detector.errors(x_TC, observed_TC)[0]
    assert (error_TC[~observed_TC] == 0).all()
    assert (error_TC[observed_TC] > 0).all()
    np.testing.assert_array_equal(error_TC, detector.errors(np.where(observed_TC, x_TC, np.nan), observed_TC)[0])


@pytest.mark.parametrize("other", [{"decoder_attention": "self"}, {"hiding": "value"}], ids=["self", "value"])
def test_a_group_is_answered_as_in_pretraining(detector, history, other):
    """Where queries see each other, too: they are hidden together there; and where hidden patches are zeros."""
    model = detector.model.clone(**other)
    params, (x_RL, _), asked = init(model, jax.random.key(3)), history, detector.asked
    whole_RL, hidden = jnp.ones_like(x_RL, bool), asked.groups[0]
    visible_RV, hidden_RM = (jnp.tile(jnp.array([n]), (len(x_RL), 1)) for n in (asked.visible(hidden), hidden))

    @jax.jit
    def both(variables):
        encoded = model.apply(variables, x_RL, whole_RL, asked, method=detect.observe)[0]
        window = x_RL, whole_RL, visible_RV, hidden_RM
        said = model.apply(variables, *window, norm="visible", units="scaled", method=model.reconstruct)
        return model.apply(variables, encoded, hidden, None, 4, method=detect.answer), said

    y_RMP, (said_RMP, target_RMP, _) = both({"params": params})
    want_RMP = x_RL.reshape(-1, 4, 12)[:, np.array(hidden)] + said_RMP - target_RMP
    np.testing.assert_allclose(y_RMP, want_RMP, atol=1e-4)


def test_channels_that_never_move_have_no_error_and_take_none_from_others(detector, series):
    x_TC, observed_TC = series
    wide = np.insert(x_TC, 1, 7.0, axis=1), np.insert(observed_TC, 1, True, axis=1)
    assert moves(*wide).tolist() == [True, False, True]
    error_TC = detector.errors(*wide)[0]
    assert (error_TC[:, 1] == 0).all()
    np.testing.assert_allclose(error_TC[:, [0, 2]], detector.errors(x_TC, observed_TC)[0], rtol=1e-4, atol=1e-6)


def test_errors_of_overlapping_windows_are_averaged(detector, series):
    """Against one window at a time, and no other around it."""
    x_TC, observed_TC = series
    total_TC, count_T1 = np.zeros((170, 2)), np.zeros((170, 1))
    for start in (0, 24, 48, 72, 96, 120, 122):
        at = slice(start, start + 48)
        total_TC[at] += detector.errors(x_TC[at], observed_TC[at])[0]
        count_T1[at] += 1
    np.testing.assert_allclose(detector.errors(x_TC, observed_TC)[0], total_TC / count_T1, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("units", ["window", "scaled"])
def test_the_error_of_a_window_is_that_of_the_models_parts(detector, history, units):
    x_RL, observed_RL = history
    params = {"params": detector.backbone}
    error_RL = detector._replace(units=units).errors(np.asarray(x_RL).T, np.asarray(observed_RL).T)[0].T
    for hidden, visible in (((0, 2), (1, 3)), ((1, 3), (0, 2))):
        at_RV, at_RM = (jnp.broadcast_to(jnp.array(of)[None], (5, 2)) for of in (visible, hidden))
        reconstruct = jax.jit(
            lambda *window: detector.model.apply(
                params, *window, norm="visible", units=units.replace("window", "normalised"), method="reconstruct"
            )
        )
        y_RMP, target_RMP, weight_RMP = reconstruct(x_RL, observed_RL, at_RV, at_RM)
        want = np.where(weight_RMP > 0, (y_RMP - target_RMP) ** 2, 0)
        np.testing.assert_allclose(error_RL.reshape(5, 4, 12)[:, hidden], want, rtol=2e-3, atol=1e-5)


def test_a_prompt_of_zeros_is_the_mask_token_alone_and_another_is_not(detector, series):
    none = prompts.make("position", 4, 16)
    some = {"tokens_MD": jax.random.normal(jax.random.key(0), (4, 16)).at[2:].set(0)}
    alone, zero, moved = detector.errors(*series, (None, none, some))
    np.testing.assert_array_equal(alone, zero)
    window = series[0][:48], series[1][:48]  # by itself
    alone, moved = detector.errors(*window, (None, some))
    changed_TC = (alone != moved) == series[1][:48]
    assert changed_TC[:24].all()
    assert (alone == moved)[24:].all()


def test_history_before_the_first_scored_step_is_read(detector, series):
    x_TC, observed_TC = series
    late = detector.errors(x_TC, observed_TC, begin=100)[0]
    assert late.shape == (70, 2)
    other = detector.errors(np.where(np.arange(170)[:, None] < 90, 3 * x_TC, x_TC), observed_TC, begin=100)[0]
    assert not np.allclose(late[:5], other[:5])
    assert detector.errors(x_TC, observed_TC, begin=170).shape == (1, 0, 2)


def test_in_the_windows_units_a_shift_and_a_scale_change_nothing(detector, series):
    x_TC, observed_TC = series
    plain, moved = (detector.errors(x, observed_TC)[0] for x in (x_TC, 4 * x_TC + 10))
    np.testing.assert_allclose(plain, moved, rtol=2e-2, atol=1e-4)


def test_neither_blocks_nor_devices_change_a_score(detector, series, monkeypatch):
    whole = detector.errors(*series)
    monkeypatch.setattr(detect, "ROWS", 3)
    np.testing.assert_allclose(detector.errors(*series), whole, rtol=1e-4, atol=1e-6)
    on = mesh.make(8)
    several = detector._replace(mesh=on, backbone=mesh.replicate(on, detector.backbone))
    np.testing.assert_allclose(several.errors(*series), whole, rtol=1e-4, atol=1e-6)


def test_channels_are_combined_by_their_mean_or_their_largest():
    error_TC = np.array([[1.0, 3.0], [2.0, 0.0]])
    assert combine(error_TC, "mean").tolist() == [2, 1]
    assert combine(error_TC, "max").tolist() == [3, 2]


def test_the_moving_z_score_is_that_of_the_steps_before(series):
    x_TC, observed_TC = series
    z_TC = moving_z(x_TC, observed_TC, 20)
    for t, c in np.ndindex(170, 2):
        past = x_TC[max(t - 20, 0) : t, c][observed_TC[max(t - 20, 0) : t, c]]
        want = abs(x_TC[t, c] - past.mean()) / max(past.std(), 0.1) if len(past) and observed_TC[t, c] else 0
        assert z_TC[t, c] == pytest.approx(want, rel=1e-6, abs=1e-9)
    np.testing.assert_array_equal(moving_z(x_TC, observed_TC, 20, 90), z_TC[90:])


def test_a_trained_backbone_finds_a_spike_and_a_still_stretch_in_a_sine(model):
    """250 steps of pre-training on the clean wave."""
    wave_T = np.sin(2 * np.pi * np.arange(600) / 24).astype(np.float32)
    panel = Panel(jnp.asarray(wave_T[None]), jnp.ones((1, 600), bool))
    problem = Problem(None, None, panel, mesh.make(1))
    windows = span((0, 600), 48, (24,), 1, "train")
    params = {"backbone": init(model, jax.random.key(0))}
    tx = optim.ALL.transform(optim.chain(peak=5e-3, warmup=0.1, steps=250, weight_decay=0.0, clip=1.0), params)
    loss = tasks.reconstruction(model, windows, ratio=0.5, tail_share=0.0, norm="visible", train=True)
    one = step.one(loss, tx, optim.ALL, problem.mesh, 32, windows.rows)
    state, _ = step.many(one)(step.start(params, tx), jnp.int32(250), Cached(panel), jax.random.key(1))
    judge = Detector(model, state.params["backbone"], ask(window=72), "window", problem.mesh)
    for begin, end, instead in ((250, 251, 3.0), (300, 312, 0.0)):
        x_T1 = wave_T[:, None].copy()
        x_T1[begin:end] = instead
        score_T = combine(judge.errors(x_T1, np.ones_like(x_T1, bool))[0], "mean")
        assert begin <= score_T.argmax() < end
