"""Who runs cells: processes, or lanes of one, each asked for a cell and for how it ended. What they do of it is in
workers.py."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import workers


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


class Process:
    """A process that serves what it is asked for through `asks`, on these cores."""

    def __init__(self, cores: Sequence[int], does: Callable[..., None], *about: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.asks, theirs = context.Pipe()
        self.process = context.Process(target=does, args=(theirs, *about))
        with pinned(cores):
            self.process.start()
        theirs.close()

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


class Worker(Process):
    """A process that runs cells, on these cores, on this share of a GPU's memory. `kind` is its last cell's."""

    known = begun = frozenset[str]()  # kinds of others in its process: there are none

    def __init__(self, cores: Sequence[int], share: float) -> None:
        super().__init__(cores, workers.serve, share)
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


class Team(Process):
    """A process that runs cells in lanes, a thread each, which share what it has traced and compiled and one share of
    a GPU's memory: several processes take turns on a GPU, the threads of one do not."""

    def __init__(self, cores: Sequence[int], share: float, threads: int) -> None:
        super().__init__(cores, workers.serve_several, share, threads)
        self.lanes = [Lane(self, number) for number in range(threads)]
        self.known = set[str]()  # kinds of cells that have ended well in it

    def listen(self) -> None:
        """Notes what its lanes have answered; of a process that is dead, its exit code for those that have not."""
        try:
            while self.asks.poll():
                number, code = self.asks.recv()
                self.lanes[number].code = code
        except (EOFError, OSError):
            self.process.join()
            for lane in self.lanes:
                lane.code = lane.code if lane.code is not None else self.process.exitcode or 1


class Lane:
    """A thread of a team, with what a `Worker` has."""

    def __init__(self, team: Team, number: int) -> None:
        self.team, self.number, self.kind, self.broken = team, number, "", False
        self.code: int | None = None

    @property
    def known(self) -> Set[str]:
        """Kinds of cells whose programs its process has."""
        return self.team.known

    @property
    def begun(self) -> Set[str]:
        """Kinds of cells whose programs its process is compiling."""
        return {lane.kind for lane in self.team.lanes if lane.code is None} - self.known

    def start(self, log: Path, argv: Sequence[str], kind: str) -> None:
        """Has it run a cell."""
        self.kind, self.code = kind, None
        log.touch()
        with contextlib.suppress(OSError):  # `answer` says so
            self.team.asks.send((self.number, log, argv, kind))

    def answer(self) -> int | None:
        """Returns the exit code of the cell that it runs, None while it does."""
        self.team.listen()
        if self.code == 0:
            self.team.known.add(self.kind)
        if self.code not in (None, 0, 2):
            for lane in self.team.lanes:  # the process ends when the others have answered
                lane.broken = True
        return self.code

    @property
    def alive(self) -> bool:
        return self.team.alive and not self.broken

    def tell(self) -> None:
        """Tells the whole team to end."""
        if self.team.alive and not self.team.asks.closed:
            self.team.tell()

    def end(self) -> None:
        """Tells the whole team to end, and waits for that."""
        self.tell()
        self.team.process.join()


class Crew:
    """All that run cells: `jobs` processes of `threads` lanes each, started when they are wanted."""

    def __init__(self, cores: Sequence[int], jobs: int, threads: int) -> None:
        self.cores, self.jobs, self.threads = cores, jobs, threads
        self.hired: dict[int, Worker | Lane] = {}

    def free(self, slot: int, running: Collection[int]) -> Worker | Lane | None:
        """Returns who works in a slot, which is idle, a new one in the place of one that is dead; None while others of
        its team have to end first."""
        job = slot % self.jobs
        if slot not in self.hired or not self.hired[slot].alive:
            cores, share = self.cores[job :: self.jobs], 0.8 / self.jobs
            if self.threads == 1:
                self.hired[slot] = Worker(cores, share)
            else:
                slots = range(job, self.jobs * self.threads, self.jobs)
                if {*slots} & {*running}:
                    return None
                team = Team(cores, share, self.threads)
                self.hired |= dict(zip(slots, team.lanes, strict=True))
        return self.hired[slot]

    def dismiss(self) -> None:
        """Tells all to end, and waits for it."""
        for one in self.hired.values():
            one.tell()  # all of them, before one is waited for
        for one in self.hired.values():
            one.end()
