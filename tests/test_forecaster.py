"""The product: a frame in, forecasts out. One small Forecaster is fitted once and asked by every test."""

import copy
import json
import os
import pickle
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from ptt_jax import calibrate, checkpoint, config, fitting, frames, intervals, lock, predict, seal, watch
from ptt_jax.errors import UserError
from ptt_jax.fitting import Wish
from ptt_jax.forecaster import Forecaster
from ptt_jax.predict import Predictor

TINY = {
    "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1, "pretrain.steps": 40,
    "pretrain.batch": 64, "pretrain.validations": 1, "tune.steps": 8, "tune.batch": 64, "tune.validations": 1,
    "pretrain.learning_rate": 1e-2, "cache_dir": "",
}  # fmt: skip
ROWS, HORIZON = 400, 30


YEARS = pd.date_range("1970-01-01", periods=280, freq="YS")


def make(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    rng, t_T = np.random.default_rng(seed), np.arange(rows)
    wave = lambda phase: np.sin(2 * np.pi * (t_T + phase) / 24)  # noqa: E731
    return pd.DataFrame({
        "ds": pd.date_range("2024-01-01", periods=rows, freq="h"),
        "load": 100 + 20 * wave(0) + rng.normal(size=rows),
        "wind": 3 + wave(7) + 0.1 * rng.normal(size=rows),
    })  # fmt: skip


def long(wide: pd.DataFrame) -> pd.DataFrame:
    return wide.melt("ds", var_name="unique_id", value_name="y")[["unique_id", "ds", "y"]]


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(HORIZON, knobs=TINY).fit(make())


def test_a_forecast_follows_the_frame_in_its_kind_and_units(fitted):
    found = fitted.predict(levels=(80,))
    assert list(found) == ["ds", "load", "load-lo-80", "load-hi-80", "wind", "wind-lo-80", "wind-hi-80"]
    assert list(found["ds"]) == list(pd.date_range("2024-01-17 16:00", periods=HORIZON, freq="h"))
    truth = make(ROWS + HORIZON).iloc[ROWS:]
    for name, spread in (("load", 20), ("wind", 1)):  # a constant would be wrong by two thirds of it
        assert np.abs(found[name].to_numpy() - truth[name].to_numpy()).mean() < spread / 3
        assert (found[f"{name}-lo-80"] < found[name]).all()
        assert (found[name] < found[f"{name}-hi-80"]).all()


def test_a_forecast_has_the_share_of_a_linear_map_that_its_prompt_says(fitted):
    of = fitted.fitted
    (tokens_ME,) = of.predictor.prompt.values()
    assert of.cfg.tune.linear_when == "after"
    assert of.predictor.backbone["linear_map"].shape[0] == of.cfg.lookback
    assert 0 < tokens_ME[0, -1] <= 0.75
    history_RT = make()[["load", "wind"]].to_numpy().T
    alone, whole = (
        of.predictor._replace(prompt={"tokens_MD": tokens_ME.at[:, -1].set(share)})(history_RT, HORIZON)
        for share in (0, 1)
    )
    mixed_RH = alone + float(tokens_ME[0, -1]) * (whole - alone)
    np.testing.assert_allclose(fitted.predict()[["load", "wind"]].to_numpy().T, mixed_RH, rtol=1e-4, atol=1e-3)


def test_a_long_frame_gives_the_numbers_of_the_wide_one(fitted):
    wide, tall = fitted.predict(make(), levels=(90,)), fitted.predict(long(make()), levels=(90,))
    assert list(tall) == ["unique_id", "ds", "ptt", "ptt-lo-90", "ptt-hi-90"]
    for name in ("load", "wind"):
        own = tall[tall["unique_id"] == name]
        np.testing.assert_allclose(own["ptt"].to_numpy(), wide[name].to_numpy(), rtol=1e-6)
        np.testing.assert_allclose(own["ptt-hi-90"].to_numpy(), wide[f"{name}-hi-90"].to_numpy(), rtol=1e-6)


def test_predict_without_a_frame_forecasts_the_one_that_it_learned_from(fitted):
    pd.testing.assert_frame_equal(fitted.predict(), fitted.predict(make()))


def test_fewer_steps_are_the_first_ones(fitted):
    pd.testing.assert_frame_equal(fitted.predict(horizon=7), fitted.predict().iloc[:7])


def test_a_forecast_moves_with_the_units_of_its_series(fitted):
    moved = make().assign(load=lambda f: 1e8 + 1e3 * f["load"], wind=lambda f: 1e-9 * f["wind"])
    before, after = fitted.predict(levels=(80,)), fitted.predict(moved, levels=(80,))
    for rest in ("", "-lo-80", "-hi-80"):
        np.testing.assert_allclose((after[f"load{rest}"] - 1e8) / 1e3, before[f"load{rest}"], rtol=1e-4)
        np.testing.assert_allclose(after[f"wind{rest}"] * 1e9, before[f"wind{rest}"], rtol=1e-4)


def test_a_series_that_was_not_there_is_forecast_with_intervals_in_its_units(fitted):
    other = make(seed=5).rename(columns={"load": "heat"})[["ds", "heat"]]
    large = other.assign(heat=1000 * other["heat"])
    found, scaled = fitted.predict(other, levels=(80,)), fitted.predict(large, levels=(80,))
    width = (found["heat-hi-80"] - found["heat-lo-80"]).to_numpy()
    assert (width > 0).all()
    np.testing.assert_allclose((scaled["heat-hi-80"] - scaled["heat-lo-80"]) / 1000, width, rtol=1e-4)
    assert width.mean() < 40  # a swing


def test_missing_values_and_short_series_are_forecast(fitted):
    frame = make()
    frame.loc[frame.index % 5 == 0, "load"] = np.nan
    frame.loc[: ROWS - 20, "wind"] = np.nan
    found = fitted.predict(frame)
    assert np.isfinite(found.drop(columns="ds").to_numpy()).all()
    frame["wind"] = np.nan
    with pytest.warns(UserWarning, match="no forecast of series 'wind' without a value in the last"):
        found = fitted.predict(frame)
    assert found["wind"].isna().all()
    assert found["load"].notna().all()
    with pytest.raises(UserError, match="series 'wind' without a value in the last"):
        fitted.predict(frame[["ds", "wind"]])


def test_a_series_that_stands_still_is_forecast_to_stand_still(fitted):
    found = fitted.predict(make().assign(still=0.1), levels=(80,))
    assert (found[["still", "still-lo-80", "still-hi-80"]].to_numpy() == 0.1).all()


def test_what_was_saved_forecasts_the_same_to_the_bit_and_knows_its_arguments(fitted, tmp_path):
    folder = fitted.save(tmp_path / "kept")
    again = Forecaster.load(folder)
    pd.testing.assert_frame_equal(again.predict(), fitted.predict())
    assert again.get_params() == fitted.get_params()
    assert not [p for p in folder.rglob("*") if p.name == "state" or p.suffix == ".pkl"]
    for name, key in (("versions.json", "git"), ("data.json", "fingerprint"), ("config.json", "seed")):
        assert (folder / name).read_bytes() == (fitted.fitted.folder / name).read_bytes()
        assert key in seal.read_json(folder / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept"]
    assert Forecaster.load(again.save(folder)).get_params() == again.get_params()  # into its own place


def test_intervals_of_an_earlier_version_are_in_units_of_the_spread_alone(fitted, tmp_path):
    path = fitted.save(tmp_path / "kept") / "forecaster.json"
    about = seal.read_json(path)
    assert Forecaster.load(path.parent).fitted.intervals.unit == fitted.fitted.intervals.unit == (0.5, 24, 60)
    del about["unit"]
    seal.write_json(path, about)
    assert Forecaster.load(path.parent).fitted.intervals.unit == intervals.SPREAD


def test_of_many_validation_windows_some_choose_the_prompt(fitted, monkeypatch):
    def stop(*args):
        raise StopIteration(args[-1])

    monkeypatch.setattr(watch, "Watcher", stop)
    for most, few in ((7, "7"), (10**6, "0")):
        with pytest.raises(StopIteration, match=f"^{few}$"):
            Forecaster(HORIZON, knobs={**TINY, "tune.validation_rows": most}).tune(make(), fitted)


@pytest.mark.parametrize("kind", ["long", "zone", "index", "integer"])
def test_every_kind_of_frame_comes_back_from_a_saved_forecaster(fitted, tmp_path, kind):
    frame = make()
    frame = {
        "long": lambda: long(frame),
        "zone": lambda: frame.assign(ds=frame["ds"].dt.tz_localize("Europe/Berlin")),
        "index": lambda: frame.set_index("ds"),
        "integer": lambda: frame.assign(ds=np.arange(ROWS)),
    }[kind]()
    one = copy.copy(fitted)
    one.tune(frame, fitted)
    again = Forecaster.load(one.save(tmp_path / kind))
    pd.testing.assert_frame_equal(again.predict(), one.predict(), check_freq=False)


def test_tuning_on_a_backbone_never_touches_it_and_saves_it_along(fitted, tmp_path):
    card = checkpoint.find_backbone(fitted.fitted.folder)
    files = {p: p.read_bytes() for p in (fitted.fitted.folder / "backbone").rglob("*") if p.is_file()}
    other = Forecaster(6, knobs=TINY).tune(make(seed=3), fitted)
    assert {p: p.read_bytes() for p in files} == files
    assert checkpoint.find_backbone(other.fitted.folder)["content_hash"] == card["content_hash"]
    assert len(other.predict(levels=())) == 6
    again = Forecaster.load(other.save(tmp_path / "other"))
    assert checkpoint.find_backbone(tmp_path / "other")["run"] == str(tmp_path / "other")
    pd.testing.assert_frame_equal(again.predict(), other.predict())


def test_cross_validation_forecasts_what_came_from_what_was_there_before(fitted):
    frame = make()
    found = fitted.cross_validation(long(frame), n_windows=3, step_size=10, levels=(), refit=False)
    assert list(found) == ["unique_id", "ds", "cutoff", "ptt", "y"]
    assert len(found) == 2 * 3 * HORIZON
    for cutoff in found["cutoff"].unique():
        part = found[found["cutoff"] == cutoff]
        alone = fitted.predict(long(frame[frame["ds"] <= cutoff]), levels=())
        np.testing.assert_allclose(part["ptt"].to_numpy(), alone["ptt"].to_numpy(), rtol=1e-5)
    truth = long(frame).merge(found, on=["unique_id", "ds"])
    np.testing.assert_array_equal(truth["y_x"], truth["y_y"])


def test_cross_validation_learns_from_the_rows_before_its_first_window_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(Forecaster, "_learn", lambda self, df, card, alive: seen.append(df) or self)
    with pytest.raises(UserError, match="has not learned yet"):
        Forecaster(HORIZON, knobs=TINY).cross_validation(make(), n_windows=2)
    (before,) = seen
    pd.testing.assert_frame_equal(before, make().iloc[: ROWS - 2 * HORIZON], check_freq=False)


def test_it_has_the_habits_of_scikit_learn():
    one = Forecaster(12, season=7, knobs=TINY)
    twin = Forecaster(**one.get_params(deep=False))  # what sklearn.base.clone does, and checks by identity
    assert all(twin.get_params()[k] is v for k, v in one.get_params().items())
    assert one.set_params(horizon=3).horizon == 3
    assert repr(one).startswith("Forecaster(horizon=3, season=7")
    with pytest.raises(UserError, match="no parameter 'horizons'; nearest: horizon"):
        one.set_params(horizons=3)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda f: Forecaster(3).predict(), "has not learned yet; accepted: fit"),
        (lambda f: f.predict(horizon=31), r"tuned for 30 steps; accepted: 1 to 30, or Forecaster\(horizon=31\).tune"),
        (lambda f: f.predict(horizon=0), "accepted: 1 to 30"),
        (lambda f: f.predict(levels=(120,)), "percentages above 0"),
        (lambda f: f.cross_validation(make(), n_windows=0), "n_windows=0.*whole number of at least 1"),
        (
            lambda f: f.cross_validation(make(), n_windows=99),
            "99 windows .* begins 2970 rows before the end",
        ),
        (
            lambda f: f.predict(make()[::2]),
            "rows are 2 steps of 'h' apart, which this Forecaster learned",
        ),
        (lambda f: Forecaster(3, freq="h").fit(make().assign(**{"load-lo-80": 1.0})), "would be called 'load-lo-80'"),
        (lambda f: Forecaster(30).fit(make(280).assign(ds=YEARS)), "30 steps ahead are later than pandas can say"),
        (lambda f: Forecaster(3, season=2.5).fit(make()), r"season=2\.5.*whole number of at least 0"),
        (lambda f: Forecaster(3, knobs={"horizons": (3,)}).fit(make()), r"knobs\['horizons'\] is no knob"),
        (lambda f: Forecaster(3, knobs={"tune.prompts": "channel"}).fit(make()), "accepted: position, shared or layer"),
        (lambda f: Forecaster(3, name="y").fit(make()), r"name='y'\) is a column of the frame"),
        (lambda f: Forecaster(3, knobs={"pretrain.epochs": np.float32(1)}).fit(make()), "could not be saved"),
        (lambda f: Forecaster(0).fit(make()), "whole number of at least 1"),
        (lambda f: Forecaster(3).fit(make().assign(load=7.0, wind=0.0)), "no series moves, each has one value"),
        (lambda f: Forecaster(300).fit(make()), "of 400 rows are too short; accepted: at least 666"),
        (lambda f: Forecaster(3, knobs={"model.widht": 3}).fit(make()), "nearest: model.width"),
        (lambda f: Forecaster(3, knobs={"model.width": "x"}).fit(make()), "model.width.*no int"),
        (lambda f: Forecaster(3, patch=7, lookback=24).fit(make()), "multiple"),
        (lambda f: Forecaster.load("nowhere"), "nowhere/forecaster.json does not exist"),
        (lambda f: Forecaster(3).tune(make(), "nowhere"), "nowhere/backbone.json does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(fitted, ask, words):
    with pytest.raises(UserError, match=words):
        ask(fitted)


def test_what_was_overwritten_is_not_saved_under_the_name_of_what_was(fitted, tmp_path):
    folder = fitted.save(tmp_path / "a")
    old = Forecaster.load(folder)
    Forecaster(6, knobs=TINY, workdir=str(tmp_path / "run")).tune(make(seed=3), fitted).save(folder)
    assert len(old.predict()) == HORIZON
    with pytest.raises(UserError, match=r"holds another backbone or prompt|does not exist"):
        old.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_run_directory_becomes_a_saved_forecaster(fitted, tmp_path):
    one = Forecaster(6, knobs=TINY, workdir=str(tmp_path / "run")).tune(make(seed=3), fitted)
    again = Forecaster.load(one.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(again.predict(), one.predict())
    assert checkpoint.find_backbone(tmp_path / "run")["run"] == str(tmp_path / "run")


def test_a_gap_longer_than_a_lookback_is_closed_too(fitted):
    frame = make()
    frame.loc[10:390, "wind"] = np.nan
    assert fitted.impute(frame)["wind"].notna().all()


def test_a_copy_lives_on_and_a_pickle_is_refused(fitted):
    pd.testing.assert_frame_equal(copy.deepcopy(fitted).predict(), fitted.predict())
    with pytest.raises(TypeError, match=r"accepted: Forecaster\.save and load"):
        pickle.dumps(fitted)


def test_an_export_and_its_page_give_forecast_and_intervals(fitted, tmp_path):
    """As somebody would without ptt_jax: jax for the forecast, the page and numpy for the bounds."""
    pytest.importorskip("flatbuffers")
    path = fitted.export(tmp_path / "model.stablehlo", platforms=("cpu",))
    text, frame = path.with_suffix(".json").read_text(), make()
    assert len(text.splitlines()) < 60 + HORIZON  # for a person, too
    page = json.loads(text)
    names, lookback = ["load", "wind"], page["input"]["shape"][1]
    history_RT = frame[names].to_numpy()[-lookback:].T
    y_RH = np.asarray(jax.export.deserialize(path.read_bytes()).call(history_RT.astype(np.float32)))
    truth = fitted.predict(frame, levels=(80,))
    np.testing.assert_allclose(y_RH.T, truth[names], rtol=1e-5)
    known = page["intervals"]
    for sign, side in ((-1, "lo"), (1, "hi")):
        q_H = [np.interp((1 + sign * 80 / 100) / 2, known["levels"], column) for column in known["quantiles"]]
        unit = known["unit"]
        assert unit["lag"] == fitted.fitted.season == 24
        move_R = np.abs(history_RT[:, 24:] - history_RT[:, :-24])[:, -unit["last"] :].mean(1)
        spread_R = history_RT.std(1)
        size_R = spread_R ** (1 - unit["recent"]) * np.maximum(move_R, unit["still"] * spread_R) ** unit["recent"]
        found_RH = y_RH + np.array(q_H) * ([known["ratio"][name] for name in names] * size_R)[:, None]
        np.testing.assert_allclose(found_RH.T, truth[[f"{name}-{side}-80" for name in names]], rtol=1e-4)
    assert page["prompt"] == fitted.fitted.prompt_hash
    assert page["backbone"] == checkpoint.find_backbone(fitted.fitted.folder)["content_hash"]


def test_a_folder_with_something_else_is_never_overwritten(fitted, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="something else is there"):
        fitted.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_was_saved_is_there_until_the_new_one_is(fitted, tmp_path, monkeypatch):
    folder, real = fitted.save(tmp_path / "f"), Path.rename
    with lock.hold(folder), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        fitted.save(folder)

    def pressed(self, target):
        if self.name == "whole":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", pressed)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert Forecaster.load(folder).fitted.prompt_hash == fitted.fitted.prompt_hash


def test_a_saved_forecaster_that_is_not_whole_is_named(fitted, tmp_path):
    folder = fitted.save(tmp_path / "f")
    for name in ("forecaster.npz", "config.json", "backbone.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(UserError, match=name.split(".")[0]):
            Forecaster.load(folder)
        (folder / name).write_bytes(kept)
    about = seal.read_json(folder / "forecaster.json")
    seal.write_json(folder / "forecaster.json", {**about, "format": 99})
    with pytest.raises(UserError, match="format 99; accepted: 1"):
        Forecaster.load(folder)


def test_knobs_that_an_earlier_version_did_not_know_stand_at_their_default_and_later_ones_are_refused(fitted, tmp_path):
    folder = fitted.save(tmp_path / "f")
    knobs = seal.read_json(folder / "config.json")
    earlier = {key: value for key, value in knobs.items() if key not in ("views", "detect")}
    seal.write_json(folder / "config.json", earlier)
    known = Forecaster.load(folder).fitted.cfg
    assert (known.views, known.detect) == (config.default().views, config.default().detect)
    for more, words in (({"flux": 3}, "config key flux does not exist"), ({"lookback": -5}, "lookback = -5 is out of")):
        seal.write_json(folder / "config.json", {**knobs, **more})
        with pytest.raises(UserError, match=rf"f/config\.json: .*{words}"):
            Forecaster.load(folder)


def settle(rows: int, **params):
    asked = {**Forecaster(6).get_params(), **params}
    return fitting.settle(frames.read(make(rows)), Wish.of(asked), {})


def test_a_lookback_alone_gets_a_patch_that_divides_it():
    cfg, _ = settle(ROWS, lookback=100)
    assert cfg.lookback == 100
    assert 100 % cfg.model.patch == 0
    assert settle(ROWS, lookback=96)[0].model.patch == 24


def test_a_short_history_is_warned_of():
    with pytest.warns(UserWarning, match="120 rows are a short history"):
        settle(120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settle(ROWS)


def test_series_of_other_lengths_and_ends_learn_together(fitted):
    frame = pd.concat([long(make()), long(make(50, seed=2)).assign(unique_id=lambda f: "young " + f["unique_id"])])
    table = frames.read(frame)
    assert fitting.typical_rows(table, 6) == 50
    assert fitting.typical_rows(table, HORIZON) == ROWS
    assert len(fitting.as_series(table, 60).names_C) == 2  # the young ones have nothing before validation
    assert len(fitting.as_series(table, 30).names_C) == 4
    found = fitted.predict(frame, levels=())
    ends = found.groupby("unique_id")["ds"].min()
    assert ends["young load"] == pd.Timestamp("2024-01-03 02:00")
    assert ends["load"] == pd.Timestamp("2024-01-17 16:00")


def test_a_frame_with_many_rows_missing_is_read_as_it_was_learned(fitted):
    frame = make()
    holes = frame[np.random.default_rng(0).random(ROWS) < 0.4]
    opening = frame[frame["ds"].dt.hour.between(8, 17)]
    for some in (holes, opening, frame.iloc[[-50, -2, -1]]):
        assert np.isfinite(fitted.predict(some, levels=()).drop(columns="ds").to_numpy()).all()


def test_a_series_that_hardly_began_has_intervals_like_the_others(fitted):
    frame = pd.concat([long(make()), long(make(30, seed=2)[["ds", "load"]]).assign(unique_id="young")])
    of = fitted.fitted
    known = calibrate.fit(of.predictor, frames.read(frame), 80, of.intervals.unit)
    assert known.ratio_C.max() <= intervals.MOST * known.relative
    assert known.ratio_C[2] == pytest.approx(known.relative)


def test_what_was_left_out_of_a_frame_is_warned_of(fitted):
    with pytest.warns(UserWarning, match="1 column without numbers left out: 'note'"), pytest.raises(UserError):
        Forecaster(3, lookback=96, patch=7).fit(make().assign(note="x"))


def test_what_chooses_and_calibrates_teaches_nothing():
    frame = make()
    before = fitting.as_series(frames.read(frame), 80)
    assert before.splits["train"] == (0, ROWS - 80)
    assert before.splits["validation"] == (ROWS - 80, ROWS)
    frame.loc[ROWS - 80 :, ["load", "wind"]] *= 100
    after = fitting.as_series(frames.read(frame), 80)
    np.testing.assert_array_equal(after.values_TC[: ROWS - 80], before.values_TC[: ROWS - 80])


def test_rows_are_padded_to_few_shapes(fitted, monkeypatch):
    shapes = set()
    run = predict.run
    monkeypatch.setattr(predict, "run", lambda *a: shapes.add(a[4].shape) or run(*a))
    of: Predictor = fitted.fitted.predictor
    rows = np.random.default_rng(0).normal(size=(9, of.lookback))
    whole = of(rows, 5)
    for count in (1, 5, 6, 7, 8):
        np.testing.assert_allclose(of(rows[:count], 5), whole[:count], rtol=1e-5, atol=1e-6)
    assert {s[0] for s in shapes} == {16, 1, 8}


def test_gaps_are_closed_and_nothing_else_is_touched(fitted):
    truth, rng = make(), np.random.default_rng(0)
    frame = truth.assign(note="x")
    frame.loc[rng.random(ROWS) < 0.2, "load"] = np.nan
    frame.loc[200:230, "wind"] = np.nan
    found, kept = fitted.impute(frame), frame.copy()
    pd.testing.assert_frame_equal(frame, kept)
    assert list(found) == list(frame)
    gap = frame[["load", "wind"]].isna()
    assert not found[["load", "wind"]].isna().any().any()
    assert (found[["load", "wind"]].to_numpy()[~gap] == truth[["load", "wind"]].to_numpy()[~gap]).all()
    for name, spread in (("load", 14), ("wind", 0.7)):  # of a wave's own standard deviation
        error = (found[name] - truth[name])[gap[name]].to_numpy()
        assert np.sqrt(np.mean(error**2)) < 0.7 * spread
    moved = fitted.impute(frame.assign(load=1e6 + 100 * frame["load"]))
    np.testing.assert_allclose((moved["load"] - 1e6) / 100, found["load"], rtol=1e-3)
    empty = fitted.impute(frame.assign(wind=np.nan))
    assert empty["wind"].isna().all()


def test_a_step_that_its_surroundings_do_not_explain_has_the_highest_score(fitted):
    frame = long(make())
    frame.loc[250, "y"] += 90
    found = fitted.detect(frame)
    assert list(found) == ["unique_id", "ds", "y", "score"]
    assert int(found["score"].argmax()) == 250
    assert (found["score"] >= 0).all()
    assert list(fitted.detect(make()))[-2:] == ["load-score", "wind-score"]


def test_an_embedding_tells_series_apart_and_not_their_units(fitted):
    frame = make().assign(more=lambda f: 7 * f["load"] - 3, noise=np.random.default_rng(1).normal(size=ROWS))
    e = fitted.embed(frame)
    assert e.shape == (4, 16)
    assert e.index.name == "unique_id"
    apart = lambda a, b: np.linalg.norm(e.loc[a] - e.loc[b])  # noqa: E731
    assert apart("load", "more") < 1e-2 < apart("load", "noise")


def louder(rows: int, times: float) -> pd.DataFrame:
    """What was learned from, and rows after it that are noisier."""
    frame, rng = make(rows), np.random.default_rng(5)
    for name, noise in (("load", 1.0), ("wind", 0.1)):
        frame.loc[ROWS:, name] += times * noise * rng.normal(size=rows - ROWS)
    return frame


def width(found: pd.DataFrame) -> np.ndarray:
    return (found["load-hi-80"] - found["load-lo-80"]).to_numpy()


def test_intervals_widen_with_what_came_since(fitted):
    at_the_end = make()
    pd.testing.assert_frame_equal(fitted.predict(at_the_end), fitted.predict())
    assert np.isnan(fitted.drift(at_the_end))
    wild, calm = louder(ROWS + 150, 10), louder(ROWS + 150, 0)
    factor = fitted.drift(wild)
    assert factor > 1.3 > fitted.drift(calm)
    assert fitted.drift(wild[["ds", "wind", "load"]].iloc[::-1]) == factor
    lookback = fitted.fitted.cfg.lookback
    assert fitted.drift(wild.iloc[ROWS - lookback :]) == factor > fitted.drift(wild.iloc[ROWS - lookback + 100 :])
    over = long(wild.assign(wind=wild["wind"].where(wild.index < ROWS))).dropna()
    assert fitted.drift(over) == fitted.drift(wild[["ds", "load"]])  # one that ended when it learned
    short = wild.iloc[-lookback:]  # no row before a window that began since
    assert np.isnan(fitted.drift(short))
    usual, found = fitted.predict(short), fitted.predict(wild)
    np.testing.assert_allclose(width(found), factor * width(usual), rtol=1e-6)
    np.testing.assert_allclose(found["load"], usual["load"], rtol=1e-6)
    assert list(fitted.predict(wild, levels=())) == ["ds", "load", "wind"]


def test_a_window_of_the_past_is_as_wide_as_it_was_then(fitted):
    wild = louder(ROWS + 200, 10)
    found = fitted.cross_validation(wild, n_windows=5, step_size=37, refit=False)
    for cutoff, window in found.groupby("cutoff"):
        then = fitted.predict(wild[wild["ds"] <= cutoff])
        columns = ["load", "load-lo-80", "load-hi-95", "wind-hi-80"]
        np.testing.assert_allclose(window[columns], then[columns], rtol=1e-6)


def test_the_end_of_what_was_learned_is_kept(fitted, tmp_path):
    wild = louder(ROWS + 150, 10)
    renamed = long(wild).set_axis(["sensor", "when", "value"], axis=1)
    other = Forecaster.load(fitted.save(tmp_path / "saved"))
    other.set_params(id_column="sensor", time_column="when", target_column="value")
    again = Forecaster.load(other.save(tmp_path / "again"))
    assert other.drift(renamed) == again.drift(renamed) == fitted.drift(wild)
    pd.testing.assert_frame_equal(again.predict(renamed), other.predict(renamed))
    assert np.isnan(fitted.drift(wild.rename(columns={"load": "elsewhere", "wind": "there"})))
    earlier = json.loads((tmp_path / "saved" / "forecaster.json").read_text())
    seal.write_json(
        tmp_path / "saved" / "forecaster.json", {k: v for k, v in earlier.items() if k not in ("ends", "seal")}
    )
    assert np.isnan(Forecaster.load(tmp_path / "saved").drift(wild))  # of an earlier version
