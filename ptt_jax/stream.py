"""A series larger than the device: it stays on the host, where grain's thread cuts what the next dispatch reads."""

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ptt_jax.errors import UserError
from ptt_jax.windows import Order, Span, Streamed

ALIVE = 3  # dispatches whose windows are on the device: one at work, one that waits for it, one that is being cut


@dataclasses.dataclass(frozen=True, eq=False)
class Host:
    """A scaled series in numpy, maybe a memmap, in a Panel's place: jitted code is fed Streamed rows instead of it.

    budget: bytes of each device for what is fed.
    """

    values_CT: np.ndarray
    observed_CT: np.ndarray
    mesh: Mesh
    budget: int

    member_axis = Streamed.member_axis

    def __post_init__(self) -> None:
        """Raises UserError when grain is not installed, before anything is computed."""
        try:
            import grain  # noqa: F401  (it takes a second)
        except ImportError:
            raise UserError(
                f"{self.size}, and grain, which streams it from the host, is not installed; accepted: pip install "
                f"ptt_jax[stream], or a config.data.device_bytes of at least {self.nbytes}"
            ) from None

    @property
    def nbytes(self) -> int:
        return self.values_CT.nbytes + self.observed_CT.nbytes

    @property
    def size(self) -> str:
        """Returns the words for why it is not on the device."""
        return f"the series takes {self.nbytes:,} bytes, more than config.data.device_bytes = {self.budget:,}"

    def fits(self, span: Span, rows: int) -> int:
        """Returns how many blocks of so many rows fit in a dispatch: at least one, whatever the budget."""
        a_row = span.length * (self.values_CT.itemsize + self.observed_CT.itemsize)
        return max(self.budget * self.mesh.size // (ALIVE * rows * a_row), 1)

    def sharding(self, axes: int, split: bool) -> NamedSharding:
        """Returns how rows of so many axes lie on the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(*([None] * (axes - 1) + ["data"] if split else [])))

    def like(self, span: Span, rows: tuple[int, ...]) -> Streamed:
        """Returns the shapes of what `feed` yields, of rows of that shape."""
        at = self.sharding(len(rows), True)
        whole = Streamed(self.values_CT, self.observed_CT)  # type: ignore[arg-type]
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*rows, span.length), a.dtype, sharding=at), whole)

    def feed(self, span: Span, rows: Order, dispatches: int, split: bool = True) -> Generator[Streamed, None, None]:
        """Yields the windows of rows(0), rows(1), ...: the next ones are cut and sent while the last are at work.

        split: each device gets its share of a block's rows, else all of them. What fails in the thread is raised here.
        """
        import grain

        source = Source(self, span, rows, dispatches, split)
        # One thread and one dispatch ahead: a cut is a copy of memory, and more of them ahead would only take room.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        with contextlib.closing(iter(grain.MapDataset.source(source).to_iter_dataset(options))) as ahead:
            yield from ahead


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """For grain: item i is what dispatch i reads, on its way to the device."""

    host: Host
    span: Span
    rows: Order
    dispatches: int
    split: bool

    def __len__(self) -> int:
        return self.dispatches

    def __getitem__(self, dispatch: int) -> Streamed:
        with jax.default_device(aside()):
            row_JR = np.asarray(self.rows(dispatch))
        sharding = self.host.sharding(row_JR.ndim, self.split)

        def send(array_CT: np.ndarray) -> jax.Array:
            """Each process cuts what its own devices get."""

            def piece(at: Any) -> np.ndarray:
                return cut(array_CT, self.span, row_JR[at[:-1]])

            return jax.make_array_from_callback((*row_JR.shape, self.span.length), sharding, piece)

        return Streamed(send(self.host.values_CT), send(self.host.observed_CT))


def aside() -> jax.Device:
    """Returns a device for the row numbers: the host's own, so that they never wait for a dispatch to end."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names no cpu
        return jax.local_devices()[0]


def cut(array_CT: np.ndarray, span: Span, row_JR: np.ndarray) -> np.ndarray:
    """Returns whole windows as `windows.take` does; steps past the split's end are 0, that is, missing."""
    channel_JR, start_JR = row_JR % span.channels, span.first + row_JR // span.channels
    last = span.end - span.length
    views_CWL = np.lib.stride_tricks.sliding_window_view(array_CT, span.length, axis=1)
    out_JRL = views_CWL[channel_JR, np.minimum(start_JR, last)]
    past_JR = start_JR > last
    at_RL = start_JR[past_JR, None] + np.arange(span.length)
    found_RL = array_CT[channel_JR[past_JR, None], np.minimum(at_RL, span.end - 1)]
    out_JRL[past_JR] = np.where(at_RL < span.end, found_RL, 0)
    return out_JRL
