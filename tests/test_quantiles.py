"""Quantile prompts in the product: their intervals are in order, hold, and leave everything else as it was."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from test_forecaster import HORIZON, TINY, long, make

from ptt_jax import Bank, calibrate, fitting, frames, intervals, main, parcel, predict, quantiles, seal
from ptt_jax import export as exports
from ptt_jax.errors import UserError
from ptt_jax.forecaster import Forecaster
from ptt_jax.intervals import LEVELS, Unit

QUANTILES, RUNGS = (0.1, 0.9), (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(HORIZON, quantiles=QUANTILES, knobs={**TINY, "pretrain.steps": 10}).fit(make())


def heard(found: pd.DataFrame, name: str, level: float) -> np.ndarray:
    return found[[f"{name}-lo-{level:g}", f"{name}-hi-{level:g}"]].to_numpy().T


def test_the_forecast_is_what_it_is_without_quantile_prompts(fitted):
    of = fitted.fitted.predictor
    found, alone = fitted.predict(make(), levels=()), of._replace(quantiles=None, levels=())
    y_RH = alone(make()[["load", "wind"]].to_numpy().T, HORIZON)
    np.testing.assert_allclose(found[["load", "wind"]].to_numpy().T, y_RH, rtol=1e-5)


def test_levels_never_cross_whichever_are_asked_for(fitted):
    levels = (1, 20, 33.3, 50, 79, 80, 81, 95, 99, 99.5)
    found = fitted.predict(make(seed=4), levels=levels)
    for name in ("load", "wind"):
        low_ZH, high_ZH = np.stack([heard(found, name, z) for z in levels], 1)
        assert (np.diff(low_ZH, axis=0) <= 0).all()
        assert (np.diff(high_ZH, axis=0) >= 0).all()
        assert (high_ZH[1:] - low_ZH[1:] > 0).all()
        alone = fitted.predict(make(seed=4), levels=(80,))
        np.testing.assert_array_equal(heard(alone, name, 80), heard(found, name, 80))


def test_bounds_are_those_of_the_prompts_moved_by_what_the_truth_was_beyond(fitted):
    of, table = fitted.fitted, frames.read(make(seed=4))
    asked = of.predictor, table.values_TC, [0], HORIZON, of.intervals.unit
    y_WHC, unit_WC, away_LWHC = predict.foretell_levels(*asked)
    assert away_LWHC.shape == (3, 1, HORIZON, 2)
    size_C = unit_WC[0] * of.intervals.ratio_C
    found, at = fitted.predict(make(seed=4), levels=(80,)), [int(np.abs(LEVELS - q).argmin()) for q in QUANTILES]
    for side, rung, q in ((0, 0, at[0]), (1, 2, at[1])):
        bound_HC = y_WHC[0] + away_LWHC[rung, 0] + of.intervals.quantile_QH[q][:, None] * size_C
        ours_HC = np.stack([heard(found, name, 80)[side] for name in ("load", "wind")], 1)
        np.testing.assert_allclose(ours_HC, bound_HC, rtol=1e-4)  # nothing had to be put in order there


def test_what_was_saved_has_the_same_intervals_to_the_bit(fitted, tmp_path):
    folder = fitted.save(tmp_path / "kept")
    again = Forecaster.load(folder)
    pd.testing.assert_frame_equal(again.predict(), fitted.predict())
    assert tuple(again.quantiles) == QUANTILES
    assert not list(folder.rglob("state"))
    (card,) = folder.glob("prompts/*-quantiles.json")
    seal.write_json(card, {**seal.read_json(card), "content_hash": "0" * 64})
    with pytest.raises(UserError, match=r"-quantiles/\d+ is not the prompt that .* names"):
        Forecaster.load(folder)


def test_intervals_move_with_the_units_of_a_series_and_stand_still_with_it(fitted):
    frame = make().assign(still=0.1)
    moved = frame.assign(load=1e8 + 1e3 * frame["load"], wind=1e-9 * frame["wind"])
    before, after = fitted.predict(frame, levels=(80,)), fitted.predict(moved, levels=(80,))
    np.testing.assert_allclose((heard(after, "load", 80) - 1e8) / 1e3, heard(before, "load", 80), rtol=1e-4)
    np.testing.assert_allclose(heard(after, "wind", 80) * 1e9, heard(before, "wind", 80), rtol=1e-4)
    assert (heard(after, "still", 80) == 0.1).all()
    with pytest.warns(UserWarning, match="no forecast of series 'wind'"):
        empty = fitted.predict(make().assign(wind=np.nan))
    assert np.isnan(heard(empty, "wind", 80)).all()
    assert np.isfinite(heard(empty, "load", 80)).all()


def test_a_cross_validation_has_the_intervals_of_a_forecast_at_each_cutoff(fitted):
    found = fitted.cross_validation(long(make()), n_windows=3, step_size=10, levels=(80,), refit=False)
    for cutoff, part in found.groupby("cutoff"):
        alone = fitted.predict(long(make()[lambda f, cutoff=cutoff: f["ds"] <= cutoff]), levels=(80,))
        np.testing.assert_allclose(heard(part, "ptt", 80), heard(alone, "ptt", 80), rtol=1e-5)
    few = fitted.predict(horizon=7)
    pd.testing.assert_frame_equal(few, fitted.predict().iloc[:7])


def waves(windows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """residual_WHC around a forecast, and how wide it is there: nothing that a unit knows."""
    rng = np.random.default_rng(seed)
    wide_WHC = np.exp(rng.normal(size=(windows, 4, 2)))
    return wide_WHC * rng.normal(size=wide_WHC.shape), wide_WHC


@pytest.mark.parametrize("scale", [1.0, 0.2, 1.5])
def test_intervals_cover_what_is_asked_whatever_the_prompts_say(scale):
    """Right ones cover the calm and the wild alike; those that are too narrow or too wide, on average."""
    (past_WHC, wide_WHC), (truth_WHC, now_WHC) = waves(1000, 0), waves(1000, 1)
    past_LWHC, now_LWHC = (np.multiply.outer([-1.28 * scale, 0, 1.28 * scale], w) for w in (wide_WHC, now_WHC))
    known = quantiles.conform(past_WHC, np.ones((1000, 2)), past_LWHC, RUNGS, 0, Unit())
    # The first step of each window, as if it were a series.
    truth_1R, now_1R, now_L1R = truth_WHC[:, 0].reshape(1, -1), now_WHC[:, 0].reshape(1, -1), now_LWHC[:, :, 0]
    asked = np.zeros((1, 2000)), now_L1R.reshape(3, 1, -1), np.tile(known.ratio_C, 1000), (50, 80, 95)
    for level, (low_1R, high_1R) in zip((50, 80, 95), quantiles.bounds(known, RUNGS, *asked), strict=True):
        inside_1R = (truth_1R >= low_1R) & (truth_1R <= high_1R)
        assert inside_1R.mean() == pytest.approx(level / 100, abs=0.045)
        wild_1R = now_1R > np.median(now_1R)
        if scale == 1:
            assert inside_1R[wild_1R].mean() == pytest.approx(inside_1R[~wild_1R].mean(), abs=0.05)


def test_what_crosses_is_put_in_order():
    quantile_QH = np.random.default_rng(0).normal(size=(len(LEVELS), 3))
    known = intervals.Intervals(quantile_QH, np.ones(2), 1.0)
    both = quantiles.bounds(known, RUNGS, np.zeros((2, 2)), np.zeros((3, 2, 2)), np.ones(2), (10, 50, 80, 99.5))
    for (low_HC, high_HC), (wider_low_HC, wider_high_HC) in itertools.pairwise(both):
        assert (wider_low_HC <= low_HC).all()
        assert (low_HC <= high_HC).all()
        assert (high_HC <= wider_high_HC).all()
    np.testing.assert_allclose(both[3][0][:, 0], quantile_QH.min(0)[:2])


def test_levels_between_and_past_the_prompts_lie_on_a_line_of_normal_quantiles():
    away_LHC = np.array([-1.2816, 0.0, 2 * 1.2816])[:, None, None]
    for q, told in ((0.1, -1.2816), (0.25, -0.6745), (0.5, 0.0), (0.75, 2 * 0.6745), (0.9, 2.5632), (0.975, 2 * 1.96)):
        assert quantiles.said(away_LHC, RUNGS, q).item() == pytest.approx(told, abs=1e-3)
    assert quantiles.with_median((0.1, 0.2)) == (0.1, 0.2, 0.5)
    assert quantiles.with_median((0.1, 0.5)) == (0.1, 0.5)


class Fan:
    """Forecasts 0 and two quantiles, in the place of a model with quantile prompts; counts the rows it is asked."""

    lookback, horizon, levels = 24, 6, QUANTILES

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, history_RT: np.ndarray, horizon: int) -> np.ndarray:
        return self.told(history_RT, horizon)[0]

    def told(self, history_RT: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked += len(history_RT)
        y_RH = np.zeros((len(history_RT), horizon))
        return y_RH, np.stack([y_RH - 1, y_RH, y_RH + 1])


@pytest.mark.parametrize("rows", [40, 400])
def test_a_history_without_room_for_a_map_is_calibrated_on_its_last_rows(rows):
    values_TC = 5 + np.random.default_rng(0).normal(size=(rows, 2))
    table = frames.read(pd.DataFrame({"ds": pd.date_range("2024", periods=rows, freq="h"), "a": values_TC[:, 0],
                                      "b": values_TC[:, 1]}))  # fmt: skip
    fan = Fan()
    if rows == 40:
        fan.lookback = 36
    kept = 20 if rows == 40 else 100
    known = quantiles.fit(fan, table, kept, Unit())
    recent, whole, _ = calibrate.windows(fan, table, kept)
    assert fan.asked == 2 * (len(recent) + len(whole))  # each window of both series once
    middle_H = known.quantile_QH[int(np.abs(LEVELS - 0.5).argmin())] * known.ratio_C.mean()
    assert (middle_H > 1).all() == (rows == 40)  # the truth lies above 0, and not above the map


@pytest.mark.parametrize(
    "levels", [(0.9, 0.1), (0.1,), 0.1, "0.1,0.9", (0, 0.5), (0.1, 1.0), (0.1, float("nan")), (10, 90), ((0.1,),)]
)
def test_quantiles_that_are_none_are_refused(levels):
    with pytest.raises(UserError, match=r"Forecaster\(quantiles=.*accepted: two numbers between 0 and 1 or more, asc"):
        Forecaster(HORIZON, quantiles=levels).fit(make())
    assert fitting.as_quantiles(np.array([0.1, 0.5])) == (0.1, 0.5)
    assert fitting.as_quantiles(None) == fitting.as_quantiles([]) == ()


def moved(of: Forecaster, seed: int) -> Forecaster:
    """The Forecaster with other prompts, whose files are still the former's."""
    rng, predictor = np.random.default_rng(seed), of.fitted.predictor
    drawn = {
        word: jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype(np.float32), getattr(predictor, word))
        for word in ("prompt", "quantiles")
    }
    return Forecaster.of(dataclasses.replace(of.fitted, predictor=predictor._replace(**drawn)), of.get_params())


@pytest.fixture(scope="module")
def bank(fitted, tmp_path_factory) -> Bank:
    bank = Bank.create(tmp_path_factory.mktemp("bank") / "bank", fitted)
    for name, of in (("shop", fitted), ("moved", moved(fitted, 1))):
        bank.add(name, of)
    quick = {key: value for key, value in TINY.items() if key.startswith(("tune", "cache"))}
    bank.tune("plain", make(seed=2), HORIZON, knobs=quick)
    bank.tune("median", make(seed=3), 13, quantiles=[0.2, 0.5, 0.8, 0.95], knobs=quick)
    return bank


def test_a_bank_has_the_bounds_of_each_task_s_own_forecaster(bank, fitted):
    asked = {"median": long(make(seed=5)), "shop": make(seed=6), "plain": make(seed=7), "moved": make(90, seed=8)}
    asked["moved"] = asked["moved"].assign(wind=0.1)  # and one stands still
    found, levels = bank.predict(asked, levels=(50, 80, 99)), (50, 80, 99)
    for name in asked:
        own = {"shop": fitted, "moved": moved(fitted, 1)}.get(name) or bank.forecaster(name)
        pd.testing.assert_frame_equal(found[name], own.predict(asked[name], levels=levels), rtol=2e-5)
    few = bank.predict(asked, horizon=7, levels=(80,))
    for name in ("shop", "median"):
        eighty = [column for column in few[name] if column in found[name]]
        first = found[name].groupby("unique_id").head(7).reset_index(drop=True) if name == "median" else found[name][:7]
        pd.testing.assert_frame_equal(few[name][eighty], first[eighty], rtol=2e-5)


def test_rows_of_the_same_quantiles_are_one_call_and_forecasts_alone_are_one_of_all(bank, monkeypatch):
    calls, (run, run_levels) = [], (predict.run, predict.run_levels)
    monkeypatch.setattr(predict, "run", lambda *a: calls.append("run") or run(*a))
    monkeypatch.setattr(predict, "run_levels", lambda *a: calls.append("levels") or run_levels(*a))
    asked = {name: make(seed=5) for name in ("shop", "moved")}
    bank.predict(asked)
    assert calls == ["levels"]
    everybody = {name: make(seed=5) for name in bank}
    bank.predict(everybody)
    assert sorted(calls[1:]) == ["levels", "levels", "run"]
    bank.predict(everybody, levels=())
    y_RH = bank.forecast([*bank], np.random.default_rng(0).normal(size=(4, 200)))
    assert calls[4:] == ["run", "run"]
    assert np.isfinite(y_RH).sum(1).tolist() == [13 if name == "median" else HORIZON for name in bank]


def test_blocks_of_rows_past_the_first_have_their_own_quantile_prompts(bank, monkeypatch):
    asked = {name: make(seed=5) for name in ("moved", "shop")}
    whole = bank.predict(asked)
    monkeypatch.setattr(predict, "ROWS", 3)
    for name, found in bank.predict(asked).items():
        pd.testing.assert_frame_equal(found, whole[name], rtol=1e-4)


def test_a_task_with_quantile_prompts_is_a_forecaster_again(bank, fitted, tmp_path):
    one = bank.forecaster("moved")
    assert one.fitted.predictor.levels == QUANTILES
    again = Forecaster.load(one.save(tmp_path / "kept"))
    expected = moved(fitted, 1).predict(make())
    for of in (one, again):
        pd.testing.assert_frame_equal(of.predict(make()), expected, rtol=1e-5)
    shutil.rmtree(tmp_path / "kept")
    bank.add("twin", one)
    bank.remove("twin")
    sizes = {path.stem: path.stat().st_size for path in (bank.folder / "tasks").iterdir()}
    assert sizes["plain"] < sizes["shop"] < 2 * sizes["plain"]


def test_a_file_whose_quantile_prompts_are_not_those_of_its_levels_is_named(bank, tmp_path):
    task = bank._task("moved")
    for other in (None, {leaf: a[:1] for leaf, a in task.quantiles.items()}, {"tokens_IMD": np.zeros((2, 1, 2, 16))}):
        task._replace(quantiles=other).write(tmp_path / "moved.npz")
        with pytest.raises(UserError, match=r"moved\.npz is no task of a bank .*quantile prompts are not 2"):
            parcel.read(tmp_path / "moved.npz", bank.hash)


def test_a_file_says_the_version_that_can_read_it(bank, tmp_path, monkeypatch):
    said = {name: json.loads(bank._task(name).arrays()["about"].tobytes())["format"] for name in ("plain", "moved")}
    assert said == {"plain": 1, "moved": 2}
    monkeypatch.setattr(parcel, "FORMAT", 3)
    bank._task("moved").write(tmp_path / "moved.npz")
    with pytest.raises(UserError, match=r"moved\.npz has format 3; accepted: 1 or 2, those that this version reads$"):
        parcel.read(tmp_path / "moved.npz", bank.hash)


@pytest.mark.parametrize("levels", [QUANTILES, (0.5, 0.9)])
def test_an_exported_program_and_its_page_make_the_same_bounds(fitted, tmp_path, levels):
    pytest.importorskip("flatbuffers")
    of, frame = moved(fitted, 1), make(seed=6).assign(still=0.1, empty=np.nan)
    if levels != QUANTILES:  # the lower prompt is called the median's
        predictor = of.fitted.predictor._replace(levels=levels)
        of = Forecaster.of(dataclasses.replace(of.fitted, predictor=predictor), of.get_params())
    program = jax.export.deserialize(of.export(tmp_path / "m.stablehlo", ("cpu",)).read_bytes())
    page = json.loads((tmp_path / "m.json").read_text())
    rungs = (0.1, 0.5, 0.9) if levels == QUANTILES else levels
    assert (page["format"], tuple(page["quantiles"]["levels"])) == (2, rungs)
    names = ("load", "wind", "still", "empty")
    history_RT = frame[[*names]].to_numpy().T[:, -of.fitted.cfg.lookback :].astype(np.float32)
    y_RH, told_LRH = map(np.asarray, program.call(history_RT))
    assert [len(rungs), "rows", HORIZON] == page["quantiles"]["shape"]
    assert told_LRH.shape == (len(rungs), len(names), HORIZON)
    assert (np.diff(told_LRH, axis=0)[:, :3] >= 0).all()
    with pytest.warns(UserWarning, match="no forecast of series 'empty'"):
        expected = of.predict(frame, levels=(80, 99))
    known = page["intervals"]
    np.testing.assert_allclose(np.sum(known["weights"], 1), 1, atol=1e-12)  # bounds move with the level
    size_R = predict.size(history_RT.astype(float), Unit(**{k: v for k, v in known["unit"].items() if k != "still"}))
    for r, name in enumerate(names):
        np.testing.assert_allclose(y_RH[r], expected[name], rtol=1e-5)
        size = known["ratio"].get(name, known["relative"]) * size_R[r]
        bounds_HQ = np.sort(np.array(known["weights"]) @ told_LRH[:, r] + np.transpose(known["quantiles"]) * size, 0).T
        for level in (80, 99):
            tail = (1 - level / 100) / 2
            ours = [[np.interp(q, known["levels"], row_Q) for row_Q in bounds_HQ] for q in (tail, 1 - tail)]
            np.testing.assert_allclose(ours, heard(expected, name, level), rtol=1e-4, atol=1e-4)


def test_a_stage_exports_quantile_prompts(fitted, tmp_path):
    pytest.importorskip("flatbuffers")
    kept, path = fitted.save(tmp_path / "kept"), tmp_path / "m.stablehlo"
    assert main.main(["export", f"--config.backbone={kept}", f"--config.output={path}"]) == 0
    program = jax.export.deserialize(path.read_bytes())
    assert [len(a.shape) for a in program.out_avals] == [2, 3]
    assert "weights" in json.loads(path.with_suffix(".json").read_text())["notes"]["intervals"]
    program, about = exports.of_run(kept)  # which a saved Forecaster is, too, and without its intervals
    exports.write(path, program, about, ("cpu",))
    assert "intervals" not in json.loads(path.with_suffix(".json").read_text())["notes"]


def test_the_knob_is_an_argument():
    with pytest.raises(UserError, match=r"knobs\['tune.quantiles'\] is no knob of a Forecaster; .*quantiles\)"):
        Forecaster(HORIZON, knobs={"tune.quantiles": QUANTILES}).fit(make())


@pytest.mark.parametrize("said", [(), ("--config.tune.quantiles=0.1,0.9", "--config.tune.quantile_rate=0.01")])
def test_the_command_line_has_them_as_a_knob(monkeypatch, tmp_path, said):
    seen = []

    def learn(self, *rest):
        seen.append(self.get_params())
        raise UserError("that is enough")

    monkeypatch.setattr(Forecaster, "_learn", learn)
    make().to_csv(tmp_path / "mine.csv", index=False)
    files = [f"--config.data.path={tmp_path / 'mine.csv'}", f"--config.output={tmp_path / 'out.csv'}"]
    assert main.main(["forecast", *files, "--config.horizons=30,", *said]) == 2
    assert seen[0]["quantiles"] == (QUANTILES if said else None)
    assert seen[0]["knobs"] == ({"tune.quantile_rate": 0.01} if said else {})
