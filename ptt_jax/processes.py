"""Several processes, one program: how they join, decide alike, write once and end together. Alone, it is all nothing.

Process 0 alone writes and says what everybody needs once; what it saw decides for all, since a file that one process
has just written may be there for the next one to look.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptt_jax.errors import UserError

WAIT = 60  # seconds to wait for the others: when joining, and when one has ended and the others have not
AGAIN = "the same commands go on from what is saved"
# What jax, Gloo and orbax say when another process does not answer.
SILENCE = re.compile(r"heartbeat|gloo|nccl|connection|socket|barrier|unavailable|aborted|coordination", re.IGNORECASE)
WITNESS = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
BLOCK = 4096  # bytes; exchanged texts are padded to whole blocks, so that few sizes are compiled


def join(where: str) -> None:
    """Makes this process one of several; comes before any device is touched.

    `where` is HOST:PORT,COUNT,INDEX with process 0 at HOST:PORT, or '' for what the cluster says (Slurm, Open MPI,
    Kubernetes, Cloud TPU). Raises UserError when it is neither; ends the program when the others are not there in time.
    """
    form = "accepted: --distributed=HOST:PORT,COUNT,INDEX, like 10.0.0.1:7654,2,0 in the first of two processes"
    settings: dict[str, Any] = {}
    former = signal.getsignal(signal.SIGTERM)
    if where:
        parts = re.fullmatch(r"([^\s,]+:(\d{1,5})),(\d+),(\d+)", where, re.ASCII)
        port, count, index = map(int, parts.groups()[1:]) if parts else (0, 0, 0)
        if parts is None or not 0 < port < 2**16 or not index < count:
            raise UserError(f"--distributed={where} names no process; {form}, INDEX from 0 and below COUNT")
        settings = {"coordinator_address": parts[1], "num_processes": count, "process_id": index}
        settings |= {"cluster_detection_method": "deactivate"}

    def late() -> None:
        missed = f"the {count} processes at {where.split(',')[0]}" if where else "the processes of this cluster"
        print(f"ptt_jax: {missed} did not all join within {WAIT} s; {form}, each started once", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)  # the main thread sits in jax, which would abort with a page of its own

    timer = threading.Timer(WAIT, late)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **settings, initialization_timeout=10 * WAIT, heartbeat_timeout_seconds=WAIT, shutdown_timeout_seconds=WAIT
        )
    except (ValueError, RuntimeError, OSError) as e:
        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        wrong = f"={where} cannot be used" if where else " without a value found no cluster that jax knows"
        raise UserError(f"--distributed{wrong} ({said}); {form}") from None
    finally:
        timer.cancel()
    atexit.register(witness())
    signal.signal(signal.SIGTERM, former)  # jax would take it, and have dispatches counted as steps


@functools.cache
def witness() -> Callable[[], None]:
    """Starts a small program that says a sentence when this process ends without a word: when it is killed, or when jax
    aborts it with a page of addresses, since it hears no more of process 0 or has waited WAIT for another one. Returns
    f(), which sends it away."""
    text = f"ptt_jax: process {jax.process_index()} was ended, by a signal or since it lost another one; {AGAIN}"
    of = subprocess.Popen(
        [sys.executable, "-SEc", WITNESS, text], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip

    def leave() -> None:
        with contextlib.suppress(OSError, ValueError):
            of.communicate(b"bye")

    return leave


def is_first() -> bool:
    """Says whether this is process 0, the one that writes and speaks."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, by index. It is a barrier, too: all have come this far."""
    raw = text.encode()
    sizes = multihost_utils.process_allgather(np.int32(len(raw)))
    padded = np.zeros(-(-max(int(sizes.max()), 1) // BLOCK) * BLOCK, np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, np.uint8)
    texts = multihost_utils.process_allgather(padded)
    return [line[:size].tobytes().decode() for line, size in zip(texts, sizes, strict=True)]


def whole(array: Array) -> np.ndarray:
    """Returns an array that may lie on the devices of all processes, which all call this."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


def once(do: Callable[[], Any]) -> Any:
    """Process 0 does it, and all go on when it is done, with what it returned (JSON's kinds of values) or raised.

    Raises UserError in every process when `do` did.
    """
    if jax.process_count() == 1:
        return do()
    value, error = None, ""
    if is_first():
        try:
            value = do()
        except UserError as e:
            error = str(e)
    value, error = json.loads(gather(json.dumps([value, error]))[0])
    if error:
        raise UserError(error)
    return value


def agree(value: Any) -> Any:
    """Returns process 0's value (JSON's kinds), so that what is decided by it is decided alike."""
    return once(lambda: value)


def any_of(flag: bool) -> bool:
    """Returns whether the flag of one of the processes is up: the same in all."""
    return any(map(json.loads, gather(json.dumps(flag)))) if jax.process_count() > 1 else flag


def anyone(flag: Callable[[], bool]) -> Callable[[], bool]:
    """Asks the same on the devices, in the order of their dispatches, so that the host does not wait: returns f(),
    which says whether flag() held in one of the processes. Alone, that is `flag`."""
    if jax.process_count() == 1:
        return flag
    (each, most), own = ballot(), np.array([flag()])
    answer = most(jax.make_array_from_callback((jax.device_count(),), each, lambda _: own))
    return lambda: bool(answer)


@functools.cache
def ballot() -> tuple[NamedSharding, Callable]:
    """Returns how the flags of all devices lie, and f(flags) -> whether one is up."""
    each, whole = (NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec(*axis)) for axis in (["all"], []))
    return each, jax.jit(jnp.any, out_shardings=whole)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what each process does alone, without the others: a UserError of one ends all, each with a sentence."""
    own = None
    try:
        yield
    except UserError as e:
        own = e
    if own and jax.process_count() == 1:
        raise own
    errors = gather(str(own or "")) if jax.process_count() > 1 else []
    if own:
        raise own
    for index, error in enumerate(errors):
        if error:
            raise UserError(f"process {index} cannot go on: {error}")


def check_alike(values: dict[str, Any]) -> None:
    """Raises UserError in every process when a value (of JSON's kinds) is not the same in all of them."""
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, gather(json.dumps(values)))
    for index, other in enumerate(others, 1):
        for key, value in first.items():
            if other.get(key) != value:
                raise UserError(
                    f"{key} = {value!r} in process 0, but {other.get(key)!r} in process {index}; "
                    "accepted: one command line for all, but for the INDEX of --distributed"
                )


@contextlib.contextmanager
def company(orderly: tuple[int, ...] = (0, 2)) -> Iterator[None]:
    """Around the program: a process that ends alone, by Ctrl-C or a bug, ends at once, and so do the others, with a
    sentence: as soon as they miss its part of a sum, and after WAIT or little more at the latest.

    At an ordinary exit jax waits for the others, which would wait for this one's part of the next sum. orderly: codes
    with which all end together.
    """
    try:
        yield
    except BaseException as e:
        if (isinstance(e, SystemExit) and e.code in orderly) or not jax.distributed.is_initialized():
            raise
        if isinstance(e, jax.errors.JaxRuntimeError) and SILENCE.search(str(e)):
            reason = re.split(r"\. |\n", str(e))[0][:160]
            print(f"ptt_jax: process {jax.process_index()} has lost another one ({reason}); {AGAIN}", file=sys.stderr)
        elif not isinstance(e, SystemExit):
            traceback.print_exc()
        witness()()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(e.code if isinstance(e, SystemExit) and isinstance(e.code, int) else 1)
