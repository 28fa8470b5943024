"""SIGTERM, the wish of a scheduler that a process should end: what was learned is saved at the next dispatch, and the
same command goes on from there. While nothing is learned there is nothing to save, and the process ends at once.

Of several processes all stop at the same dispatch, whichever of them was told: the wish goes along with the dispatches
(`processes.anyone`). Then they never end by themselves while the others go on.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from ptt_jax import processes

CODE = 75  # of the exit: EX_TEMPFAIL, try again later. 143 would not tell it from a process that could save nothing


class Preempted(BaseException):
    """Ends the program as Ctrl-C does, past whatever catches an Exception."""

    def __init__(self) -> None:
        Wish.ending = True


class Wish:
    """Whether this process was told to end, how many of its callers will look at that by themselves, and whether it is
    ending."""

    told, waiting, ending = False, 0, False


def notice(*_: Any) -> None:
    """What SIGTERM does; a second one disturbs nothing that is put in order because of the first."""
    Wish.told = True
    if not (Wish.waiting or Wish.ending):
        raise Preempted


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Around the program: SIGTERM is a wish in it. A thread that is not the main one has no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    Wish.told = Wish.ending = False
    former = signal.signal(signal.SIGTERM, notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
        Wish.told = Wish.ending = False


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Around what looks at the wish by itself, with `told` or `check`."""
    Wish.waiting += 1
    try:
        yield
    finally:
        Wish.waiting -= 1


def told() -> bool:
    """Says whether this process was told to end."""
    return Wish.told


def check() -> None:
    """Raises Preempted in all processes if one was told to end."""
    if processes.any_of(Wish.told):
        raise Preempted


def nowhere_else() -> None:
    """Makes SIGTERM nothing before and after `heeded`: a process that has its exit code keeps it, however long its
    interpreter takes to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
