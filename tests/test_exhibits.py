"""What a run keeps to be looked at: windows as they are, intervals that cover, attention as the decoder pays it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import attention, baselines, evaluate, exhibits, prompts, tally
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


def test_intervals_are_those_that_the_results_measure(problem, model, params, tiny, tmp_path):
    """A forecast of 0 for all: its bounds are of validation's errors, and of test's values the shares are within."""

    def zero(panel, inputs, span, row_R):
        return {"naive 0": tuple(inputs["by"] * jnp.zeros((len(row_R), h)) for h in span.horizons)}

    tiny.tune.mode, season = "naive", 12
    spans = {split: problem.span(split, 48, (12, 20)) for split in ("validation", "test")}
    inputs = {"by": jnp.float32(1), "backbone": params}
    measure = evaluate.evaluator(zero, problem.mesh, 64, season=season)
    counted = [measure(problem.panel, inputs, span)["naive 0"][-1].tally[0] for span in spans.values()]
    exhibits.write(tmp_path, tiny, problem, model, zero, inputs, spans, {"naive": "naive 0"}, counted, season)
    with np.load(tmp_path / "exhibits.npz") as found, np.load(tmp_path / "samples.npz") as samples:
        low_ZSH, high_ZSH, covered_ZH = (found[key] for key in ("low_ZSH", "high_ZSH", "coverage_ZH"))
        centre_SH, seen_ST = samples["forecast_naive_SH"], samples["history_observed_ST"]
        history_ST, channel_S = samples["history_ST"], samples["channel_S"]
    apart = 3 * spans["validation"].apart(-1)
    judged = tally.judge(tally.DECILES, *(part[None] for part in counted), apart)
    known_H = counted[1][..., 0].sum(1)
    np.testing.assert_allclose(covered_ZH @ known_H / known_H.sum(), [judged["coverage_80"], judged["coverage_95"]])
    scale_S = problem.scaler.scale_C[[problem.series.names_C.index(name) for name in channel_S]]
    unit_S = np.asarray(tally.unit(history_ST / scale_S[:, None], seen_ST, season)) * scale_S
    for z, level in enumerate((0.8, 0.95)):
        for bound_SH, z_H in zip((low_ZSH[z], high_ZSH[z]), tally.bounds(counted[0], level, apart), strict=True):
            np.testing.assert_allclose(bound_SH, centre_SH + unit_S[:, None] * z_H, rtol=1e-4)


def test_without_tallies_nothing_is_drawn_around_a_forecast(problem, model, params, tiny, tmp_path):
    spans = {"validation": problem.span("validation", 48, (12, 20))}
    inputs, tiny.tune.mode = {"by": jnp.float32(1), "backbone": params}, "naive"
    exhibits.write(tmp_path, tiny, problem, model, naive, inputs, spans, {"naive": "naive 0"}, [], 24)
    with np.load(tmp_path / "exhibits.npz") as found:
        assert "low_ZSH" not in found
        assert found["rows"] == 500


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
    history, variables = past(problem.panel, span, jnp.asarray(row_R)), {"params": params}
    encoded = jax.jit(lambda: model.apply(variables, *history, method=model.observe))()
    prompt_RMD = prompts.tokens(prompt, 2, jnp.asarray(row_R % 3)) if prompt else jnp.zeros((2, model.width))
    prompt_RMD = prompt_RMD if prompt_RMD.ndim == 3 else prompt_RMD[None]
    _, (weight_RKMN,), _ = jax.jit(lambda: model.apply(variables, encoded, prompt_RMD, method=attention.walk))()
    np.testing.assert_allclose(ours[0], weight_RKMN.mean(0), atol=1e-5)
    np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-4)
