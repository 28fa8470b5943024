"""What a run keeps to be looked at: windows as they are, intervals that cover, attention as the decoder pays it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import attention, baselines, exhibits, intervals, prompts
from ptt_jax.windows import past, take


def naive(panel, inputs, span, row_R):
    x_RT, _ = past(panel, span, row_R)
    return {"naive 0": tuple(inputs["by"] * baselines.seasonal_naive(x_RT, 24, h) for h in span.horizons)}


def test_windows_are_seen_in_the_order_that_was_asked_for(problem, monkeypatch):
    monkeypatch.setattr(exhibits, "ROWS", 8)
    span = problem.span("test", 48, (12, 20))
    row_R = np.array([5, 3, 100, 7, 8, 9, 50, 51, 52, 4, 0])  # a dispatch and a part of one
    view = exhibits.viewer(problem, naive, {"by": jnp.float32(2)}, {"naive": "naive 0"})
    x_RL, observed_RL, made = view(span, row_R)
    for ours, theirs in zip((x_RL, observed_RL), take(problem.panel, span, jnp.asarray(row_R)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(made["naive"], 2 * x_RL[:, 24:44])


def test_samples_are_of_several_channels_and_spread_over_the_split(problem):
    span = problem.span("test", 48, (12, 20))
    for count in (1, 2, 3, 6, 7):
        row_S = exhibits.pick(span, count)
        assert len(row_S) <= max(count, 1)
        assert len({*(row_S % 3)}) == min(3, count)
        assert row_S.max() // 3 < span.counts[-1]


def test_intervals_cover_what_is_like_that_which_they_were_made_from():
    rng = np.random.default_rng(0)
    wide_1HC = (1 + np.arange(8.0))[None, :, None] * np.array([1.0, 5.0])[None, None]
    residual_WHC, spread_WC = rng.normal(size=(400, 8, 2)) * wide_1HC, np.ones((400, 2))
    kept = intervals.fit(residual_WHC, spread_WC)
    fresh_WHC = rng.normal(size=(400, 8, 2)) * wide_1HC
    fresh_WHC[:, 3] = np.nan
    found_ZH = exhibits.covered(kept, fresh_WHC, spread_WC)
    assert np.isnan(found_ZH[:, 3]).all()
    np.testing.assert_allclose(np.delete(found_ZH, 3, 1), [[0.8] * 7, [0.95] * 7], atol=0.04)
    moved_ZH = exhibits.covered(kept, fresh_WHC, spread_WC / 3)  # a history that moves less has narrower intervals
    assert (np.delete(moved_ZH, 3, 1) < 0.6).all()
    (low_HC, high_HC), first_HC = kept.bounds(np.zeros((8, 2)), kept.ratio_C, 80), fresh_WHC[:1]
    one = exhibits.covered(kept, first_HC, np.ones((1, 2)))[0]
    inside_HC = (first_HC[0] >= low_HC) & (first_HC[0] <= high_HC)
    np.testing.assert_allclose(np.delete(one, 3), np.delete(inside_HC.mean(1), 3))


@pytest.mark.parametrize("kind", ["position", "channel", None])
def test_attention_is_the_mean_of_what_the_decoder_pays(problem, model, params, kind, monkeypatch):
    monkeypatch.setattr(exhibits, "ROWS", 16)
    span = problem.span("test", 48, (12, 20))
    prompt = None
    if kind:
        shapes = prompts.make(kind, 2, model.width, 3)
        prompt = jax.tree.map(lambda a: jax.random.normal(jax.random.key(1), a.shape), shapes)
    ours = exhibits.attend(problem, model, params, prompt, span)
    row_R = np.random.default_rng(0).integers(span.counts[-1] * 3, size=16)
    encoded = model.apply({"params": params}, *past(problem.panel, span, jnp.asarray(row_R)), method=model.observe)
    prompt_RMD = prompts.tokens(prompt, 2, jnp.asarray(row_R % 3)) if prompt else jnp.zeros((2, model.width))
    prompt_RMD = prompt_RMD if prompt_RMD.ndim == 3 else prompt_RMD[None]
    _, (weight_RKMN,), _ = model.apply({"params": params}, encoded, prompt_RMD, method=attention.walk)
    np.testing.assert_allclose(ours[0], weight_RKMN.mean(0), atol=1e-5)
    np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-4)
