"""What a program takes of a device's memory, by the compiler's own figures, against what is free, before it runs.

A device of a CPU has the host's memory, of which a control group may allow less. What a system does not tell is left
out, and nothing is refused for it.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ptt_jax import processes
from ptt_jax.errors import UserError


class TooLarge(UserError):
    """A program that does not fit, and by how many bytes of each device."""

    def __init__(self, text: str, short: int) -> None:
        super().__init__(text)
        self.short = short


class Room(NamedTuple):
    """Bytes of a memory: what this program uses of it, and what it may use in all."""

    used: int
    limit: int

    @property
    def free(self) -> int:
        return max(self.limit - self.used, 0)


def of_host(root: Path = Path("/")) -> Room | None:
    """Returns the host's memory, or what a control group leaves of it; None where the system does not say (Linux does).

    root: where /proc and /sys are.
    """
    try:
        used = 1024 * number(root / "proc/self/status", "VmRSS:")
        free = [1024 * number(root / "proc/meminfo", "MemAvailable:"), *groups(root)]
    except (OSError, ValueError, IndexError):
        return None
    return Room(used, used + min(free))


def number(path: Path, name: str) -> int:
    """Returns the number behind a name in a file of such lines. Raises ValueError when there is none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise ValueError(f"{path} has no {name}")


def groups(root: Path) -> Iterator[int]:
    """Yields what is left in each control group, version 1 or 2, that holds this process and has a limit; a file's
    cached pages are given back when they are needed."""
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            base, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        else:
            continue
        here = base / path.strip("/")
        for folder in (here, *here.parents[: len(here.parts) - len(base.parts)]):
            try:
                taken = int((folder / usage).read_text()) - number(folder / "memory.stat", "inactive_file")
                yield max(int((folder / limit).read_text()) - taken, 0)
            except (OSError, ValueError):  # none there, no limit ('max'), or not to be seen from inside
                continue


def local(mesh: Mesh) -> list[jax.Device]:
    """Returns this process's devices of a mesh."""
    return [d for d in mesh.devices.flat if d.process_index == jax.process_index()]


def of_device(mesh: Mesh) -> Room | None:
    """Returns the memory of the fullest of this process's devices of a mesh; None where nobody says."""
    devices = local(mesh)
    if devices[0].platform == "cpu":  # which all of them share
        host = of_host()
        return host and Room(host.used, host.used + host.free // len(devices))
    known = [stats for d in devices if (stats := d.memory_stats()) and "bytes_limit" in stats]
    rooms = [Room(stats["bytes_in_use"], stats["bytes_limit"]) for stats in known]
    return min(rooms, key=lambda room: room.free) if rooms else None


def nbytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays, or of shapes, each once, as one device has them whole."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def to_come(tree: Any) -> int:
    """Returns the bytes of a tree's shapes, as one device will have them: arrays are there already."""
    shapes = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct)]
    return sum(math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in shapes)


def words(count: float) -> str:
    """Returns bytes for a sentence: '812 MiB', '1.2 GiB'."""
    size, unit = next(((s, u) for s, u in ((2**30, "GiB"), (2**20, "MiB")) if count >= s), (2**10, "KiB"))
    return f"{count / size:.{1 if unit == 'GiB' else 0}f} {unit}"


def total(mesh: Mesh, room: Room, need: int) -> str:
    """Returns the words for how much of what is used in all where so much more is needed."""
    platform, host = mesh.devices.flat[0].platform, of_host()
    if platform == "cpu":
        count = len(local(mesh))
        used = room.used + count * need
        return f"{words(used)} of {words(host.limit if host else used)} on the host" + (
            f", with {count} devices in it" if count > 1 else ""
        )
    where = f"each of {mesh.size} devices" if mesh.size > 1 else f"the {platform}"
    beside = f", and {words(host.used)} of {words(host.limit)} on the host" if host else ""
    return f"{words(room.used + need)} of {words(room.limit)} on {where}{beside}"


def worst(count: int) -> int:
    """Returns the largest of all processes' numbers: what is decided by it is decided alike."""
    return max(map(int, processes.gather(str(count)))) if jax.process_count() > 1 else count


def afford(mesh: Mesh, asked: int, need: int) -> int:
    """Returns how many of `asked` bytes a cache may take on each device: all of them, or a half, a quarter, ... so that
    what it needs of them leaves half of what is free; halves, so that a run that goes on has the cache it had."""
    room = of_device(mesh)
    free = -worst(-room.free if room else -(2**62))
    while min(asked, need) > free // 2:
        asked //= 2
    return asked


class Program:
    """A jitted function that is weighed before it runs for the first time.

    It is compiled once: the figures are those of the executable that runs. what: does it, in a word. knobs: of the
    config, what to turn when it does not fit. say: takes a line of what is used. parts: f(*arguments) -> {what: bytes}
    of what is on the device by then.
    """

    def __init__(
        self, function: Any, mesh: Mesh, what: str, knobs: str, say: Callable[[str], None] | None = None,
        parts: Callable[..., dict[str, int]] | None = None,
    ) -> None:  # fmt: skip
        self.function, self.mesh, self.what, self.knobs, self.say, self.parts = function, mesh, what, knobs, say, parts
        self.weighed = False

    def __call__(self, *arguments: Any) -> Any:
        if not self.weighed:
            self.weigh(arguments)
        return self.function(*arguments)

    def need(self, arguments: tuple[Any, ...]) -> int:
        """Returns the bytes of each device that the program takes beside its arguments; compiles it."""
        figures = self.function.lower(*arguments).compile().memory_analysis()
        if figures is None:  # a backend may have none
            return 0
        return int(figures.temp_size_in_bytes + max(figures.output_size_in_bytes - figures.alias_size_in_bytes, 0))

    def foresee(self, *arguments: Any, beside: Any = None) -> int:
        """Returns the bytes of each device that the program will take beside what is there now: its own, and those of
        arguments, and of what will be there beside them, that are shapes. Raises TooLarge when they are more than is
        free now. The program runs as it was compiled here, and is weighed again."""
        need = self.need(arguments) + to_come((arguments, beside))
        self.check(need, f"{words(need)} to come")
        return need

    def weigh(self, arguments: tuple[Any, ...]) -> None:
        """Raises TooLarge when the program needs more than is free, in every process when it is so in one; nothing has
        run and no argument is donated then."""
        need = self.need(arguments)
        there = {} if self.parts is None else {k: v for k, v in self.parts(*arguments).items() if v}
        listed = ", ".join([f"{words(v)} {k}" for k, v in there.items()] + [f"{words(need)} to work in"])
        room = self.check(need, listed)
        self.weighed = True
        if self.say and room:
            self.say(f"memory: {self.what} takes {total(self.mesh, room, need)}: {listed}")

    def check(self, need: int, listed: str) -> Room | None:
        """Returns the room there is. Raises TooLarge when less than `need` is free."""
        room = of_device(self.mesh)
        short = worst(need - room.free if room else 0)
        if short > 0:
            raise TooLarge(
                f"{self.what} needs {words(short)} more memory than is free ({listed}; "
                f"{words(room.free if room else 0)} are free); accepted: less by {self.knobs}, or a machine with more",
                short,
            )
        return room
