"""The theorems of the method: they hold for any weights, so random ones will do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import tasks
from ptt_jax.layers import attend, instance_stats
from ptt_jax.model import CrossMAE, group, init


@functools.partial(jax.jit, static_argnums=(0, 5))  # op by op, a forecast compiles a hundred little programs
def forecast(model, params, x_RT, observed_RT, prompt_MD=None, horizon=24):
    return model.apply({"params": params}, x_RT, observed_RT, prompt_MD, horizon, method=model.forecast)


def prompt(patches: int, width: int = 16):
    return jax.random.normal(jax.random.key(7), (patches, width))


def test_zero_prompts_give_the_zero_shot_forecast_to_the_bit(model, params, history):
    zero = forecast(model, params, *history, jnp.zeros((2, 16)))
    np.testing.assert_array_equal(zero, forecast(model, params, *history))
    assert np.abs(zero - forecast(model, params, *history, prompt(2))).max() > 1e-3


def test_a_forecast_is_the_reconstruction_of_a_hidden_end(model, params, history):
    """What pre-training taught of the positions after the history is what is asked for."""
    x_RT, observed_RT = history
    ahead = (0, 0), (0, 24)
    window = jnp.pad(x_RT, ahead), jnp.pad(observed_RT, ahead)
    at = (jnp.tile(of, (len(x_RT), 1)) for of in (jnp.arange(4), jnp.arange(4, 6)))
    read = jax.jit(functools.partial(model.apply, norm="visible", method=model.reconstruct))
    y_RMP = read({"params": params}, *window, *at)[0]
    mean_R1, scale_R1 = instance_stats(x_RT, observed_RT.astype(jnp.float32))
    y_RH = forecast(model, params, x_RT, observed_RT)
    np.testing.assert_allclose(y_RH, y_RMP.reshape(len(x_RT), 24) * scale_R1 + mean_R1, rtol=1e-5, atol=1e-5)


def test_prompts_of_a_short_horizon_are_a_prefix_of_those_of_a_long_one(model, params, history):
    long = forecast(model, params, *history, prompt(4), 48)
    short = forecast(model, params, *history, prompt(4)[:1], 12)
    np.testing.assert_allclose(short, long[:, :12], rtol=1e-5, atol=1e-5)


def test_queries_do_not_see_each_other(model, params, history):
    jacobian = jax.jit(jax.jacobian(lambda p: forecast(model, params, *history, p, 36)))(prompt(3))  # (R, H, M, D)
    by_patch = np.abs(np.asarray(jacobian)).reshape(5, 3, 12, 3, 16).max((0, 2, 4))
    assert (by_patch[~np.eye(3, dtype=bool)] == 0).all()
    assert (np.diag(by_patch) > 1e-4).all()


@pytest.mark.parametrize("norm", ["visible", "window"])
def test_hidden_values_never_reach_the_prediction(model, params, norm):
    x_RL = jax.random.normal(jax.random.key(0), (2, 72))
    visible, hidden = jnp.array([[0, 2, 3], [1, 4, 5]]), jnp.array([[1, 4, 5], [0, 2, 3]])

    @jax.jit
    def predict(x_RL):
        observed_RL = jnp.ones_like(x_RL, bool)
        variables, window = {"params": params}, (x_RL, observed_RL, visible, hidden)
        return model.apply(variables, *window, norm=norm, method=model.reconstruct)[0]

    if norm == "window":  # the window's statistics leak by design: what leaves them as they are must change nothing
        swapped = x_RL.at[0, 12:24].set(x_RL[0, 48:60]).at[0, 48:60].set(x_RL[0, 12:24])
        np.testing.assert_allclose(predict(swapped)[0], predict(x_RL)[0], rtol=1e-5, atol=1e-5)
        assert np.abs(predict(x_RL[:, ::-1])[0] - predict(x_RL)[0]).max() > 1e-3
        x_RL = x_RL.at[0, 12:24].set(jnp.where(jnp.arange(12) % 2, 1.0, -1.0))
        flipped = x_RL.at[0, 12:24].multiply(-1.0)
        np.testing.assert_allclose(predict(flipped)[0], predict(x_RL)[0], rtol=1e-5, atol=1e-5)
        return
    gradient = np.abs(jax.jit(jax.grad(lambda x: predict(x)[0].sum()))(x_RL)).reshape(2, 6, 12)
    assert (gradient[0, [1, 4, 5]] == 0).all()
    assert (gradient[0, [0, 2, 3]] > 0).all()
    assert (gradient[1] == 0).all()


def test_values_at_missing_steps_never_reach_the_encoder(model, params, history):
    x_RT, observed_RT = history
    wild = jnp.where(observed_RT, x_RT, 1e6)
    np.testing.assert_array_equal(
        forecast(model, params, x_RT, observed_RT), forecast(model, params, wild, observed_RT)
    )


def test_forecasts_move_with_a_shift_and_a_scale_of_the_series(model, params, history):
    x_RT, observed_RT = history
    y_RH = forecast(model, params, x_RT, observed_RT, prompt(2))
    moved = forecast(model, params, 100 + 4 * x_RT, observed_RT, prompt(2))
    np.testing.assert_allclose(moved, 100 + 4 * y_RH, rtol=1e-4)


def test_missing_values_never_reach_the_forecast_of_wholly_missing_patches(model, params, history):
    x_RT, observed_RT = history
    observed_RT = observed_RT.at[:, 12:24].set(False)
    wild = x_RT.at[:, 12:24].set(1e6)
    np.testing.assert_array_equal(
        forecast(model, params, x_RT, observed_RT), forecast(model, params, wild, observed_RT)
    )


def test_a_history_without_one_value_gives_a_finite_forecast(model, params):
    assert np.isfinite(forecast(model, params, jnp.zeros((2, 48)), jnp.zeros((2, 48), bool))).all()


@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_constant_windows_give_finite_forecasts(model, params, offset, spread):
    x_RT = jnp.asarray(offset + spread * np.random.default_rng(0).normal(size=(2, 48)), jnp.float32)
    y_RH = forecast(model, params, x_RT, jnp.ones_like(x_RT, bool))
    assert np.abs(y_RH - offset).max() < 1 + 1e-6 * abs(offset)


@pytest.mark.parametrize("position", ["rotary", "sincos", "learned"])
def test_the_position_of_a_query_matters_under_every_scheme(position, history):
    model = CrossMAE(12, 16, 16, 2, 1, 1, patches=6, position=position)
    params = init(model, jax.random.key(0))
    y_RMP = np.asarray(forecast(model, params, *history)).reshape(5, 2, 12)
    assert np.abs(y_RMP[:, 0] - y_RMP[:, 1]).max() > 1e-5


def test_bfloat16_compute_keeps_float32_parameters_and_outputs(params, history):
    half = CrossMAE(12, 16, 16, 2, 1, 1, patches=6, dtype=jnp.bfloat16)
    whole = CrossMAE(12, 16, 16, 2, 1, 1, patches=6)
    assert {leaf.dtype for leaf in jax.tree.leaves(init(half, jax.random.key(0)))} == {jnp.dtype("float32")}
    a, b = forecast(half, params, *history), forecast(whole, params, *history)
    assert a.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()


def equations(jaxpr):
    """Every equation of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_statistics_softmax_and_output_are_float32_under_bfloat16(params, history):
    half = CrossMAE(12, 16, 16, 2, 1, 1, patches=6, dtype=jnp.bfloat16)
    program = jax.make_jaxpr(lambda p, x, o: half.apply({"params": p}, x, o, None, 24, method=half.forecast))
    every = list(equations(program(params, *history).jaxpr))
    exact = [e for e in every if e.primitive.name in ("exp", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "div")]
    assert {"exp", "rsqrt", "reduce_sum", "reduce_max"} <= {e.primitive.name for e in exact}
    floats = {v.aval.dtype for e in exact for v in (*e.invars, *e.outvars) if jnp.issubdtype(v.aval.dtype, jnp.inexact)}
    assert floats == {jnp.dtype("float32")}
    products = [e for e in every if e.primitive.name == "dot_general"]
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}
    assert products[-1].outvars[0].aval.shape[-1] == 12  # the head
    assert products[-1].outvars[0].aval.dtype == jnp.float32


def test_the_bias_of_the_head_keeps_its_digits_under_bfloat16(params):
    half, bias = CrossMAE(12, 16, 16, 2, 1, 1, patches=6, dtype=jnp.bfloat16), jnp.float32(1 + 2**-12)
    still = {**params, "head": {"kernel": jnp.zeros((16, 12)), "bias": jnp.full(12, bias)}}
    y_RMP = half.apply({"params": still}, jnp.ones((2, 3, 16), jnp.bfloat16), method=lambda m, z_RMD: m.head(z_RMD))
    assert y_RMP.dtype == jnp.float32
    assert (y_RMP == bias).all()


def test_weights_and_values_are_summed_in_float32_under_bfloat16():
    """Of the attention: a sum of many terms in bfloat16 would lose the small ones."""
    q_RQKh, k_RSKh = (jnp.ones((2, n, 2, 4), jnp.bfloat16) for n in (3, 5))
    for queries in (q_RQKh, q_RQKh[:1]):
        program = jax.make_jaxpr(attend)(queries, k_RSKh, k_RSKh, jnp.ones((2, 5), bool))
        products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
        assert [e.params["preferred_element_type"] for e in products] == [jnp.float32] * 2


def test_every_parameter_belongs_to_a_group(params):
    paths = {"/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert {group(p) for p in paths} == {"embed", "encoder", "mask_token", "decoder", "head"}


def test_the_decoder_holds_no_self_attention(model, params, history):
    """With one visible patch, attention over it alone must make the output the same whatever the query asks."""
    keys = [p for p in params if p.startswith("decoder_0")]
    assert keys == ["decoder_0"]
    x_RT, observed_RT = (a[:, :12] for a in history)
    changed = jax.tree.map(lambda a: a, params)
    changed["decoder_0"]["attention"]["query"] = jax.tree.map(
        lambda a: 3 * a + 1, params["decoder_0"]["attention"]["query"]
    )
    np.testing.assert_allclose(
        forecast(model, params, x_RT, observed_RT), forecast(model, changed, x_RT, observed_RT), rtol=1e-5, atol=1e-6
    )


def test_masks_hide_what_they_should():
    visible_RV, hidden_RM = tasks.hide(jax.random.key(0), 200, 10, 6, 4, 0.5)
    together = np.sort(np.concatenate([visible_RV, hidden_RM], axis=1), axis=1)
    assert (together == np.arange(10)).all()
    tails = [np.isin(np.arange(10 - n, 10), row).all() for row in np.asarray(hidden_RM) for n in (1,)]
    assert 0.7 < np.mean(tails) < 0.9  # half by tail, of the others 6 in 10 by chance
    whole = np.asarray(tasks.hide(jax.random.key(0), 600, 30, 6, 6, 1.0)[1])
    assert (whole[:, -1] == 29).all()
    assert len({tuple(row) for row in whole.tolist()}) > 50
    # Tails of 1 to 6 patches, each as often as another; chance lengthens few of them among 30 patches.
    lengths = [next(n for n in range(1, 8) if 29 - n not in row) for row in whole]
    shares = np.bincount(lengths, minlength=7)[1:] / 600
    assert shares.min() > 0.08, shares
    assert shares.max() < 0.28, shares


def test_views_average_the_forecasts_of_shorter_histories(model, params, history):
    x_RT, observed_RT = history
    prompt_MD = jax.random.normal(jax.random.key(5), (2, 16))

    def of(model, lookback):
        return forecast(model, params, x_RT[:, -lookback:], observed_RT[:, -lookback:], prompt_MD, 20)

    mean = sum(of(model, T) for T in (48, 36, 24)) / 3
    np.testing.assert_allclose(of(model.clone(views=3), 48), mean, atol=1e-5)
    assert np.abs(np.asarray(of(model, 48) - mean)).max() > 1e-2


def test_a_view_of_missing_values_alone_says_nothing(model, params, history):
    x_RT, observed_RT = history
    observed_RT = observed_RT.at[0, -24:].set(False)  # of 48, 36 and 24 steps, the last view sees nothing of row 0

    def of(model, lookback):
        return forecast(model, params, x_RT[:, -lookback:], observed_RT[:, -lookback:], None, 20)

    whole, shorter, shortest = (of(model, T) for T in (48, 36, 24))
    viewed = of(model.clone(views=3), 48)
    np.testing.assert_allclose(viewed[0], (whole + shorter)[0] / 2, atol=1e-5)
    np.testing.assert_allclose(viewed[1:], (whole + shorter + shortest)[1:] / 3, atol=1e-5)
    blind = forecast(model.clone(views=3), params, x_RT, jnp.zeros_like(observed_RT), None, 20)
    assert np.isfinite(blind).all()


def test_a_horizon_of_part_of_a_patch_is_forecast_whole(model, params, history):
    for horizon in (1, 12, 13, 20):
        of_horizon = functools.partial(model.apply, {"params": params}, *history, None, horizon, method=model.forecast)
        assert jax.eval_shape(of_horizon).shape == (5, horizon)
