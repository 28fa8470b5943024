"""What a process does that runs one cell after another: what it has traced and compiled, its next cell of the same
shapes does not wait for. Who asks it to is in crew.py."""

import contextlib
import io
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

import jax

from ptt_jax import cache, preemption
from ptt_jax.main import main as run_main

# A GPU's memory, of which a process takes three quarters as it starts, and a second one none; by jax's documentation,
# and its older name, which may not stand beside the other. A CPU does not ask.
MEMORY, OLDER = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
STOPPED = (130, preemption.CODE)  # by Ctrl-C, by SIGTERM: nobody wants another cell


class Voices(io.TextIOBase):
    """What stands for stdout and stderr where cells run in threads: a thread's words go to the file of its cell, those
    of others where they went before."""

    def __init__(self, before: TextIO) -> None:
        self.before, self.files = before, dict[int, TextIO]()

    def write(self, text: str) -> int:
        return self.files.get(threading.get_ident(), self.before).write(text)

    def flush(self) -> None:
        self.files.get(threading.get_ident(), self.before).flush()

    @contextlib.contextmanager
    def into(self, file: TextIO) -> Iterator[None]:
        """This thread's words go to a file in it."""
        self.files[threading.get_ident()] = file
        try:
            yield
        finally:
            del self.files[threading.get_ident()]


@contextlib.contextmanager
def heard(log: Path) -> Iterator[None]:
    """All that Python says in it is said in the file."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(log.open("a", encoding="utf-8"))
        if isinstance(sys.stdout, Voices):
            stack.enter_context(sys.stdout.into(file))
        else:
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
        yield


class Hand:
    """What runs cells in this process, in up to `threads` threads at a time. It keeps its programs from one cell to the
    next of the same kind, a word for all that decides their shapes; of several threads those of a few kinds, until none
    of them is at work."""

    def __init__(self, threads: int = 1) -> None:
        self.most, self.kinds, self.busy, self.lock = 2 * threads - 1, set[str](), 0, threading.Lock()

    @contextlib.contextmanager
    def at(self, kind: str) -> Iterator[None]:
        """Around a cell of that kind."""
        with self.lock:
            if len({*self.kinds, kind}) > self.most and not self.busy:
                cache.forget()
                jax.clear_caches()
                self.kinds.clear()
            self.kinds.add(kind)
            self.busy += 1
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1

    def run(self, log: Path, argv: Sequence[str], kind: str) -> int:
        """Runs a cell, its words in `log`; returns the exit code."""
        with self.at(kind), heard(log):
            try:
                return run_main([*argv])
            except Exception:  # hours of other cells wait
                traceback.print_exc()
                return 1


def take(share: float) -> None:
    """Says how much of a GPU's memory this process will take, unless its user has; read with the first array."""
    if not {MEMORY, OLDER} & {*os.environ}:
        os.environ[MEMORY] = f"{share:.3f}"


def serve(asked: Connection, share: float) -> None:
    """What a worker does: runs what it is asked for and answers with the exit code, until nobody asks, it is stopped,
    or a cell fails by more than what its user got wrong: who knows what that leaves of a GPU."""
    take(share)
    hand = Hand()
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            log, argv, kind = asked.recv()
            with log.open("a", encoding="utf-8") as file:  # what no Python says, too
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = hand.run(log, argv, kind)
            asked.send(code)
            if code not in (0, 2):
                return


def serve_several(asked: Connection, share: float, threads: int) -> None:
    """What a team does: runs what it is asked for, each cell in a thread, and answers with lane and exit code, until
    nobody asks, it is told to end, or a cell fails by more than what its user got wrong: then the others end first."""
    take(share)
    hand, failed = Hand(threads), threading.Event()
    voices = Voices(sys.stdout)
    sys.stdout = sys.stderr = voices

    def run(lane: int, log: Path, argv: Sequence[str], kind: str) -> None:
        try:
            code = hand.run(log, argv, kind)
        except BaseException:  # a log that cannot be written, say: somebody waits for an answer
            traceback.print_exc()
            code = 1
        if code not in (0, 2):
            failed.set()
        with hand.lock, contextlib.suppress(OSError):  # nobody may ask any more
            asked.send((lane, code))

    at_work: list[threading.Thread] = []
    with preemption.heeded(), preemption.deferred():  # whose cells look at the wish by themselves
        try:
            while not (preemption.told() or failed.is_set()):
                if asked.poll(0.2):
                    at_work.append(threading.Thread(target=run, args=asked.recv()))
                    at_work[-1].start()
        except (EOFError, OSError):
            pass
        except KeyboardInterrupt:
            preemption.Wish.told = True
        for thread in at_work:
            thread.join()
