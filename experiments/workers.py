"""Processes that run one cell after another: what one has traced and compiled, its next cell of the same shapes does
not wait for."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from ptt_jax import cache, preemption
from ptt_jax.main import main as run_main

# A GPU's memory, of which a process takes three quarters as it starts, and a second one none; by jax's documentation,
# and its older name, which may not stand beside the other. A CPU does not ask.
MEMORY, OLDER = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
STOPPED = (130, preemption.CODE)  # by Ctrl-C, by SIGTERM: nobody wants another cell


class Hand:
    """What runs cells in this process. It keeps its programs from one cell to the next of the same kind, a word for all
    that decides their shapes."""

    def __init__(self) -> None:
        self.kind = ""

    def run(self, log: Path, argv: Sequence[str], kind: str) -> int:
        """Runs a cell, its words in `log`; returns the exit code."""
        if self.kind not in ("", kind):
            cache.forget()
            jax.clear_caches()
        self.kind = kind
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(log.open("a", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(file))
            stack.enter_context(contextlib.redirect_stderr(file))
            try:
                return run_main([*argv])
            except Exception:  # hours of other cells wait
                traceback.print_exc()
                return 1


def serve(asked: Connection, share: float) -> None:
    """What a worker does: runs what it is asked for and answers with the exit code, until nobody asks, it is stopped,
    or a cell fails by more than what its user got wrong: who knows what that leaves of a GPU."""
    if not {MEMORY, OLDER} & {*os.environ}:
        os.environ[MEMORY] = f"{share:.3f}"  # which is read with the first array
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


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Around what starts a process that is to have these cores alone; of none given, all that this one has."""
    if not cores:
        yield
        return
    former = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, former)


class Worker:
    """A process that runs cells, on these cores, on this share of a GPU's memory. `kind` is its last cell's."""

    def __init__(self, cores: Sequence[int], share: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.asks, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, share))
        with pinned(cores):
            self.process.start()
        theirs.close()
        self.kind = ""

    def start(self, log: Path, argv: Sequence[str], kind: str) -> None:
        """Has it run a cell."""
        self.kind = kind
        log.touch()  # there is one, whatever happens to the process
        with contextlib.suppress(OSError):  # `answer` says so
            self.asks.send((log, argv, kind))

    def answer(self) -> int | None:
        """Returns the exit code of the cell that it runs, None while it does; of a process that is dead, its own."""
        try:
            if not self.asks.poll():
                return None
            code = int(self.asks.recv())
        except (EOFError, OSError):
            self.process.join()
            return self.process.exitcode or 1
        if code not in (0, 2):
            self.process.join()
        return code

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def tell(self) -> None:
        """Tells it to end, which saves what it is at where there is a SIGTERM."""
        self.process.terminate()
        self.asks.close()

    def end(self) -> None:
        """Tells it to end, and waits for that."""
        self.tell()
        self.process.join()
