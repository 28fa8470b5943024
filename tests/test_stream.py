"""A streamed series gives what a resident one gives, never lies on the device, and leaves no thread behind."""

import itertools
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from ptt_jax import (
    architecture,
    checkpoint,
    config,
    encodings,
    foresight,
    loop,
    main,
    mesh,
    problems,
    rundir,
    score,
    stream,
    train,
    tune,
    windows,
)
from ptt_jax.log import Log
from ptt_jax.store import Store

CHUNK = 3 * 160 * (48 + 24) * 5 * 5 // 2  # budget: two and a half steps of pre-training's batch
TASK = "generated-12-20"


@pytest.fixture(scope="module")
def resident(problem):
    """With a twentieth of the values missing."""
    observed_CT = np.random.default_rng(0).random(problem.panel.observed_CT.shape) > 0.05
    return problem._replace(panel=problem.panel.replace(observed_CT=jnp.asarray(observed_CT)))


def streamed(problem, on=None, budget=CHUNK, folder=None):
    panel = jax.device_get(problem.panel)
    values_CT, observed_CT = panel.values_CT, panel.observed_CT
    if folder:
        np.save(folder / "values.npy", values_CT)
        values_CT = np.load(folder / "values.npy", mmap_mode="r")
    on = on or problem.mesh
    return problem._replace(panel=stream.Host(values_CT, observed_CT, on, budget), mesh=on)


def make_config():
    """Over an epoch of 873 rows in either stage, batches that do not divide them, several dispatches to a pause."""
    cfg = config.default()
    cfg.lookback, cfg.horizons, cfg.cache_dir = 48, (12, 20), ""
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(steps=8, batch=160, validations=2, validation_rows=600)
    cfg.tune.update(steps=6, batch=160, validations=2, learning_rate=3e-2, seeds=2)
    cfg.evaluate.update(batch=100, samples=2)
    return cfg


def stages(run, problem):
    cfg = make_config()
    rundir.open_run(run, cfg, {"name": "generated"})
    log = Log(run / "metrics.jsonl")
    plans = foresight.look(cfg, run, problem, log)
    train.pretrain(cfg, run, problem, log)
    task = tune.tune(cfg, run, problem, log, ready=plans.prompts)
    score.score(cfg, run, problem, task, log, plans.scoring)
    return run


def outcome(run):
    """Weights, prompts, what validation said, results and samples: everything that a run found out."""
    card = checkpoint.find_backbone(run)
    backbone = checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
    prompts = checkpoint.load_prompts(run, TASK, card["content_hash"])
    looks = []
    for folder, items in (("backbone", ("params", "state")), (f"prompts/{TASK}", ("prompt", "state"))):
        store = Store(run / folder, items)
        looks.append([value for _, value in store.meta(store.latest())["history"]])
        store.close()
    lines = pd.read_json(run / "metrics.jsonl", lines=True)
    names, samples = ("results", "steps", "channels"), []
    frames = [pd.read_csv(run / f"{name}.csv").select_dtypes("number").to_numpy() for name in names]
    for name in ("samples", "exhibits"):
        with np.load(run / f"{name}.npz") as f:
            samples += [f[name] for name in f if f[name].dtype.kind == "f"]
    return backbone, prompts, looks, lines["loss"].to_numpy(), frames, samples


def panels():
    """How many arrays of the series' own shape are alive."""
    return sum(a.shape == (3, 500) for a in jax.live_arrays())


def threads():
    """The loader's threads, after a moment in which they may end."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = [t for t in threading.enumerate() if t.name.startswith("grain")]
        if not found:
            break
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def finished(resident, tmp_path_factory, foretold):
    """A resident run of all stages and a streamed one, and how many more panels were on the device during that; and
    what of each came as it was foreseen."""
    folder = tmp_path_factory.mktemp("runs")
    with foretold() as of_one:
        one, other = stages(folder / "resident", resident), streamed(resident)
    before, most = panels(), []
    with pytest.MonkeyPatch.context() as patch:
        cut = stream.cut
        patch.setattr(stream, "cut", lambda *args: (most.append(panels()), cut(*args))[1])
        with foretold() as of_two:
            two = stages(folder / "streamed", other)
    return one, two, max(most) - before, (of_one, of_two)


@pytest.mark.slow
def test_what_was_foreseen_is_what_ran(finished):
    """Nothing that later stages run is traced or compiled again when they come."""
    of_one, of_two = finished[3]
    assert of_one == ["validation", "encoding", "encoding", "evaluation", "tune", "evaluation"]
    assert of_two == ["validation", "evaluation", "tune", "evaluation"]


@pytest.mark.slow
def test_a_streamed_run_is_the_resident_run(finished):
    ours, theirs = outcome(finished[1]), outcome(finished[0])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # of two programs, which round as they are fused
    ours, theirs = (pd.read_csv(run / "results.csv") for run in finished[1::-1])
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)  # as written: of six digits the last may fall either way


@pytest.mark.slow
def test_the_series_is_never_on_the_device(finished):
    assert finished[2] == 0
    assert not threads()


@pytest.mark.slow
def test_a_streamed_run_that_was_stopped_ends_as_if_it_had_not(finished, resident, tmp_path, monkeypatch):
    """Stopped in pre-training, after its first save, and again in tuning, after the second."""
    save = Store.save
    for saves in (1, 3):
        left = itertools.count(1)

        def cut(self, *args, saves=saves, left=left):
            save(self, *args)
            if next(left) == saves:
                raise InterruptedError

        monkeypatch.setattr(Store, "save", cut)
        with pytest.raises(InterruptedError):
            stages(tmp_path / "run", streamed(resident))
        assert not threads()
    monkeypatch.setattr(Store, "save", save)
    stages(tmp_path / "run", streamed(resident))
    jax.tree.map(np.testing.assert_array_equal, outcome(tmp_path / "run"), outcome(finished[1]))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_host_cuts_what_the_device_would_in_the_same_order(resident, tmp_path, split, devices):
    """Every row, those among them that reach past the split's end; each device gets its own."""
    span, on = resident.span(split, 48, (12, 20)), mesh.make(devices)
    order = jax.jit(lambda i: windows.batch(jax.random.key(1), i, 64, span.rows))
    count = -(-span.rows // 64)
    seen = []
    host = streamed(resident, on, folder=tmp_path).panel
    for i, fed in enumerate(host.feed(span, lambda i: np.stack([order(2 * i), order(2 * i + 1)]), -(-count // 2))):
        assert {s.data.shape for s in fed.values_JRL.addressable_shards} == {(2, 64 // devices, 68)}
        for j in range(2):
            seen.append(np.asarray(order(2 * i + j)))
            for part in (windows.take, windows.past, windows.future):
                ours = part(fed.at(j), span, None)
                theirs = part(resident.panel, span, seen[-1])
                np.testing.assert_array_equal(ours[1], theirs[1])
                np.testing.assert_array_equal(*(np.where(ours[1], x, 0) for x in (ours[0], theirs[0])))
    assert {*np.concatenate(seen)} == {*range(span.rows)}


@pytest.mark.slow
def test_four_devices_give_the_weights_of_one(finished, resident, tmp_path):
    cfg, run = make_config(), tmp_path / "run"
    rundir.open_run(run, cfg, {"name": "generated"})
    train.pretrain(cfg, run, streamed(resident, mesh.make(4)), Log(run / "metrics.jsonl"))
    card = checkpoint.find_backbone(run)
    shapes = architecture.shapes(architecture.build(card["architecture"], "float32"))
    ours = checkpoint.load_backbone(card, shapes)
    theirs = checkpoint.load_backbone(checkpoint.find_backbone(finished[0]), shapes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_the_next_dispatch_is_cut_while_one_is_at_work_and_no_more_than_that(resident):
    span, asked = resident.span("train", 48, (12, 20)), [threading.Event() for _ in range(9)]

    def rows(dispatch):
        asked[dispatch].set()
        return np.zeros((1, 4), int)

    feed = streamed(resident).panel.feed(span, rows, 9)
    next(feed)
    assert asked[1].wait(10)
    assert not asked[2].wait(0.2)
    feed.close()  # as when a stage stops early
    assert not threads()
    assert not asked[2].is_set()


def test_what_fails_in_the_loader_fails_the_run(resident, tmp_path, monkeypatch):
    calls, cut = itertools.count(), stream.cut

    def torn(*args):
        if next(calls) == 5:
            raise OSError("the disk is gone")
        return cut(*args)

    monkeypatch.setattr(stream, "cut", torn)
    with pytest.raises(OSError, match="the disk is gone"):
        stages(tmp_path / "run", streamed(resident))
    assert not threads()


@pytest.mark.parametrize(("steps", "pauses", "first"), [(120, 2, 0), (301, 3, 0), (301, 3, 100), (301, 3, 301)])
@pytest.mark.parametrize("fits", [None, 7])
def test_dispatches_are_short_enough_and_nearly_alike(steps, pauses, first, fits):
    panel = type("", (), {"fits": lambda *_: fits})()
    chunks = loop.Loop("", steps, pauses, None, encodings.Cached(panel), None, lambda at: at, (), None).chunks(first)
    flat = [pair for until in chunks for pair in until]
    assert [b for b, _ in flat] + [steps] == [first] + [e for _, e in flat]
    for until in chunks:
        sizes = [end - begin for begin, end in until]
        assert max(sizes) <= (fits or loop.CHUNK)
        assert max(sizes) - min(sizes) <= 1
    assert [until[-1][1] for until in chunks] == [p for i in range(pauses) if (p := steps * (i + 1) // pauses) > first]


def test_a_series_over_the_budget_is_streamed_and_one_within_it_is_not(problem):
    size = 500 * 3 * 5
    assert isinstance(problems.prepare(problem.series, problem.mesh, size).panel, windows.Panel)
    panel = problems.prepare(problem.series, problem.mesh, size - 1).panel
    np.testing.assert_array_equal(panel.values_CT, problem.panel.values_CT)
    np.testing.assert_array_equal(panel.observed_CT, problem.panel.observed_CT)
    assert panel.values_CT.flags.c_contiguous  # else a window is no stretch of memory
    span = problem.span("train", 48, (12,))
    assert panel.fits(span, 10) == 1
    assert streamed(problem, budget=7 * 3 * 10 * 60 * 5).panel.fits(span, 10) == 7
    assert streamed(problem, mesh.make(4), budget=7 * 3 * 10 * 60 * 5).panel.fits(span, 10) == 28


def test_without_grain_a_series_over_the_budget_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grain", None)
    run = ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", "--config.data.rows=2000"]
    assert main.main([*run, "--config.cache_dir=", "--config.data.device_bytes=1000"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "config.data.device_bytes = 1,000" in err
    assert "accepted: pip install ptt_jax[stream], or a config.data.device_bytes of at least 40000" in err
    assert not (tmp_path / "run").exists()
