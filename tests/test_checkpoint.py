import errno
import json
import logging
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from ptt_jax import checkpoint, config, mesh, provenance, rundir
from ptt_jax import store as stores
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.log import Log
from ptt_jax.seal import write_json
from ptt_jax.store import Store

DATA = {"name": "x", "fingerprint": "0", "freq": "h", "splits": {"train": (0, 9)}}


def tree(value: float):
    return {"a": {"b": np.full((2, 3), value, np.float32)}, "n": np.int32(7)}


def test_two_steps_are_kept_until_a_stage_is_done_and_read_by_another(tmp_path):
    store = Store(tmp_path / "s", ("params",))
    for step in (1, 2, 4):
        store.save(step, {"params": tree(step)}, {"note": step})
    kept = lambda: sorted(p.name for p in (tmp_path / "s").iterdir() if p.name.isdigit())  # noqa: E731
    assert kept() == ["2", "4"]
    store.finish()
    assert kept() == ["4"]
    again = Store(tmp_path / "s", ("params",), write=False)
    assert again.latest() == 4
    assert again.restore(4, "params", tree(0))["a"]["b"][0, 0] == 4
    assert again.meta(4) == {"note": 4, "format": stores.FORMAT}
    again.close()


def test_reading_makes_nothing_in_a_stranger_s_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Store(tmp_path / "none", ("params",), write=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("broken", ["params", "meta", "params/manifest.ocdbt", "params/d", "params/_METADATA"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, broken):
    store = Store(tmp_path / "s", ("params",))
    store.save(1, {"params": tree(1)}, {})
    store.close()
    path = tmp_path / "s" / "1" / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = Store(tmp_path / "s", ("params",), write=False)
    with pytest.raises(UserError, match=r"accepted: the files as (the|a) run wrote them"):
        again.meta(1) if broken == "meta" else again.restore(1, "params", tree(0))
    again.close()


def test_one_item_is_restored_without_the_other(tmp_path):
    store = Store(tmp_path / "s", ("params", "opt_state"))
    store.save(1, {"params": tree(1), "opt_state": {"m": np.zeros(9)}}, {})
    store.close()
    other = Store(tmp_path / "s", ("params", "opt_state"))
    assert other.restore(1, "params", tree(0))["a"]["b"].shape == (2, 3)
    other.close()


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (
            {"a": {"b": np.zeros((3, 2), np.float32)}, "n": np.int32(0)},
            r"a/b is float32\[2, 3\] in the file and float32\[3, 2\]",
        ),
        (
            {"a": {"b": np.zeros((2, 3), np.float16)}, "n": np.int32(0)},
            r"a/b is float32\[2, 3\] in the file and float16\[2, 3\]",
        ),
        (
            {"a": {"c": np.zeros((2, 3), np.float32)}, "n": np.int32(0)},
            r"a/b is float32\[2, 3\] in the file and nothing",
        ),
        ({"a": {"b": np.zeros((2, 3), np.float32)}}, r"n is int32\[\] in the file and nothing"),
        ({**tree(0), "z": np.zeros(1)}, r"z is nothing in the file and float64\[1\]"),
    ],
)
def test_a_tree_that_does_not_fit_is_named_by_its_leaf(tmp_path, like, words):
    store = Store(tmp_path / "s", ("params",))
    store.save(1, {"params": tree(1)}, {})
    with pytest.raises(UserError, match=words):
        store.restore(1, "params", like)
    store.close()


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", "old")

    def no(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", no)
    with pytest.raises(UserError, match=r"f cannot be written \(disk full\); accepted: a place that can be written"):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert not (tmp_path / "f.tmp").exists()


def test_a_run_directory_is_made_once_and_refuses_strangers(tmp_path):
    cfg = config.default()
    run = rundir.open_run(tmp_path / "a" / "run", cfg, DATA)
    assert config.from_json((run / "config.json").read_text()) == cfg
    assert {"jax", "flax", "python", "device", "git"} <= set(json.loads((run / "versions.json").read_text()))
    (run / "versions.json").write_text("{}")
    rundir.open_run(run, cfg, DATA)
    assert (run / "versions.json").read_text() == "{}"  # they say what made the run, not who looked at it last
    with pytest.raises(UserError, match="holds a run on other data"):
        rundir.open_run(run, cfg, {**DATA, "fingerprint": "1"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match=r"is not empty and holds no config.json"):
        rundir.open_run(tmp_path / "other", cfg, DATA)
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read as JSON"):
        rundir.open_run(run, cfg, DATA)


def test_a_machine_without_git_is_no_obstacle(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert provenance.versions()["git"] == "unknown"


def test_installed_in_somebody_else_s_repository_it_does_not_take_their_commit_for_its_own(tmp_path):
    def git(*command):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / ".venv" / "ptt_jax" / "checkpoint.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert provenance.git_state(file) == "unknown"
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert provenance.git_state(file) == "unknown"
    git("add", "-A")
    git("commit", "-m", "ours")
    assert re.fullmatch("[0-9a-f]{7,}", provenance.git_state(file))
    file.write_text("changed")
    assert provenance.git_state(file).endswith("-dirty")


@pytest.mark.parametrize(
    ("knob", "value", "same"),
    [
        ("seed", 1, False), ("tune.batch", 7, False), ("lookback", 12, False), ("compute_dtype", "bfloat16", False),
        ("pretrain.batch", 7, True), ("cache_dir", "", True), ("evaluate.batch", 7, True),
    ],
)  # fmt: skip
def test_steps_belong_to_the_knobs_that_decide_them_and_to_what_they_are_of(knob, value, same):
    cfg = config.default()
    whose = checkpoint.identity(cfg, ("tune.",), "task", "backbone", "data")
    assert checkpoint.identity(cfg, ("tune.",), "task", "backbone", "other data") != whose
    assert checkpoint.identity(cfg, ("tune.",), "task", "other backbone", "data") != whose
    cfg.update_from_flattened_dict({knob: value})
    assert (checkpoint.identity(cfg, ("tune.",), "task", "backbone", "data") == whose) == same


def test_a_missing_stage_is_named_by_its_file(tmp_path):
    with pytest.raises(UserError, match=r"backbone.json does not exist; accepted: the directory of a run"):
        checkpoint.find_backbone(tmp_path)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_no_flipped_byte_of_a_step_is_silent(tmp_path):
    """In every file of a step, also those that orbax does not look at: what is read is what was saved, or an error."""
    store = Store(tmp_path / "s", ("params",))
    store.save(1, {"params": tree(1)}, {"looks": [[1, 0.5]]})
    store.close()
    found = []
    for path in sorted(p for p in (tmp_path / "s").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for at in range(len(whole) // 4, len(whole), max(len(whole) // 2, 1)):
            flip(path, at)
            again = Store(tmp_path / "s", ("params",), write=False)
            try:
                meta, params = again.meta(1), again.restore(1, "params", tree(0))
                assert meta == {"looks": [[1, 0.5]], "format": stores.FORMAT}
                assert stores.content_hash(params) == stores.content_hash(tree(1))
            except UserError as e:
                found.append(str(e))
            again.close()
            path.write_bytes(whole)
    assert found
    assert all(f"{tmp_path}/s" in said and "accepted" in said for said in found)


def test_a_step_says_what_it_holds_and_a_stranger_in_it_is_found(tmp_path):
    for name in ("a", "b"):
        store = Store(tmp_path / name, ("params",), of=name)
        store.save(1, {"params": tree(ord(name))}, {})
        store.close()
    shutil.copytree(tmp_path / "b" / "1", tmp_path / "c" / "1")
    shutil.rmtree(tmp_path / "a" / "1" / "params")
    shutil.copytree(tmp_path / "b" / "1" / "params", tmp_path / "a" / "1" / "params")
    store = Store(tmp_path / "a", ("params",), of="a")
    with pytest.raises(UserError, match=r"a/1/params is not what was written \(content hash differs\)"):
        store.restore(1, "params", tree(0))
    store.close()
    store = Store(tmp_path / "c", ("params",), of="a")
    with pytest.raises(UserError, match="c/1 was saved by another run"):
        store.meta(1)
    store.close()


def test_a_full_disk_is_one_sentence_and_leaves_the_last_step(tmp_path, monkeypatch):
    store = Store(tmp_path / "s", ("params",))
    store.save(1, {"params": tree(1)}, {})

    def no(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.manager, "save", no)
    words = r"s/2 cannot be written \(No space left on device\); accepted: room .* goes on from step 1"
    with pytest.raises(UserError, match=words):
        store.save(2, {"params": tree(2)}, {})
    assert store.restore(1, "params", tree(0))["a"]["b"][0, 0] == 1
    store.close()


def test_what_orbax_leaves_behind_is_no_news_and_what_others_do_is():
    def record(text):
        return logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)

    left = "Task exception was never retrieved\nfuture: <Task finished coro=<%s() defined at x/%s/y.py:1>>"
    assert not stores.is_news(record(left % ("Handler.read", "orbax")))
    thread = (
        "[process=0][thread=write_metadata_after_commits] _SignalingThread.run() raised an exception: [Errno 28] No"
    )
    assert not stores.is_news(record(thread))
    assert stores.is_news(record(left % ("fetch", "own")))
    assert stores.is_news(record("orbax has something to say"))


def test_a_step_under_the_name_of_another_is_found(tmp_path):
    store = Store(tmp_path / "s", ("params",))
    for step in (1, 2):
        store.save(step, {"params": tree(step)}, {})
    store.close()
    shutil.rmtree(tmp_path / "s" / "2")
    (tmp_path / "s" / "1").rename(tmp_path / "s" / "2")
    store = Store(tmp_path / "s", ("params",))
    with pytest.raises(UserError, match="s/2 was saved as step 1; accepted"):
        store.meta(2)
    store.close()


def test_a_step_is_on_the_disk_before_the_one_before_it_is_deleted(tmp_path, monkeypatch):
    """All its files, and the folders that name them: a machine may vanish a moment later."""
    real, synced = os.fsync, set()

    def fsync(file):
        synced.add(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    store = Store(tmp_path / "s", ("params",))
    store.save(1, {"params": tree(1)}, {})
    store.close()
    made = [tmp_path / "s", *(tmp_path / "s").rglob("*")]
    assert [path for path in made if path.stat().st_ino not in synced] == []

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    store = Store(tmp_path / "s", ("params",))
    with pytest.raises(UserError, match=r"s/2 cannot be written \(Input/output error\).* goes on from step 1"):
        store.save(2, {"params": tree(2)}, {})
    store.close()


def test_a_backbone_that_another_run_no_longer_holds_is_no_backbone(tmp_path):
    card = {"run": "", "step": 1, "content_hash": "a" * 64, "architecture": {}}
    for name in "abc":
        (tmp_path / name).mkdir()
    write_json(tmp_path / "a" / "backbone.json", card)
    checkpoint.refer(tmp_path / "b", checkpoint.find_backbone(tmp_path / "a"))
    checkpoint.refer(tmp_path / "c", {**checkpoint.find_backbone(tmp_path / "b"), "run": str(tmp_path / "b")})
    assert checkpoint.find_backbone(tmp_path / "c")["run"] == str(tmp_path / "a")
    write_json(tmp_path / "a" / "backbone.json", {**card, "content_hash": "f" * 64})
    with pytest.raises(UserError, match=r"c uses backbone a{12}, and .*/a holds f{12} now; accepted"):
        checkpoint.find_backbone(tmp_path / "c")


@pytest.mark.parametrize("missing", [("meta/metadata",), ("meta",), ("params",), ("state/_METADATA",)])
def test_a_stage_without_a_whole_step_is_one_sentence_and_left_alone(tmp_path, missing):
    trees = {item: {"w": np.arange(6, dtype=np.float32)} for item in ("params", "state")}
    store = Store(tmp_path / "s", tuple(trees))
    for at in (1, 2):
        store.save(at, trees, {})
        for name in missing:
            path = tmp_path / "s" / str(at) / name
            path.rename(tmp_path / f"{at}")
    store.close()
    store, log = Store(tmp_path / "s", tuple(trees)), Log(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"s/2.* accepted: "):
        checkpoint.resume(store, trees, log, "tune", mesh.make(1))
    store.close()
    assert {"1", "2"} <= {p.name for p in (tmp_path / "s").iterdir()}


def test_going_on_says_when_the_curves_are_not_what_was_written(tmp_path, capsys):
    log, store = Log(tmp_path / "metrics.jsonl"), Store(tmp_path / "s", ("params",))
    log.write({"stage": "tune", "step": 1, "loss": 0.25})
    store.save(1, {"params": {"w": np.zeros(2)}}, {"log": log.mark()})
    for content, warned in ((b"", True), (b"\xff\n", True), (log.path.read_bytes(), False)):
        log.path.write_bytes(content)
        checkpoint.resume(store, {"params": {"w": np.zeros(2)}}, log, "tune", mesh.make(1))
        assert ("metrics.jsonl is not what was written" in capsys.readouterr().out) == warned
    store.close()
