import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import baselines, cache, config, data, evaluate, layers, mesh, problems, stream
from ptt_jax.windows import future, past, shuffle, take


@pytest.fixture(scope="module")
def problem(problem):
    """With a hole at the end of one channel, so that late steps of the horizon have fewer values than early ones."""
    observed_CT = problem.panel.observed_CT.at[0, -15:].set(False)
    return problem._replace(panel=problem.panel.replace(observed_CT=observed_CT))


@pytest.fixture(scope="module")
def plain(problem):
    """Seasonal naive of the test split by two loops of numpy, the way the protocol words it."""
    values_CT = np.asarray(problem.panel.values_CT, np.float64)
    observed_CT = np.asarray(problem.panel.observed_CT)
    begin, end = problem.series.splits["test"]
    out = {}
    for horizon in (12, 20):
        errors = [
            np.where(
                observed_CT[:, now : now + horizon],
                values_CT[:, now : now + horizon] - values_CT[:, now - 24 : now - 24 + horizon],
                np.nan,
            )
            for now in range(begin, end - horizon + 1)
        ]
        out[horizon] = np.array(errors)  # windows, C, H
    return out


def naive(panel, _, span, row_R):
    x_RT, _ = past(panel, span, row_R)
    return {"naive": tuple(baselines.seasonal_naive(x_RT, 24, h) for h in span.horizons)}


@pytest.mark.parametrize("batch", [1, 64, 10_000])
@pytest.mark.parametrize("devices", [1, 8])
def test_masked_evaluation_equals_plain_numpy_whatever_the_batch(problem, plain, batch, devices):
    if batch == 1 and devices == 8:
        pytest.skip("a batch of one row is rounded up to the mesh: the case of 64")
    span = problem.span("test", 48, (12, 20))
    on = mesh.make(devices)
    panel = mesh.replicate(on, problem.panel)
    errors = evaluate.evaluator(naive, on, batch, by_channel=True)(panel, None, span)["naive"]
    for e, (horizon, by_hand) in zip(errors, plain.items(), strict=True):
        assert e.windows == len(by_hand)
        assert e.count_H.sum() == np.isfinite(by_hand).sum()
        np.testing.assert_allclose(e.mse, np.nanmean(by_hand**2), rtol=1e-6)
        np.testing.assert_allclose(e.mae, np.nanmean(np.abs(by_hand)), rtol=1e-6)
        np.testing.assert_allclose(e.mse_H, np.nanmean(by_hand**2, (0, 1)), rtol=1e-5)
        np.testing.assert_allclose(e.mse_C, np.nanmean(by_hand**2, (0, 2)), rtol=1e-5)
        np.testing.assert_allclose(e.mae_C, np.nanmean(np.abs(by_hand), (0, 2)), rtol=1e-5)
        assert len(e.mae_H) == horizon


@pytest.mark.parametrize("batch", [7, 64])
def test_a_few_rows_are_drawn_once_whatever_the_batch_and_wherever_the_series_lies(problem, batch):
    span = problem.span("test", 48, (12, 20))
    errors = evaluate.evaluator(naive, problem.mesh, batch, 40)(problem.panel, None, span)["naive"]
    row_R = jax.jit(lambda at_R: shuffle(jax.random.key(0), at_R, span.rows))(jnp.arange(40))
    assert len({*row_R.tolist()}) == 40
    values_RL, observed_RL = (np.asarray(a) for a in take(problem.panel, span, row_R))
    for e, horizon, count in zip(errors, (12, 20), span.counts, strict=True):
        inside_R1 = np.asarray(row_R // span.channels < count)[:, None]
        error_RH = values_RL[:, 48 : 48 + horizon] - values_RL[:, 24 : 24 + horizon]
        by_hand = error_RH[observed_RL[:, 48 : 48 + horizon] & inside_R1]
        assert e.mse == pytest.approx(np.mean(by_hand.astype(np.float64) ** 2), rel=1e-5)
    host = jax.device_get(problem.panel)
    streamed = stream.Host(host.values_CT, host.observed_CT, problem.mesh, 10**5)
    again = evaluate.evaluator(naive, problem.mesh, batch, 40)(streamed, None, span)["naive"]
    assert [e.mse for e in again] == pytest.approx([e.mse for e in errors], rel=1e-6)


def test_asking_for_more_rows_than_there_are_is_asking_for_all(problem):
    span = problem.span("test", 48, (12, 20))
    a, b = (evaluate.evaluator(naive, problem.mesh, 64, few)(problem.panel, None, span) for few in (0, 10**6))
    assert [e.mse for e in a["naive"]] == pytest.approx([e.mse for e in b["naive"]], rel=1e-6)


def test_a_perfect_forecast_has_no_error(problem):
    span = problem.span("validation", 48, (12,))

    def oracle(panel, _, span, row_R):
        return {"oracle": (future(panel, span, row_R)[0],)}

    (e,) = evaluate.evaluator(oracle, problem.mesh, 128)(problem.panel, None, span)["oracle"]
    assert (e.mse, e.mae) == (0, 0)


def test_one_program_serves_every_split_and_members_are_measured_side_by_side(problem, plain):
    traced = []

    def two(panel, _, span, row_R):
        traced.append(span.horizons)
        y_RH = naive(panel, _, span, row_R)["naive"]
        return {"pair": tuple(jnp.stack([y, jnp.full_like(y, jnp.nan)])[:, None] for y in y_RH)}

    measure = evaluate.evaluator(two, problem.mesh, 64)
    for split in ("validation", "test"):
        errors = measure(problem.panel, None, problem.span(split, 48, (12, 20)))["pair"]
        if split == "validation":
            programs = len(traced)
    assert len(traced) == programs
    for e, (horizon, by_hand) in zip(errors, plain.items(), strict=True):
        assert e.mse_H.shape == (2, 1, horizon)
        np.testing.assert_allclose(e.mse[0, 0], np.nanmean(by_hand**2), rtol=1e-6)
        assert np.isnan(e.mse[1, 0])  # one that diverged says so


def test_seasonal_naive_repeats_the_last_season():
    x_RT = jnp.arange(10.0)[None]
    assert baselines.seasonal_naive(x_RT, 4, 6)[0].tolist() == [6, 7, 8, 9, 6, 7]
    assert baselines.seasonal_naive(x_RT, 40, 3)[0].tolist() == [9, 9, 9]


def test_the_linear_model_finds_a_linear_law(problem):
    """x[t + 1] = 2 cos(w) x[t] - x[t - 1] is a sine: a map of its history forecasts it exactly."""
    t = np.arange(500)
    sine = np.stack([np.sin(2 * np.pi * t / p) for p in (17, 23, 31)]).astype(np.float32)
    panel = problem.panel.replace(values_CT=jnp.asarray(sine), observed_CT=jnp.ones((3, 500), bool))
    spans = [problem.span(s, 48, (12,)) for s in ("train", "validation")]
    weights_TH = baselines.fit_linear(problem._replace(panel=panel), *spans)
    x_RL, observed_RL = take(panel, problem.span("test", 48, (12,)), jnp.arange(60))
    y_RH = layers.linear(jnp.asarray(weights_TH), x_RL[:, :48], observed_RL[:, :48])[:, :12]
    assert np.abs(y_RH - x_RL[:, 48:]).max() < 0.1


def test_the_linear_model_is_ridge_regression_in_closed_form(problem, monkeypatch):
    monkeypatch.setattr(baselines, "RIDGES", (1e-2,))
    panel = problem.panel.replace(observed_CT=jnp.ones_like(problem.panel.observed_CT))
    span = problem.span("train", 48, (12,))
    x_RL = np.asarray(take(panel, span, jnp.arange(span.rows))[0], np.float64)
    mean = x_RL[:, :48].mean(1, keepdims=True)
    x, y = x_RL[:, :48] - mean, x_RL[:, 48:] - mean
    gram = x.T @ x
    by_hand = np.linalg.solve(gram + 1e-2 * np.trace(gram) / 48 * np.eye(48), x.T @ y)
    ours = baselines.fit_linear(problem._replace(panel=panel), span, problem.span("validation", 48, (12,)))
    np.testing.assert_allclose(ours, by_hand, atol=1e-3)


def test_a_ridge_draws_the_linear_model_to_the_mean_or_the_last_value_as_validation_chooses():
    """No past of a random walk says more than its last value, and none of noise more than its mean."""
    cfg = config.default()
    cfg.data.rows, cfg.data.channels = 4000, 3
    problem = problems.prepare(data.load(cfg.data), mesh.make(1))
    noise = np.random.default_rng(0).normal(size=(3, 4000)).astype(np.float32)
    spans = [problem.span(s, 48, (12,)) for s in ("train", "validation", "test")]
    x = np.arange(spans[2].rows)

    def errors(values):
        panel = problem.panel.replace(values_CT=jnp.asarray(values), observed_CT=jnp.ones((3, 4000), bool))
        x_RL, observed_RL = take(panel, spans[2], jnp.asarray(x))
        found = {}
        for towards in ("mean", "last", "either"):
            weights_TH = baselines.fit_linear(problem._replace(panel=panel), *spans[:2], towards=towards)
            y_RH = layers.linear(jnp.asarray(weights_TH), x_RL[:, :48], observed_RL[:, :48])
            found[towards] = float(jnp.square(y_RH - x_RL[:, 48:]).mean())
        last = float(jnp.square(x_RL[:, 47:48] - x_RL[:, 48:]).mean())
        return found, last, float(jnp.square(x_RL[:, :48].mean(1, keepdims=True) - x_RL[:, 48:]).mean())

    with pytest.MonkeyPatch.context() as patch:  # nothing is left of what a great ridge does not draw to
        patch.setattr(baselines, "RIDGES", (1e9,))
        patch.setattr(baselines, "STRONGER", ())
        (found, last, mean) = errors(np.cumsum(noise, 1))
        np.testing.assert_allclose((found["last"], found["mean"]), (last, mean), rtol=1e-4)
    walk, last, _ = errors(np.cumsum(noise, 1))
    assert walk["either"] == walk["last"] < walk["mean"]
    assert walk["last"] < 1.05 * last
    still, _, mean = errors(noise)
    assert still["either"] == still["mean"] < still["last"]
    assert still["mean"] < 1.05 * mean


def test_missing_targets_pull_the_linear_model_nowhere(problem):
    """A sine whose targets are missing at random, and 1000 where they are: the fit must not see the 1000."""
    rng = np.random.default_rng(0)
    clean = np.sin(2 * np.pi * np.arange(500) / 12)[None].repeat(3, 0).astype(np.float32)
    observed = rng.random((3, 500)) > 0.2
    panel = problem.panel.replace(
        values_CT=jnp.asarray(np.where(observed, clean, 1000)), observed_CT=jnp.asarray(observed)
    )
    spans = [problem.span(s, 48, (12,)) for s in ("train", "validation")]
    weights_TH = baselines.fit_linear(problem._replace(panel=panel), *spans)
    x_RT = jnp.asarray(clean[:1, :48])
    y_RH = layers.linear(jnp.asarray(weights_TH), x_RT, jnp.ones_like(x_RT, bool))[:, :12]
    # Filled with the mean once, the fit would shrink by a fifth, too.
    assert np.abs(y_RH - clean[:1, 48:60]).max() < 0.4


def split_over(on, problem):
    """The problem on another mesh."""
    return problem._replace(mesh=on, panel=mesh.replicate(on, jax.device_get(problem.panel)))


def shares(seen, x_R):
    """Notes how many rows each device has of what a program computes with."""
    jax.debug.callback(lambda x_R: seen.append(len(x_R)), x_R, partitioned=True)


def test_each_device_evaluates_its_share_of_a_batch(problem):
    on, seen = mesh.make(8), []

    def spied(panel, _, span, row_R):
        out = naive(panel, _, span, row_R)
        shares(seen, out["naive"][0])
        return out

    span = problem.span("test", 48, (12, 20))
    evaluate.evaluator(spied, on, 64)(split_over(on, problem).panel, None, span)
    jax.effects_barrier()
    assert set(seen) == {64 // 8}


@pytest.fixture
def untraced():
    """No program of another test is taken up, and none of this one by another."""
    cache.forget()
    yield
    cache.forget()


@pytest.mark.parametrize("streamed", [False, True])
def test_each_device_sums_its_share_for_the_linear_model(problem, streamed, monkeypatch, untraced):
    seen, span, centre = [], problem.span("train", 48, (12, 20)), baselines.centre

    def spied(x_RT, observed_RT):
        shares(seen, x_RT)
        return centre(x_RT, observed_RT)

    weights_TH = jnp.full((48, 20), 0.01)  # what fills in missing targets
    alone = baselines.moments(problem, span, weights_TH)
    other = split_over(mesh.make(8), problem)
    if streamed:
        arrays = map(np.asarray, (problem.panel.values_CT, problem.panel.observed_CT))
        other = other._replace(panel=stream.Host(*arrays, other.mesh, 1000))
    monkeypatch.setattr(baselines, "centre", spied)
    for ours, theirs in zip(baselines.moments(other, span, weights_TH), alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    jax.effects_barrier()
    assert set(seen) == {1024 // 8}
