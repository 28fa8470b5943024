"""One process at a time in a run directory: `run.lock`, which is there while a command works in it.

The file is locked by flock, which the kernel gives back when its holder dies, however it dies: on one machine, in any
of its containers, nothing can be stale for longer. Not every network file system passes flock on to other machines. So
the holder also sets the file's time every BEAT seconds, and what another machine left is taken over only when that has
not happened for PATIENCE seconds, which are counted here: no clocks are compared, and a process number of another
machine or container says nothing.
"""

import contextlib
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ptt_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows: there the file's time decides alone
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"
BEAT, PATIENCE = 5.0, 30.0  # seconds


def machine() -> str:
    """Returns what tells machines apart, and is the same in all containers of one until it starts anew."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return platform.node()


@contextlib.contextmanager
def hold(folder: Path, say: Callable[[str], Any] = print) -> Iterator[None]:
    """Around all that writes into a folder, which is made if need be.

    A folder that cannot be made or written needs no lock. say: of what a dead process left. Raises UserError when
    another process holds it, by that one's name.
    """
    path, made = folder / NAME, not folder.exists()
    try:
        file, about = take(path, say)
    except OSError:
        yield  # what tries to write there says why it cannot
        return
    ended = threading.Event()
    pulse = threading.Thread(target=beat, args=(path, ended), daemon=True)
    pulse.start()
    try:
        yield
    finally:
        ended.set()
        pulse.join()
        with contextlib.suppress(OSError):
            if read(path) == about:  # and not of another machine, which heard nothing of this one for too long
                os.ftruncate(file, 0)  # what cannot be removed, as on Windows while it is open, says nothing then
                path.unlink()
            if made:
                folder.rmdir()  # one in which nothing was written is not left
        os.close(file)  # the lock goes with it


def take(path: Path, say: Callable[[str], Any]) -> tuple[int, dict[str, Any]]:
    """Returns the open, locked file, and who holds it, as it says. Raises UserError when another process does, OSError
    when the file cannot be made."""
    while True:
        file, made = opened(path)
        try:
            alone = locked(file, path)
            if not same(file, path):  # its holder removed it meanwhile
                continue
            if not made and not read(path):
                time.sleep(BEAT / 5)  # who made it, on another machine, may not have written yet
            former = read(path)
            # The kernel says that a holder on this machine is dead; of another one, time does.
            unsure = bool(former) and not (alone and former.get("machine") == machine())
            if unsure:
                say(f"{path.parent} was in use by {name(former)}: waiting up to {PATIENCE:.0f} s for a sign of life")
                wait(path, former)
                if not same(file, path):  # it ended while it was waited for
                    continue
            if former:
                say(f"{path.parent}: {name(former)} has ended without a word; going on in its place")
            now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "machine": machine()}
            os.ftruncate(file, 0)
            os.write(file, json.dumps(about).encode())
            if unsure:
                time.sleep(BEAT / 5)
                if (found := read(path)) != about:  # another one had waited, too, and wrote after this one
                    raise refused(path, found)
            file, kept = -1, file
            return kept, about
        finally:
            if file >= 0:
                os.close(file)


def opened(path: Path) -> tuple[int, bool]:
    """Returns the open file, and whether it was made now, which on any file system one process alone does. Who may
    write in the folder may write it, so that another user is refused, too."""
    flags, tries = os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 3
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.suppress(FileExistsError):
                file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                with contextlib.suppress(OSError, AttributeError):
                    os.fchmod(file, 0o600 | path.parent.stat().st_mode & 0o066)
                return file, True
            return os.open(path, flags), False
        except FileNotFoundError:  # a holder that ends has just removed it, or the folder with it
            tries -= 1
            if not tries:
                raise


def locked(file: int, path: Path) -> bool:
    """Locks the file; returns whether this file system can. Raises UserError when it is locked."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fcntl is not None
    except BlockingIOError:
        raise refused(path, read(path)) from None
    except OSError:
        return False


def same(file: int, path: Path) -> bool:
    """Says whether the open file is the one that is there under its name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def read(path: Path) -> dict[str, Any]:
    """Returns who wrote the file; {} of one that says nothing."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def name(holder: dict[str, Any]) -> str:
    words = " on ".join(str(holder[key]) for key in ("pid", "host") if key in holder)
    return f"process {words} since {holder.get('since', 'lately')}" if words else "another process"


def refused(path: Path, holder: dict[str, Any]) -> UserError:
    return UserError(
        f"{path.parent} is in use by {name(holder)}; accepted: another workdir, or this one when that process has ended"
    )


def wait(path: Path, former: dict[str, Any]) -> None:
    """Waits for a sign of life, and returns when there is none, or no file any more. Raises UserError when there is
    one."""
    with contextlib.suppress(FileNotFoundError):
        seen, begun = path.stat().st_mtime_ns, time.monotonic()
        while time.monotonic() - begun < PATIENCE:
            time.sleep(BEAT / 5)
            with path.open("rb"):  # a network file system asks its server anew when a file is opened
                if path.stat().st_mtime_ns != seen:
                    raise refused(path, former)


def beat(path: Path, ended: threading.Event) -> None:
    """Sets the file's time until it is told to end."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)
