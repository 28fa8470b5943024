"""SIGTERM: at once while nothing is learned, at the next look at it otherwise, and once."""

import contextlib
import os
import signal
import threading

import pytest

from ptt_jax import main, preemption
from ptt_jax.preemption import Preempted


def press() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_ends_at_once_what_does_not_look_and_all_is_as_it_was():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted), preemption.heeded():
        press()
    assert signal.getsignal(signal.SIGTERM) is former
    assert not preemption.told()


def test_what_looks_by_itself_is_told_and_goes_on():
    with preemption.heeded():
        with preemption.deferred():
            press()
            assert preemption.told()
        with pytest.raises(Preempted):
            preemption.check()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_second_one_disturbs_nothing_that_the_first_has_ended(waiting):
    """A scheduler may say it twice: folders that are left and locks that are given back while the first one ends the
    program would stay."""
    cleaned = []

    def work():
        try:
            with preemption.deferred() if waiting else contextlib.nullcontext():
                press()
            preemption.check()
        finally:
            press()
            cleaned.append(1)

    with pytest.raises(Preempted), preemption.heeded():
        work()
    assert cleaned


def test_another_thread_has_no_signals_and_needs_none():
    former, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with preemption.heeded():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [former]


def test_the_program_ends_with_a_code_of_its_own_and_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(main, "do", lambda _: press())
    assert main.main(["--config=x.py"]) == preemption.CODE == 75
    assert capsys.readouterr().err == ("ptt_jax: told to end (SIGTERM); the same command goes on from what is saved\n")
    assert main.main(["forecast"]) == preemption.CODE
    assert "without --workdir nothing is kept" in capsys.readouterr().err


def test_a_process_that_has_its_code_keeps_it_when_it_is_told_again():
    former = signal.getsignal(signal.SIGTERM)
    try:
        preemption.nowhere_else()
        press()
        with pytest.raises(Preempted), preemption.heeded():
            press()
        press()
    finally:
        signal.signal(signal.SIGTERM, former)
