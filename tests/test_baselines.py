"""The conventional head beside which prompts are measured (the older baselines are tested in test_evaluate.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import baselines, mesh, optim, step, tasks
from ptt_jax.encodings import Cached
from ptt_jax.optim import Groups
from ptt_jax.windows import take

WHOLE = Groups(("embed", "encoder", "probe"))


@pytest.fixture
def probed(model, params):
    """The backbone with a head of random weights."""
    keys = jax.random.split(jax.random.key(1))
    zeros = baselines.make_probe(model, 48, 20)
    head = {k: jax.random.normal(key, zeros[k].shape) / 8 for k, key in zip(zeros, keys, strict=True)}
    return {"backbone": params, "probe": head}


@pytest.fixture
def forecast(model):
    return jax.jit(lambda params, *history: baselines.probe(model, params, *history))


def test_sums_are_those_of_all_rows_and_do_not_depend_on_how_many_blocks_are_asked_for_at_once(problem, monkeypatch):
    span = problem.span("train", 48, (24,))
    expected = baselines.moments(problem, span, None)
    monkeypatch.setattr(baselines, "BLOCK", 128)
    assert span.counts[-1] * span.channels > 4 * 128
    each = []
    for ahead in (0, 2, 99):
        monkeypatch.setattr(baselines, "AHEAD", ahead)
        each.append(baselines.moments(problem, span, None))
    for one, *others, of in zip(*each, expected, strict=True):
        np.testing.assert_allclose(one, of, rtol=1e-5, atol=1e-3)
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_a_new_head_of_zeros_forecasts_the_mean_of_the_history(model, params, history, forecast):
    x_RT, observed_RT = history
    y_RH = forecast({"backbone": params, "probe": baselines.make_probe(model, 48, 20)}, x_RT, observed_RT)
    mean_R1 = (x_RT * observed_RT).sum(1, keepdims=True) / observed_RT.sum(1, keepdims=True)
    np.testing.assert_allclose(y_RH, np.broadcast_to(mean_R1, (5, 20)), rtol=1e-5)


def test_a_new_head_moves_with_a_shift_and_a_scale_of_the_series(probed, history, forecast):
    x_RT, observed_RT = history
    y_RH = forecast(probed, x_RT, observed_RT)
    assert np.std(y_RH, axis=1).min() > 0.1
    np.testing.assert_allclose(forecast(probed, 100 + 4 * x_RT, observed_RT), 100 + 4 * y_RH, rtol=1e-4)


def test_a_patch_without_a_value_says_nothing_to_a_new_head(probed, history, forecast):
    x_RT, observed_RT = history
    observed_RT = observed_RT.at[:, 12:24].set(False)
    head = probed["probe"]
    other = {**probed, "probe": {**head, "kernel": head["kernel"].at[16:32].add(1.0)}}  # of the second of four patches
    np.testing.assert_array_equal(forecast(probed, x_RT, observed_RT), forecast(other, x_RT, observed_RT))


@pytest.mark.parametrize("groups", [optim.PROBE, WHOLE])
def test_a_step_moves_the_new_head_and_only_what_is_tuned_beside_it(problem, model, probed, groups):
    span = problem.span("train", 48, (20,))
    tx = groups.transform(optim.chain(peak=0.1, warmup=0.0, steps=9, weight_decay=0.5, clip=1.0), probed)
    one = step.one(baselines.probing(model, span, penalty="mse"), tx, groups, mesh.make(1), 16, span.rows)
    after, _ = jax.jit(one)(step.start(probed, tx), Cached(problem.panel), jax.random.key(0))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), probed, after.params)
    assert all(moved["probe"].values())
    expected = {"embed", "encoder"} if groups is WHOLE else set()
    assert {optim.group(k) for k, v in moved["backbone"].items() if any(jax.tree.leaves(v))} == expected


def test_a_new_head_on_a_frozen_encoder_is_linear_regression(problem, model, params):
    """At the closed-form solution, in scaled units, the loss is the residual and its gradient is zero."""
    span, row_R = problem.span("train", 48, (20,)), jnp.arange(300)
    panel = problem.panel.replace(observed_CT=jnp.ones_like(problem.panel.observed_CT))
    x_RL, observed_RL = take(panel, span, row_R)
    read = jax.jit(lambda *history: model.apply({"params": params}, *history, method=model.read))
    z_RND, _, mean_R1, scale_R1 = (np.asarray(a, np.float64) for a in read(x_RL[:, :48], observed_RL[:, :48]))
    inputs = np.concatenate([z_RND.reshape(300, -1), np.ones((300, 1))], 1) * scale_R1
    targets = np.asarray(x_RL[:, 48:], np.float64) - mean_R1
    weights = np.linalg.lstsq(inputs, targets, rcond=1e-6)[0]
    residual = np.sum((inputs @ weights - targets) ** 2)

    def loss(head):
        tuned = {"backbone": params, "probe": head}
        return baselines.probing(model, span, penalty="mse")(tuned, Cached(panel), row_R, jax.random.key(0))[0].sum()

    solved = {"kernel": jnp.asarray(weights[:-1], jnp.float32), "bias": jnp.asarray(weights[-1], jnp.float32)}
    evaluate = jax.jit(jax.value_and_grad(loss))
    start, slope = evaluate(baselines.make_probe(model, 48, 20))
    value, gradient = evaluate(solved)
    np.testing.assert_allclose(value, residual, rtol=1e-3)
    assert value < 0.8 * start
    assert np.abs(gradient["kernel"]).max() < 1e-2 * np.abs(slope["kernel"]).max()


def test_the_loss_of_a_new_head_is_that_of_a_prompt_when_both_forecast_the_same(problem, model, params):
    """A head of zeros and a mask token whose patch is zero: both are the mean of the history."""
    span, row_R = problem.span("train", 48, (20,)), jnp.arange(40)
    still = {**params, "head": jax.tree.map(jnp.zeros_like, params["head"])}
    data, key = Cached(problem.panel), jax.random.key(0)
    probed = {"backbone": still, "probe": baselines.make_probe(model, 48, 20)}
    a = jax.jit(baselines.probing(model, span, penalty="mae"))(probed, data, row_R, key)
    b = jax.jit(tasks.forecasting(model, span, penalty="mae"))({"backbone": still}, data, row_R, key)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
