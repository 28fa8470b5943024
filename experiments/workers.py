"""Processes that run one cell after another: what one has traced and compiled for a data set, its next cell does not
wait for."""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from ptt_jax import cache, preemption
from ptt_jax.main import main as run_main

MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # of a GPU, by jax's documentation; a CPU does not ask
LAST = (130, preemption.CODE)  # after these codes a process runs no other cell


class Hand:
    """What runs cells in this process. It keeps its programs while they are of one data set, since those of another
    have other shapes, and some hundred megabytes of them stay on a CPU's host."""

    def __init__(self) -> None:
        self.data = ""

    def run(self, log: Path, argv: Sequence[str], data: str) -> int:
        """Runs a cell, its words in `log`; returns the exit code."""
        if self.data not in ("", data):
            cache.forget()
            jax.clear_caches()
        self.data = data
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
    """What a worker does: runs what it is asked for and answers with the exit code, until nobody asks."""
    os.environ.setdefault(MEMORY, f"{share:.3f}")  # jax reads it with the first array
    hand = Hand()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            log, argv, data = asked.recv()
            with log.open("a", encoding="utf-8") as file:  # what no Python says, too
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            code = hand.run(log, argv, data)
            asked.send(code)
            if code in LAST:
                return


class Worker:
    """A process that runs cells, on these cores, of a GPU's memory on this share; where no cores are given, where the
    system puts it. `data` is the set of its last cell."""

    def __init__(self, cores: Sequence[int], share: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.asks, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, share))
        self.process.start()
        theirs.close()
        self.data = ""
        if cores:  # before it has threads; in the child itself it would need a fork, which jax warns of
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.process.pid or 0, cores)

    def start(self, log: Path, argv: Sequence[str], data: str) -> None:
        """Has it run a cell."""
        self.data = data
        log.touch()  # there is one, whatever happens to the process
        with contextlib.suppress(BrokenPipeError):  # `answer` says so
            self.asks.send((log, argv, data))

    def answer(self) -> int | None:
        """Returns the exit code of the cell that it runs, None while it does; of a process that is dead, its own."""
        if not self.asks.poll():
            return None
        try:
            code = int(self.asks.recv())
        except (EOFError, ConnectionResetError):
            self.process.join()
            return self.process.exitcode or 1
        if code in LAST:
            self.process.join()
        return code

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def end(self) -> None:
        """Tells it to end, which saves what it is at, and waits for that."""
        self.asks.close()
        self.process.terminate()
        self.process.join()
