"""One process at a time in a run directory."""

import json
import os
import subprocess
import sys
import threading

import pytest

from ptt_jax import lock, main
from ptt_jax.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from ptt_jax import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    """Signs of life come often, and nobody waits long for one."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "PATIENCE", 0.4)


def foreign(path, **more) -> None:
    about = {"pid": 7, "host": "elsewhere", "since": "2026-11-25 19:20:32 UTC", "machine": "another"}
    path.write_text(json.dumps(about | more))


def test_the_second_process_is_refused_by_the_name_of_the_first_which_may_die(tmp_path, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        knobs = ["--config=configs/quickstart.py", "--config.data.rows=900", "--config.cache_dir="]
        assert main.main([*knobs, f"--workdir={tmp_path}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"ptt_jax: {tmp_path} is in use by process {holder.pid} on ")
        assert err.endswith("; accepted: another workdir, or this one when that process has ended\n")
        assert [p.name for p in tmp_path.iterdir()] == ["run.lock"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    said = []
    with lock.hold(tmp_path, said.append):  # at once: the kernel knows
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert [line.split(": ")[1] for line in said] == [said[0].split(": ")[1]]
    assert f"process {holder.pid} on" in said[0]
    assert "has ended without a word; going on in its place" in said[0]


def test_a_lock_is_gone_after_an_error_and_is_no_one_s_twice(tmp_path):
    run = tmp_path / "run"

    def work():
        with lock.hold(run):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"), lock.hold(run):
                pass
            assert (run / "run.lock").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not run.exists()


def test_what_another_machine_left_is_taken_over_when_it_shows_no_life(tmp_path, quick):
    foreign(tmp_path / "run.lock")
    said = []
    with lock.hold(tmp_path, said.append):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert "was in use by process 7 on elsewhere since 2026-11-25 19:20:32 UTC: waiting up to" in said[0]
    assert "has ended without a word" in said[1]


@pytest.mark.parametrize("able", [True, False])
def test_another_machine_that_lives_is_believed_whatever_flock_says(tmp_path, quick, monkeypatch, able):
    """As on a network file system that keeps locks to a machine, and on one that has none: then here, too."""
    foreign(tmp_path / "run.lock", **({} if able else {"machine": lock.machine()}))
    if not able:
        monkeypatch.setattr(lock, "fcntl", None)
    ended = threading.Event()
    pulse = threading.Thread(target=lock.beat, args=(tmp_path / "run.lock", ended), daemon=True)
    pulse.start()
    with pytest.raises(UserError, match="is in use by process 7 on elsewhere"), lock.hold(tmp_path, lambda _: None):
        pass
    ended.set()
    pulse.join()
    assert (tmp_path / "run.lock").exists()


def test_a_torn_lock_file_is_no_lock(tmp_path, quick):
    (tmp_path / "run.lock").write_text('{"pid": 7, "ho')
    with lock.hold(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_or_written_needs_no_lock(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with lock.hold(tmp_path / "file" / "run"):
        pass

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with lock.hold(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_holder_that_ends_while_it_is_waited_for_leaves_the_lock_to_who_waited(tmp_path, quick, monkeypatch):
    path = tmp_path / "run.lock"
    foreign(path)
    monkeypatch.setattr(lock.time, "sleep", lambda _: path.unlink(missing_ok=True))
    with lock.hold(tmp_path, lambda _: None):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_of_two_that_take_over_what_a_third_left_one_goes_on(tmp_path, quick, monkeypatch):
    path = tmp_path / "run.lock"
    foreign(path)
    monkeypatch.setattr(lock, "wait", lambda *_: None)
    monkeypatch.setattr(lock.time, "sleep", lambda _: foreign(path, pid=8))  # which waited, too, and writes after this
    with pytest.raises(UserError, match="in use by process 8 on elsewhere"), lock.hold(tmp_path, lambda _: None):
        pass
    assert json.loads(path.read_text())["pid"] == 8


def test_of_two_that_begin_at_once_where_nothing_can_be_locked_one_is_refused(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "BEAT", 0.2)
    path, holding = tmp_path / "run.lock", []

    def both(_):  # the other one's file is there, and what it writes comes now
        foreign(path)
        monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(path))

    path.touch()
    monkeypatch.setattr(lock.time, "sleep", both)
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"), lock.hold(tmp_path, lambda _: None):
        holding.append(1)
    assert not holding


def test_a_lock_that_another_machine_took_over_is_left_to_it(tmp_path):
    with lock.hold(tmp_path):
        foreign(tmp_path / "run.lock")
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == 7


def test_a_folder_that_goes_while_it_is_locked_comes_again(tmp_path, monkeypatch):
    run, real, gone = tmp_path / "run", os.open, []

    def late(path, *rest):
        if not gone:
            gone.append(run.rmdir())
        return real(path, *rest)

    monkeypatch.setattr(os, "open", late)
    with lock.hold(run):
        assert (run / "run.lock").exists()
    assert not run.exists()


def test_a_lock_that_cannot_be_removed_says_nothing(tmp_path, monkeypatch):
    def busy(*_, **__):
        raise PermissionError(13, "in use")

    with monkeypatch.context() as context, lock.hold(tmp_path):
        context.setattr("pathlib.Path.unlink", busy)
    assert (tmp_path / "run.lock").read_bytes() == b""


@pytest.mark.parametrize(("mode", "lock_mode"), [(0o777, 0o666), (0o755, 0o644), (0o770, 0o660)])
def test_who_may_write_in_a_folder_may_lock_it_whatever_the_umask(tmp_path, mode, lock_mode):
    """Another user who could not open the file would go on as if it were locked by nobody."""
    tmp_path.chmod(mode)
    former = os.umask(0o022)
    try:
        with lock.hold(tmp_path):
            assert (tmp_path / "run.lock").stat().st_mode & 0o777 == lock_mode
    finally:
        os.umask(former)
