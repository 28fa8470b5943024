"""Many tasks on one backbone. One small Forecaster is fitted once; its prompt, moved a little, is each further task."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from test_forecaster import TINY, long, make

from ptt_jax import Bank, checkpoint, intervals, parcel, predict, prompts
from ptt_jax.errors import UserError
from ptt_jax.forecaster import Forecaster

HORIZON = 30
QUICK = {key: value for key, value in TINY.items() if key.startswith(("tune", "cache"))}


@pytest.fixture(scope="module")
def base() -> Forecaster:
    return Forecaster(HORIZON, knobs={**TINY, "pretrain.steps": 10}).fit(make())


@pytest.fixture(scope="module")
def short(base) -> Forecaster:
    """Another horizon and another lookback."""
    return Forecaster(7, lookback=48, knobs=QUICK).tune(make(seed=3), base)


def other(of: Forecaster, seed: int) -> Forecaster:
    """The Forecaster with another prompt, whose file is still the former's."""
    rng, fitted = np.random.default_rng(seed), of.fitted
    prompt = {leaf: rng.normal(size=a.shape).astype(np.float32) for leaf, a in fitted.predictor.prompt.items()}
    predictor = fitted.predictor._replace(prompt=jax.device_put(prompt))
    return Forecaster.of(dataclasses.replace(fitted, predictor=predictor), of.get_params())


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Bank:
    bank = Bank.create(tmp_path_factory.mktemp("whole") / "bank", base)
    for seed in range(3):
        bank.add(f"shop {seed}", other(base, seed))
    return bank


@pytest.fixture
def bank(whole, tmp_path) -> Bank:
    """A copy that a test may change."""
    return Bank.open(shutil.copytree(whole.folder, tmp_path / "bank"))


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


def test_a_batch_of_requests_is_answered_as_each_task_would(bank, base, short):
    bank.add("little", short)
    asked = {"shop 2": make(seed=5), "little": long(make(seed=6)), "shop 0": make(90, seed=7)[["ds", "wind"]]}
    found = bank.predict(asked, levels=(80, 99))
    assert list(found) == list(asked)
    for name, of in (("shop 2", other(base, 2)), ("little", short), ("shop 0", other(base, 0))):
        same(found[name], of.predict(asked[name], levels=(80, 99)))
    assert not np.allclose(found["shop 2"]["wind"], other(base, 0).predict(asked["shop 2"])["wind"], rtol=0.01)
    fewer = bank.predict(asked, horizon=5, levels=())
    same(fewer["shop 0"], found["shop 0"][["ds", "wind"]].iloc[:5])


def test_all_rows_are_one_call_and_further_tasks_compile_nothing(bank, base, monkeypatch):
    calls = []
    run = predict.run
    monkeypatch.setattr(predict, "run", lambda *a: calls.append(a[5].shape) or run(*a))
    rows = np.random.default_rng(0).normal(size=(4, 200))
    names = ["shop 0", "shop 1", "shop 2", "shop 0"]
    y_RH = bank.forecast(names, rows)
    assert len(calls) == 1
    programs = run._cache_size()
    bank.add("shop 3", other(base, 9))
    again = bank.forecast([*names[:3], "shop 3"], rows, horizon=HORIZON - 1)
    np.testing.assert_allclose(again[:3], y_RH[:3, :-1], rtol=1e-5)
    np.testing.assert_allclose(again[3:], other(base, 9).fitted.predictor(rows[3:], HORIZON - 1), rtol=1e-5)
    assert run._cache_size() == programs


def test_a_row_is_nan_after_its_own_horizon_and_where_nothing_is_known(bank, short):
    bank.add("little", short)
    y_RH = bank.forecast(["little", "shop 1", "shop 1"], np.stack([*np.random.rand(2, 60), np.full(60, np.nan)]))
    assert np.isnan(y_RH).tolist() == [[False] * 7 + [True] * 23, [False] * 30, [True] * 30]


def test_blocks_past_the_first_have_their_own_prompts(bank, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(5, 100))
    names = ["shop 2", "shop 1", "shop 0", "shop 1", "shop 2"]
    whole = bank.forecast(names, rows)
    monkeypatch.setattr(predict, "ROWS", 2)
    np.testing.assert_allclose(bank.forecast(names, rows), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["position", "shared", "layer"])
def test_a_stack_asks_each_row_with_its_own_tokens(kind):
    def draw(count: int) -> prompts.Prompt:
        tree = prompts.make(kind, count, 4, blocks=2)
        return jax.tree.map(lambda a: np.random.default_rng(count).normal(size=a.shape).astype(np.float32), tree)

    each = [draw(2), draw(3)]
    stack = prompts.stack(each, 4, 8)
    (leaf,) = stack.values()
    assert leaf.shape == (8, 2 if kind == "layer" else 1, 4, 4)
    rows_IRMD = prompts.tokens(jax.device_put(stack), 2, jax.numpy.array([1, 0]))
    for r, prompt in enumerate((each[1], each[0])):
        alone = prompts.tokens(jax.device_put(prompt), 2, jax.numpy.array([0]))
        np.testing.assert_array_equal(rows_IRMD[:, r], alone.reshape(-1, 2, 4))


def files(folder) -> dict:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_tasks_come_and_go_and_the_backbone_is_never_written(bank, base):
    before = files(bank.folder)
    tuned = bank.tune("new", make(seed=4), horizon=12, knobs=QUICK)
    same(bank.predict({"new": make(seed=5)})["new"], tuned.predict(make(seed=5)))
    bank.add("shop 0", other(base, 8), replace=True)
    same(bank.predict({"shop 0": make()})["shop 0"], other(base, 8).predict(make()))
    bank.remove("shop 1")
    assert [*bank] == ["new", "shop 0", "shop 2"]
    assert len(bank) == 3
    assert "shop 1" not in bank
    after = files(bank.folder)
    changed = {p for p in {*before, *after} if before.get(p) != after.get(p)}
    assert {p.name for p in changed} == {"new.npz", "shop%200.npz", "shop%201.npz"}
    assert max(p.stat().st_size for p in changed if p.exists()) < 30_000


def test_another_process_sees_what_was_added_replaced_and_removed(bank, base):
    twin = Bank.open(bank.folder)
    before = twin.predict({"shop 0": make()})["shop 0"]
    bank.add("shop 0", other(base, 8), replace=True)
    bank.remove("shop 1")
    same(twin.predict({"shop 0": make()})["shop 0"], other(base, 8).predict(make()))
    assert not np.allclose(before["load"], twin.predict({"shop 0": make()})["shop 0"]["load"], rtol=1e-3)
    with pytest.raises(UserError, match=r"'shop 1' is not in the bank .*; nearest: .*shop 0"):
        twin.predict({"shop 1": make()})


def test_a_task_is_a_forecaster_again(bank, base, tmp_path):
    one = bank.forecaster("shop 1")
    same(one.predict(make()), other(base, 1).predict(make()))
    assert one.get_params() == base.get_params()
    again = Forecaster.load(one.save(tmp_path / "kept"))
    same(again.predict(make()), one.predict(make()))
    with pytest.raises(UserError, match=r"without its frame; accepted: predict\(df\)"):
        again.predict()
    bank.add("twin", one)
    assert len(one.cross_validation(make(), n_windows=2, refit=False)) == 2 * HORIZON
    shutil.rmtree(bank.folder)
    same(again.predict(make()), one.predict(make()))


def test_any_name_of_moderate_length_is_a_file_inside_the_folder(bank, base):
    names = ["a/b", "..", ".hidden", "Müller & Söhne", "a%2Fb", "x" * 200, "CON", " "]
    for name in names:
        bank.add(name, base)
        assert name in bank
    assert len([*(bank.folder / "tasks").iterdir()]) == len(bank) == 3 + len(names)
    assert {*names} < {*bank}
    bank.check()
    for name in names:
        bank.remove(name)
    assert len(bank) == 3


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda b, f: b.add("", f), "'' of a task makes no file's"),
        (lambda b, f: b.add("x" * 300, f), "accepted: text of 1 to 200 characters"),
        (lambda b, f: b.add("\ud800", f), "makes no file's"),
        (lambda b, f: b.add(7, f), "'7' of a task makes no file's"),
        (lambda b, f: b.add("shop 1", f), "'shop 1' is in the bank; accepted: another name, or replace=True"),
        (lambda b, f: b.tune("shop 1", make(), horizon=6), "is in the bank"),
        (lambda b, f: b.remove("shop 9"), "'shop 9' is not in the bank .*; nearest: "),
        (lambda b, f: b.predict({"shop 1": make()}, horizon=31), "'shop 1' was tuned for 30 steps; accepted: 1 to 30"),
        (lambda b, f: b.predict({"shop 1": make()[::2]}), "task 'shop 1': the frame's rows are 2 steps of 'h' apart"),
        (lambda b, f: b.predict({"shop 1": make()[["ds"]]}), "task 'shop 1': the frame has no column of numbers"),
        (lambda b, f: b.predict({"shop 1": make().assign(load=np.nan, wind=np.nan)}), "series of task 'shop 1' 'load'"),
        (lambda b, f: b.predict({"shop 1": make()}, levels=(120,)), "percentages above 0"),
        (lambda b, f: b.forecast(["shop 1"], np.zeros(9)), r"1 names for histories of shape \(9,\)"),
        (lambda b, f: Bank.create(b.folder, f), "something is there; accepted: a new folder, or Bank.open"),
        (lambda b, f: Bank.create(b.folder.parent / "new", "nowhere"), "nowhere/backbone.json does not exist"),
        (lambda b, f: Bank.open("nowhere"), "nowhere is no bank; accepted: a folder that Bank.create made"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(whole, base, ask, words):
    before = files(whole.folder.parent)
    with pytest.raises(UserError, match=words):
        ask(whole, base)
    assert files(whole.folder.parent) == before


def test_a_prompt_of_another_backbone_is_refused(bank, base, tmp_path):
    predictor = base.fitted.predictor
    predictor = predictor._replace(backbone=jax.tree.map(lambda a: a + 1, predictor.backbone))
    foreign = dataclasses.replace(base.fitted, predictor=predictor)
    with pytest.raises(UserError, match=r"of task 'x' is on backbone .*, and this bank's is"):
        bank.add("x", Forecaster.of(foreign, base.get_params()))
    parcel.Parcel.of("x", foreign, base.get_params()).write(bank.folder / "tasks" / "x.npz")
    with pytest.raises(UserError, match=r"x\.npz belongs to backbone"):
        bank.predict({"x": make()})


def test_a_file_that_is_not_what_was_written_is_named_and_does_not_hinder_others(bank, base):
    path = bank.folder / "tasks" / "shop%201.npz"
    whole = path.read_bytes()
    shutil.copy(path, path.with_name("copy.npz"))
    with pytest.raises(UserError, match=r"copy\.npz holds the task 'shop 1', not 'copy'"):
        bank.check()
    path.with_name("copy.npz").unlink()
    with np.load(path) as held:
        parts = dict(held)
    changed = {**parts, "tokens_MD": parts["tokens_MD"] + 1}
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04 hello", b"ds,load\n1,2\n", changed, {"x": np.zeros(3)}):
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        for call in (bank.check, lambda: bank.predict({"shop 1": make()}), lambda: bank.forecaster("shop 1")):
            with pytest.raises(UserError, match=r"shop%201\.npz is no"):
                call()
    same(bank.predict({"shop 0": make()})["shop 0"], other(base, 0).predict(make()))
    bank.remove("shop 1")
    bank.check()


def test_a_bank_that_is_not_whole_is_refused(bank):
    (bank.folder / "bank.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99; accepted: 1"):
        Bank.open(bank.folder)
    (bank.folder / "bank.json").write_text(json.dumps({"format": 1, "backbone": "0" * 64}))
    with pytest.raises(UserError, match="another backbone than its tasks"):
        Bank.open(bank.folder)


def test_a_bank_is_a_backbone_to_tune_on_and_holds_no_state(bank):
    assert checkpoint.find_backbone(bank.folder)["content_hash"] == bank.hash
    assert not [p for p in bank.folder.rglob("*") if p.name == "state" or p.suffix in (".pkl", ".tmp")]


def test_a_long_table_of_quantiles_is_thinned_and_a_short_one_is_not():
    assert intervals.knots(1).tolist() == [0]
    assert intervals.knots(60).tolist() == [*range(60)]
    at_K = intervals.knots(720)
    assert len(at_K) == 41
    line_QH = np.outer(np.arange(3.0), np.arange(720.0)) + 1
    np.testing.assert_allclose(intervals.all_steps(line_QH[:, at_K], at_K), line_QH, rtol=1e-12)
    walk_WHC = np.random.default_rng(0).normal(size=(60, 100, 2)).cumsum(1)
    known = intervals.fit(walk_WHC, np.ones((60, 2)))
    at_K = intervals.knots(100)
    thinned = known._replace(quantile_QH=intervals.all_steps(known.quantile_QH[:, at_K].astype(np.float32), at_K))
    moved_H = np.abs(thinned.at(0.9) - known.at(0.9)) / (known.at(0.9) - known.at(0.1))
    assert 0 < moved_H.mean() < 0.004
    assert moved_H.max() < 0.03
