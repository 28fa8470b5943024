import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import encodings, intervals, mesh, optim, problems, prompts, step, tasks
from ptt_jax.encodings import Cached
from ptt_jax.layers import instance_stats
from ptt_jax.windows import take


@pytest.fixture
def tuning(problem, params):
    span = problem.span("train", 48, (12, 20))
    return span, {"backbone": params, "prompt": prompts.make("position", 2, 16)}


def test_the_loss_counts_hidden_observed_values_alone(problem, model, params):
    span = problem.span("train", 48, (24,))
    loss = jax.jit(tasks.reconstruction(model, span, ratio=0.5, tail_share=0.0, norm="window", train=False))
    row_R, key = jnp.arange(40), jax.random.key(0)
    _, count = loss({"backbone": params}, Cached(problem.panel), row_R, key)
    observed_RNP = np.asarray(tasks.take(problem.panel, span, row_R)[1]).reshape(40, 6, 12)
    _, hidden_RM = tasks.hide(jax.random.split(key)[0], 40, 6, 3, 2, 0.0)
    assert count.tolist() == [observed_RNP[r, np.asarray(hidden_RM[r])].sum() for r in range(40)]
    assert count.sum() < 40 * 3 * 12  # the series has missing values


def test_the_value_of_a_missing_target_changes_nothing(problem, model, tuning):
    span, params = tuning
    loss = jax.jit(tasks.forecasting(model, span, penalty="mse"))
    hole = problem.panel.observed_CT.at[:, 50:53].set(False)
    panels = [
        problem.panel.replace(values_CT=problem.panel.values_CT.at[:, 50:53].set(v), observed_CT=hole)
        for v in (0.0, 99.0)
    ]
    row_R = jnp.arange(2 * 3)  # histories end at 48, so that 50 to 53 are targets
    values = [loss(params, Cached(p), row_R, jax.random.key(0)) for p in panels]
    np.testing.assert_array_equal(values[0][0], values[1][0])
    assert (values[0][1] <= 20 - 2).all()


@pytest.mark.parametrize("penalty", ["mse", "mae", "huber"])
def test_the_tuning_loss_is_the_error_of_the_forecast_in_scaled_space(problem, model, tuning, penalty):
    span, params = tuning
    row_R = jnp.arange(10)
    total, count = jax.jit(tasks.forecasting(model, span, penalty=penalty))(
        params, Cached(problem.panel), row_R, jax.random.key(0)
    )
    x_RL, observed_RL = tasks.take(problem.panel, span, row_R)
    forecast = jax.jit(lambda *history: model.apply(*history, None, 20, method=model.forecast))
    y_RH = forecast({"params": params["backbone"]}, x_RL[:, :48], observed_RL[:, :48])
    e = np.asarray(y_RH - x_RL[:, 48:], np.float64)[np.asarray(observed_RL[:, 48:])]
    by_hand = {"mse": e**2, "mae": np.abs(e), "huber": np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5)}[penalty]
    np.testing.assert_allclose(total.sum(), by_hand.sum(), rtol=1e-5)
    assert count.sum() == len(e)


def test_windows_that_only_hold_a_short_horizon_teach_that_one(problem, model, tuning):
    span, params = tuning
    last = jnp.array([span.rows - 1])
    _, count = jax.jit(tasks.forecasting(model, span, penalty="mse"))(
        params, Cached(problem.panel), last, jax.random.key(0)
    )
    assert 0 < count.sum() <= 12


def test_cached_encodings_give_the_loss_and_gradient_of_fresh_ones(problem, model, tuning):
    span, params = tuning
    loss = jax.jit(tasks.forecasting(model, span, penalty="mse"))
    cached = encodings.encode_all(model, params["backbone"], problem, span, 64, 2**30, jnp.float32)
    assert cached.encoded is not None
    assert cached.encoded_bytes > span.rows * 4 * 16 * 4

    def grad(data):
        def total(prompt):
            return loss({**params, "prompt": prompt}, data, jnp.arange(30), jax.random.key(0))[0].sum()

        return jax.jit(jax.grad(total))(params["prompt"])

    fresh, stored = grad(Cached(problem.panel)), grad(cached)
    np.testing.assert_allclose(fresh["tokens_MD"], stored["tokens_MD"], rtol=1e-4, atol=1e-4)
    assert np.abs(stored["tokens_MD"]).max() > 1


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_past_the_budget_are_encoded_on_the_fly_and_no_others(problem, model, params, devices):
    on = mesh.make(devices)
    problem = problems.prepare(problem.series, on)
    span, backbone = problem.span("train", 48, (12, 20)), mesh.replicate(on, params)
    whole = encodings.encode_all(model, backbone, problem, span, 64, 2**30, jnp.float32)
    assert whole.complete
    some = encodings.encode_all(model, backbone, problem, span, 64, whole.encoded_bytes // 2, jnp.float32)
    assert 0.4 * whole.stored < some.stored <= 0.5 * whole.stored
    assert not some.complete

    # What is stored is made wrong, so that one sees which rows came from where.
    spoilt = some.replace(encoded=some.encoded.replace(mean_R1=some.encoded.mean_R1 + 100))

    @jax.jit
    def encode(data, row_R):
        return encodings.encode(model, backbone, data, span, mesh.split(on, row_R))

    for seed in range(3):
        row_R = jax.random.randint(jax.random.key(seed), (48,), 0, span.rows if seed else some.stored)
        edge = [some.stored - 1, some.stored, some.stored + 1] if seed else [0, some.stored - 1, some.stored - 1]
        row_R = row_R.at[:3].set(jnp.array(edge))
        ours, theirs = encode(spoilt, row_R), encode(whole, row_R)
        shift_R, stored_R = np.round(ours.mean_R1[:, 0] - theirs.mean_R1[:, 0]), np.asarray(row_R < some.stored)
        assert (shift_R[~stored_R] == 0).all()
        new = np.sum(shift_R[stored_R] == 0)  # the last turn's part is filled up, on each device
        assert new < stored_R.sum() if seed else new == 0
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours.memory, theirs.memory)


def test_a_budget_that_is_too_small_caches_nothing(problem, model, params):
    span = problem.span("train", 48, (12, 20))
    assert encodings.encode_all(model, params, problem, span, 64, 1000, jnp.float32).encoded is None


def test_prompts_are_sliced_shared_counted_and_named():
    prompt = {"tokens_MD": jnp.arange(12.0).reshape(4, 3)}
    np.testing.assert_array_equal(prompts.tokens(prompt, 2, jnp.zeros(1, int)), prompt["tokens_MD"][:2])
    np.testing.assert_array_equal(prompts.cut(prompt, 3)["tokens_MD"], prompt["tokens_MD"][:3])
    assert prompts.tokens(prompts.make("shared", 4, 3), 4, jnp.zeros(1, int)).shape == (4, 3)
    assert (prompts.size(prompts.make("shared", 4, 3)), prompts.size(prompts.make("position", 4, 3))) == (3, 12)
    assert [prompts.patches(h, 24) for h in (1, 24, 25, 96, 720)] == [1, 1, 2, 4, 30]
    assert prompts.name("ETTh1", (96, 720)) == "ETTh1-96-720"


def compiled(problem, model, params, groups, data, span):
    tx = groups.transform(optim.chain(peak=1e-3, warmup=0.1, steps=9, weight_decay=0.0, clip=1.0), params)
    one = step.one(tasks.forecasting(model, span, penalty="mse"), tx, groups, problem.mesh, 64, span.rows)
    return jax.jit(one).lower(step.start(params, tx), data, jax.random.key(0)).compile()


def test_the_frozen_backward_pass_is_absent(problem, model, tuning):
    """Forward of everything and backward through the decoder's queries alone, against all of both."""
    span, params = tuning
    full = optim.Groups((*optim.ALL.tuned, "prompt"))
    cached = encodings.encode_all(model, params["backbone"], problem, span, 64, 2**30, jnp.float32)
    whole = compiled(problem, model, params, full, Cached(problem.panel), span)
    tuned = compiled(problem, model, params, optim.PROMPT, Cached(problem.panel), span)
    stored = compiled(problem, model, params, optim.PROMPT, cached, span)
    flops = [c.cost_analysis()["flops"] for c in (whole, tuned, stored)]
    assert flops[1] < 0.6 * flops[0]
    assert flops[2] < 0.35 * flops[0]
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (whole, tuned, stored)]
    assert temporary[1] < 0.6 * temporary[0]
    assert temporary[2] < 0.4 * temporary[0]


def test_which_rows_are_cached_decides_no_digit(problem, model, params):
    """Even where the cache holds fewer digits than are computed."""
    span, row_R = problem.span("train", 48, (12, 20)), jnp.array([0, 5, 400, 872])

    def read(budget, dtype):
        data = encodings.encode_all(model, params, problem, span, 64, budget, jnp.dtype(dtype))
        return data.stored, jax.jit(lambda data: encodings.encode(model, params, data, span, row_R))(data)

    (none, fresh), (some, mixed), (_, exact) = read(0, "bfloat16"), read(100_000, "bfloat16"), read(0, "float32")
    assert none == 0
    assert 5 < some < 400
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), fresh, mixed)
    assert np.abs(fresh.memory[0][0] - exact.memory[0][0]).max() > 1e-3


def test_what_is_cheap_is_made_again_on_the_way_back_through_the_decoder(problem, model, tuning, monkeypatch):
    """Fewer bytes wait for the backward pass than without jax.checkpoint."""
    span, params = tuning
    loss, data = tasks.forecasting(model, span, penalty="mse"), Cached(problem.panel)

    def kept():
        def total(prompt):
            return loss({**params, "prompt": prompt}, data, jnp.arange(64), jax.random.key(0))[0].sum()

        leaves = jax.tree.leaves(jax.eval_shape(lambda prompt: jax.vjp(total, prompt)[1], params["prompt"]))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    some = kept()
    monkeypatch.setattr(jax, "checkpoint", lambda f, policy: f)
    assert some < 0.7 * kept(), (some, kept())


@functools.partial(jax.jit, static_argnums=0)  # op by op it takes a hundred little programs
def rebuild(model, params, *window):
    return model.apply({"params": params}, *window, norm="window", method=model.reconstruct)


@pytest.mark.parametrize("penalty", ["mse", "mae", "huber"])
@pytest.mark.parametrize("units", ["normalised", "scaled"])
def test_reconstruction_has_its_units_and_its_penalty(problem, model, params, penalty, units):
    """Against the model's own outputs, by numpy."""
    span = problem.span("train", 48, (24,))
    row_R, key = jnp.arange(6), jax.random.key(1)
    ask = {"ratio": 0.5, "tail_share": 0.0, "norm": "window", "train": False}
    loss = jax.jit(tasks.reconstruction(model, span, **ask, penalty=penalty, units=units))
    sum_R, count_R = loss({"backbone": params}, encodings.Cached(problem.panel), row_R, key)
    x_RL, observed_RL = take(problem.panel, span, row_R)
    visible_RV, hidden_RM = tasks.hide(jax.random.split(key)[0], 6, 6, 3, 2, 0.0)
    window = x_RL, observed_RL, visible_RV, hidden_RM
    y, target, weight = rebuild(model, params, *window)
    error = np.asarray(y - target)
    if units == "scaled":
        scale_R1 = instance_stats(x_RL, observed_RL.astype(jnp.float32))[1]
        assert np.ptp(np.asarray(scale_R1)) > 0.01
        error = error * np.asarray(scale_R1)[:, :, None]
    size = np.abs(error)
    wanted = {"mse": error**2, "mae": size, "huber": np.where(size <= 1, error**2 / 2, size - 0.5)}[penalty]
    np.testing.assert_allclose(sum_R, (wanted * weight).sum((1, 2)), rtol=2e-4)
    np.testing.assert_array_equal(count_R, weight.sum((1, 2)))


def test_each_channel_asks_with_a_prompt_of_its_own(problem, model, params):
    span = problem.span("train", 48, (24,))
    row_R = jnp.arange(6)
    encoded = jax.jit(lambda: encodings.encode(model, params, encodings.Cached(problem.panel), span, row_R))()
    ask = jax.jit(lambda params: tasks.forecast(model, params, encoded, 24, row_R % 3))
    own = {"tokens_CMD": jax.random.normal(jax.random.key(0), (3, 2, 16))}
    y_RH = ask({"backbone": params, "prompt": own})
    for channel in range(3):
        one = {"tokens_MD": own["tokens_CMD"][channel]}
        alone_RH = ask({"backbone": params, "prompt": one})
        np.testing.assert_allclose(y_RH[channel::3], alone_RH[channel::3], rtol=2e-5, atol=2e-5)
        others = np.arange(6) % 3 != channel
        assert np.abs(y_RH - alone_RH)[others].max() > 1e-3
    assert prompts.make("channel", 2, 16, 3)["tokens_CMD"].shape == (3, 2, 16)
    assert prompts.cut(own, 1)["tokens_CMD"].shape == (3, 1, 16)
    # beside others in one decoder
    wanted = [(None, 24), (own, 24), (own, 12)]
    zero_RH, again_RH, short_RH = jax.jit(lambda: tasks.forecasts(model, params, encoded, wanted, row_R % 3))()
    np.testing.assert_allclose(again_RH, y_RH, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(short_RH, y_RH[:, :12], rtol=2e-5, atol=2e-5)
    plain_RH = ask({"backbone": params})
    np.testing.assert_allclose(zero_RH, plain_RH, rtol=2e-5, atol=2e-5)


def test_a_blend_keeps_mean_and_scale_of_its_row_and_misses_what_either_misses(problem):
    x_RL, observed_RL = take(problem.panel, problem.span("train", 48, (24,)), jnp.arange(200))
    x_RL = jnp.where(observed_RL, x_RL, 0)  # which is what is made of a missing value
    blended_RL, seen_RL = tasks.augment(jax.random.key(0), x_RL, observed_RL, 0.0, 1.0)
    other_RL = jnp.roll(x_RL, 1, axis=0)

    def normal(x_RL, observed_RL):
        mean_R1, scale_R1 = instance_stats(x_RL, observed_RL.astype(jnp.float32))
        return (x_RL - mean_R1) / scale_R1, mean_R1, scale_R1

    (z_RL, mean_R1, scale_R1), (w_RL, *_) = normal(x_RL, observed_RL), normal(other_RL, jnp.roll(observed_RL, 1, 0))
    share_RL = ((blended_RL - mean_R1) / scale_R1 - z_RL) / (w_RL - z_RL)
    share_R = np.median(share_RL, axis=1)  # on the way from one window to the other, at the same place at each step
    clear = np.abs(np.asarray(w_RL - z_RL)) > 0.1
    assert np.abs(np.asarray(share_RL) - share_R[:, None])[clear].max() < 1e-3
    assert 0 <= share_R.min() < 0.1
    assert 0.9 < share_R.max() <= 1
    np.testing.assert_array_equal(seen_RL, observed_RL & jnp.roll(observed_RL, 1, 0))
    assert (np.asarray(seen_RL) != np.asarray(observed_RL)).any()


def test_the_asked_share_of_rows_is_flipped_or_blended_and_the_others_keep_every_bit(problem):
    x_RL, observed_RL = take(problem.panel, problem.span("train", 48, (24,)), jnp.arange(400))
    x_RL = jnp.where(observed_RL, x_RL, 0)  # which is what is made of a missing value
    flipped_RL, seen_RL = tasks.augment(jax.random.key(1), x_RL, observed_RL, 0.3, 0.0)
    down_R, up_R = np.asarray((flipped_RL == -x_RL).all(1)), np.asarray((flipped_RL == x_RL).all(1))
    assert (down_R | up_R).all()
    assert 0.2 < down_R.mean() < 0.4
    np.testing.assert_array_equal(seen_RL, observed_RL)
    blended_RL, seen_RL = tasks.augment(jax.random.key(1), x_RL, observed_RL, 0.0, 0.3)
    kept_R = np.asarray((blended_RL == x_RL).all(1))
    assert 0.6 < kept_R.mean() < 0.8
    np.testing.assert_array_equal(seen_RL[kept_R], observed_RL[kept_R])


def test_only_what_is_asked_for_is_augmented(problem, model, params):
    span = problem.span("train", 48, (24,))
    arguments = {"backbone": params}, Cached(problem.panel), jnp.arange(40), jax.random.key(0)

    def value(**knobs):
        asked = {"ratio": 0.5, "tail_share": 0.0, "norm": "window", "train": False, **knobs}
        return jax.jit(tasks.reconstruction(model, span, **asked))(*arguments)[0]

    plain_R = value()
    np.testing.assert_array_equal(plain_R, value(flip=0.0, blend=0.0))
    for knobs in ({"flip": 0.5}, {"blend": 0.5}):
        changed = np.mean(np.asarray(value(**knobs)) != np.asarray(plain_R))
        assert 0.2 < changed < 0.8


def test_views_are_cached_and_filled_like_the_whole_lookback(problem, model, params):
    viewer, span = model.clone(views=3), problem.span("train", 48, (12, 20))
    whole = encodings.encode_all(viewer, params, problem, span, 64, 2**30, jnp.float32)
    assert [view.keep_RN.shape[1] for view in (whole.encoded, *whole.encoded.others)] == [4, 3, 2]
    some = encodings.encode_all(viewer, params, problem, span, 64, whole.encoded_bytes // 2, jnp.float32)
    assert 0 < some.stored < span.rows
    row_R = jnp.arange(0, span.rows, 7)
    ends = [
        jax.jit(lambda data: tasks.forecast(viewer, {"backbone": params}, encodings.encode(
            viewer, params, data, span, row_R), 20, row_R % 3))(data) for data in (whole, some, Cached(problem.panel))
    ]  # fmt: skip
    np.testing.assert_allclose(ends[0], ends[2], atol=1e-5)
    np.testing.assert_allclose(ends[1], ends[2], atol=1e-5)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_pinball_is_least_at_the_quantile(level):
    truth_N = np.random.default_rng(0).exponential(size=2000)
    tries = np.quantile(truth_N, np.linspace(0.02, 0.98, 49))
    mean = [float(tasks.pinball(level)(jnp.asarray(y - truth_N)).mean()) for y in tries]
    assert np.linspace(0.02, 0.98, 49)[np.argmin(mean)] == pytest.approx(level, abs=0.011)
    assert mean[24] == pytest.approx(intervals.pinball(truth_N, np.full(2000, tries[24]), level), rel=1e-5)
