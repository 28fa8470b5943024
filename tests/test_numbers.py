"""Numbers gone wrong: what is missing reaches no loss, what stands still stays where it is, sums keep their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import (
    baselines,
    closing,
    config,
    detect,
    evaluate,
    export,
    gaps,
    imputation,
    impute,
    mesh,
    predict,
    prompts,
    scaling,
    tally,
    tasks,
)
from ptt_jax.encodings import Cached
from ptt_jax.model import CrossMAE
from ptt_jax.windows import Panel, span

POISON = (-7.0, 1e30, -3e38, np.inf, np.nan)  # what a missing value may hold; 0 is what it is compared with


@pytest.fixture(scope="module")
def holes():
    """values_CT and observed_CT of 3 channels: single gaps, a gap of two patches, a channel that begins late."""
    rng = np.random.default_rng(0)
    values_CT, observed_CT = rng.normal(size=(3, 200)).cumsum(1).astype(np.float32), rng.random((3, 200)) > 0.1
    observed_CT[1, 60:84], observed_CT[2, :90] = False, False
    return values_CT, observed_CT


@pytest.fixture(scope="module")
def asked(params):
    return {"backbone": params, "prompt": {"tokens_MD": jnp.full((6, 16), 0.1)}}


FUTURE, WHOLE = span((100, 200), 48, (20,), 3, "train"), span((0, 200), 48, (24,), 3, "train")


def losses(model, *windows):
    """{name: a loss of the program, and the windows that it is of}"""
    hidden = {"ratio": 0.5, "tail_share": 0.5, "train": False}
    law, way = gaps.law("points", (0.3,), (0.5, 2.0), 12), impute.Way("season", 6.0, 12)
    value = model.clone(hiding="value")
    return {
        "pretrain": (tasks.reconstruction(model, windows[1], **hidden, norm="window"), windows[1]),
        "pretrain, value, visible": (tasks.reconstruction(value, windows[1], **hidden, norm="visible"), windows[1]),
        "pretrain, blended": (
            tasks.reconstruction(model, windows[1], **hidden, norm="visible", flip=0.5, blend=0.9), windows[1],
        ),
        "tune": (tasks.forecasting(model, windows[0], penalty="mse"), windows[0]),
        "tune, views, pinball": (
            tasks.forecasting(model.clone(views=3), windows[0], penalty=tasks.pinball(0.1)), windows[0],
        ),
        "probe": (baselines.probing(model, windows[0], penalty="mae"), windows[0]),
        "impute": (imputation.imputing(model, windows[1], law, way), windows[1]),
    }  # fmt: skip


NAMES = [*losses(CrossMAE(12, 16, 16, 2, 1, 1, patches=6), FUTURE, WHOLE)]


def learner(name, model, asked, *windows):
    """f(panel) -> loss and gradient of some rows."""
    loss, of = losses(model, *windows)[name]
    row_R = jnp.arange(0, of.rows, 5 if of.rows > 200 else 1)
    if name == "probe":
        ones = jax.tree.map(jnp.ones_like, baselines.make_probe(model, 48, 20))
        asked = {"backbone": asked["backbone"], "probe": ones}

    @jax.jit
    def learn(panel):
        def mean(params):
            sum_R, count_R = loss(params, Cached(panel), row_R, jax.random.key(0))
            return sum_R.sum() / count_R.sum()

        return jax.value_and_grad(mean)(asked)

    return learn


@pytest.mark.parametrize("name", NAMES)
def test_what_a_missing_value_holds_changes_no_bit_of_loss_or_gradient(name, model, asked, holes):
    learn = learner(name, model, asked, FUTURE, WHOLE)
    values_CT, observed_CT = holes
    ends = []
    for held in (0.0, *POISON):
        panel = Panel(jnp.asarray(np.where(observed_CT, values_CT, np.float32(held))), jnp.asarray(observed_CT))
        ends.append(jax.device_get(learn(panel)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ends[0]))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ends[0][1]))
    for other in ends[1:]:
        for ours, theirs in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(other), strict=True):
            assert ours.tobytes() == theirs.tobytes()


def test_what_a_missing_target_holds_changes_no_bit_of_an_evaluation(holes):
    values_CT, observed_CT = holes

    def guess(panel, _, of, row_R):
        return {"guess": (jnp.ones((len(row_R), 20)),)}

    found = []
    measure = evaluate.evaluator(guess, mesh.make(1), 64, season=12, by_channel=True)
    for held in (0.0, *POISON):
        panel = Panel(jnp.asarray(np.where(observed_CT, values_CT, np.float32(held))), jnp.asarray(observed_CT))
        (e,) = measure(panel, None, span((100, 200), 48, (20,), 3, "test"))["guess"]
        found.append([e.mse_H, e.mae_H, e.mse_C, e.mae_C, e.tally])
    assert all(np.isfinite(a).all() for a in found[0])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            assert ours.tobytes() == theirs.tobytes()


# Rows that hardly move: a variance of 1e-12 is a spread of 1e-6.
LEVELS = (0.0, 1.0, -1e4, 1e8)
SPREADS = (0.0, 1e-12, 1e-9, 1e-6, 1e-3)
MOVES = {
    "noise": np.random.default_rng(1).normal(size=72), "step": (np.arange(72) >= 40) * 2.0,
    "spike": (np.arange(72) == 30) * 8.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def still():
    """x_RL of 72 steps, and how far each row's answers may lie from where it stands: every level, spread and kind of
    move, and between them rows that go far, since a batch mixes both."""
    rng, rows, room = np.random.default_rng(0), [], []
    for level in LEVELS:
        for spread in SPREADS:
            for move_L in MOVES.values():
                rows.append(level + spread * move_L)
                room.append(0.02 + 40 * spread + 1e-6 * abs(level))
        rows.append(rng.normal(size=72).cumsum())
        room.append(np.inf)
    return np.stack(rows), np.array(room)


def is_near(y_RH, still):
    """Whether answers are finite, and near what their rows stand at."""
    x_RL, room_R = still
    assert np.isfinite(y_RH).all()
    off_R = np.abs(np.asarray(y_RH, np.float64) - x_RL[:, :1]).max(1)
    np.testing.assert_array_less(off_R, room_R)


def test_what_stands_still_is_forecast_where_it_stands(model, params, asked, still):
    x_RT = still[0][:, :48]
    prompt = {"tokens_MD": asked["prompt"]["tokens_MD"][:2]}
    seen_RT = jnp.ones(x_RT.shape, bool)
    is_near(predict.run(model, 20, params, prompt, jnp.asarray(x_RT, jnp.float32), seen_RT), still)  # in a run
    predictor = predict.Predictor(model, params, prompt, 48, 20)
    is_near(predictor(x_RT, 20), still)  # of a Forecaster
    assert np.isfinite(predictor.embed(x_RT)).all()
    is_near(jax.jit(lambda x_RT: export.program(predictor, x_RT))(jnp.asarray(x_RT, jnp.float32)), still)
    stack = prompts.stack([prompt, {"tokens_MD": 2 * prompt["tokens_MD"]}], 2, 2)  # of a bank
    rows_RT, there_RT, scaler = predict.ready(x_RT, 48)
    y_RH = predict.run(model, 24, params, stack, rows_RT, there_RT, jnp.arange(len(x_RT)) % 2)
    is_near(predict.restore(np.asarray(y_RH), rows_RT, there_RT, scaler), still)


def test_what_stands_still_is_imputed_where_it_stands_and_has_finite_scores(model, params, still):
    x_TC = still[0].T.copy()
    torn_TC = x_TC.copy()
    torn_TC[20:30], torn_TC[50:56, ::2] = np.nan, np.nan
    closed_TC = closing.close(predict.Predictor(model, params, None, 48, 20), torn_TC, 12)
    is_near(closed_TC.T, still)
    section = config.default().detect
    section.window = 48
    scaler = scaling.exact(x_TC, np.ones(x_TC.shape, bool))
    for units in ("window", "scaled"):
        detector = detect.Detector(model, params, detect.question(section, 12, 48), units, mesh.make(1))
        assert np.isfinite(detector.errors(scaler.transform(x_TC), np.ones(x_TC.shape, bool))).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_still_teaches_with_finite_losses_and_gradients(name, model, asked, still):
    x_CT = jnp.asarray(still[0], jnp.float32)
    windows = span((48, 72), 48, (20,), len(x_CT), "train"), span((0, 72), 48, (24,), len(x_CT), "train")
    value, gradient = learner(name, model, asked, *windows)(Panel(x_CT, jnp.ones(x_CT.shape, bool)))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", ["alike", "skewed"])
def test_sums_of_many_errors_keep_six_digits(kind, channels):
    """All errors alike is the worst case of a running sum: each addition rounds the same way."""
    rng, rows, batch = np.random.default_rng(0), 200_000 // channels, 1024
    error_T = np.full(rows, 0.1) if kind == "alike" else np.exp(2 * rng.normal(size=rows))
    values_CT = np.float32(np.stack([error_T, 3.7 * error_T])[:channels])
    panel = Panel(jnp.asarray(values_CT), jnp.ones(values_CT.shape, bool))

    def nothing(panel, _, of, row_R):
        return {"nothing": (jnp.zeros((len(row_R), 1)),)}

    measure = evaluate.evaluator(nothing, mesh.make(1), batch, season=1, by_channel=True)
    (e,) = measure(panel, None, span((0, rows), 1, (1,), channels, "test"))["nothing"]
    exact_C = values_CT[:, 1:].astype(np.float64)
    np.testing.assert_allclose(e.mse_C, (exact_C**2).mean(1), rtol=1e-6)
    np.testing.assert_allclose(e.mae_C, exact_C.mean(1), rtol=1e-6)
    np.testing.assert_allclose([e.mse, e.mae], [(exact_C**2).mean(), exact_C.mean()], rtol=1e-6)
    unit_C = np.maximum(np.abs(np.diff(values_CT[:, :2])), tally.FLOOR) if kind == "alike" else None
    sums_K = e.tally.sum((0, 1, 2))
    assert sums_K[0] == channels * (rows - 1)
    np.testing.assert_allclose(sums_K[2], exact_C.sum(), rtol=1e-6)
    if unit_C is not None:
        np.testing.assert_allclose(sums_K[1], unit_C.astype(np.float64).sum() * (rows - 1), rtol=1e-6)
