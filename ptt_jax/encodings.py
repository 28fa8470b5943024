"""What the frozen encoder says of rows: made when needed, or once and kept under a budget of bytes."""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ptt_jax import cache, members, memory
from ptt_jax import mesh as meshes
from ptt_jax.model import CrossMAE, Encoded
from ptt_jax.problems import Problem
from ptt_jax.stream import Host
from ptt_jax.windows import Panel, Span, Windows, past, stretch


@flax.struct.dataclass
class Cached:
    """A series, and what the frozen encoder says of the first rows of one span: all of them, as many as a budget holds,
    or none (encoded None); the others are encoded when needed."""

    panel: Any  # Panel, Mix or Host; in jitted code what is fed of it
    encoded: Encoded | None = None
    complete: bool = flax.struct.field(pytree_node=False, default=False)
    mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)
    dtype: DTypeLike | None = flax.struct.field(pytree_node=False, default=None)  # what memory is rounded to, if cached

    @property
    def member_axes(self) -> "Cached":
        """What of it is each seed's own, for the axes of a vmap."""
        return self.replace(panel=self.panel.member_axis, encoded=None)  # type: ignore[attr-defined]

    def on(self, panel: Windows | None) -> "Cached":
        """Returns it with what a dispatch reads of the series."""
        return self.replace(panel=panel)  # type: ignore[attr-defined]

    def at(self, block: Array | int) -> "Cached":
        """Returns it with what one step of a dispatch reads of the series."""
        return self.on(self.panel.at(block))

    def bare(self) -> "Cached":
        """Returns it without encodings: as an `Encoder` makes it where none fits."""
        return self.replace(encoded=None, complete=False)  # type: ignore[attr-defined]

    @property
    def stored(self) -> int:
        """Rows that need no encoder."""
        return 0 if self.encoded is None else len(self.encoded.keep_RN)

    @property
    def encoded_bytes(self) -> int:
        return memory.nbytes(self.encoded)


def encode(model: CrossMAE, backbone: Any, data: Cached, span: Span, row_R: Array) -> Encoded:
    """Returns what the frozen encoder says of some rows: from the cache, or made now. No prompt can change it."""

    def fresh(row_R: Array) -> Encoded:
        history = past(data.panel, span, row_R)
        encoded = members.observe(model, backbone, *history)
        return encoded.with_memory(lambda a: rounded(a, data.dtype))

    if data.encoded is None:
        return fresh(row_R)
    at_R = jnp.minimum(row_R, data.stored - 1)
    found = jax.tree.map(lambda a: a[at_R], data.encoded)
    # A cache may be stored in half the bytes; what is computed from it is not.
    found = found.with_memory(lambda a: a.astype(model.dtype))
    return found if data.complete else fill(found, row_R >= data.stored, row_R, fresh, data.mesh)


def rounded(memory: Array, dtype: DTypeLike | None) -> Array:
    """Returns keys or values with the digits that a cache of `dtype` keeps, so that it does not matter which rows are
    cached. A cast there and back would not do: XLA drops it."""
    if dtype is None:
        return memory
    bits = jnp.finfo(dtype)
    return jax.lax.reduce_precision(memory, bits.nexp, bits.nmant)


PARTS = 8  # a batch's missing rows are encoded in eighths of a batch


def fill(
    found: Encoded, missing_R: Array, row_R: Array, fresh: Callable[[Array], Encoded], mesh: Mesh | None
) -> Encoded:
    """Returns `found` with the missing rows encoded now, and no others: the work follows their number.

    Shapes are fixed and the number is not, so a loop of as many turns as needed encodes a part of a batch each. Each
    device of the mesh does so for its own rows.
    """
    devices = mesh.size if mesh else 1
    size = -(-len(row_R) // devices)
    part = -(-size // PARTS)
    order_ER = jnp.argsort(~missing_R.reshape(devices, size), axis=1)  # missing ones first
    turns = -(-missing_R.reshape(devices, size).sum(1).max() // part)
    row_ER = row_R.reshape(devices, size)

    def body(i: Array, found: Encoded) -> Encoded:
        # Past the end, XLA moves the slice back onto rows that are done: the same again, at no harm.
        at_ER = jax.lax.dynamic_slice_in_dim(order_ER, i * part, part, axis=1)
        which_R = jnp.take_along_axis(row_ER, at_ER, axis=1).reshape(-1)
        made = fresh(meshes.split(mesh, which_R) if mesh else which_R)

        def put(a: Array, b: Array) -> Array:
            a_E, b_E = a.reshape(devices, size, *a.shape[1:]), b.reshape(devices, part, *b.shape[1:])
            return jax.vmap(lambda a, at, b: a.at[at].set(b))(a_E, at_ER, b_E).reshape(a.shape)

        return jax.tree.map(put, found, made)

    return jax.lax.fori_loop(0, turns, body, jax.lax.stop_gradient(found))


@cache.kept
def encoding(model: CrossMAE, mesh: Mesh, span: Span, block: int, dtype: DTypeLike) -> tuple[Callable, Callable]:
    """Returns f(backbone, panel, first) -> Encoded of the `block` rows from that one on, and f(backbone, panel, blocks)
    of all rows of so many blocks, under jit."""

    @functools.partial(jax.jit, inline=True)  # traced once for its shape and for the loop
    def one(backbone: Any, panel: Panel, first: Array) -> Encoded:
        row_R = meshes.split(mesh, stretch(first, block, span.rows)[0])
        return encode(model, backbone, Cached(panel), span, row_R).with_memory(lambda a: a.astype(dtype))

    @functools.partial(jax.jit, static_argnums=2)
    def run(backbone: Any, panel: Panel, blocks: int) -> Encoded:
        stacked = jax.lax.map(lambda first: one(backbone, panel, first), jnp.arange(blocks) * block)
        # Whole on each device: a step's rows lie anywhere. Rows past the last are padding.
        return meshes.whole(mesh, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked))

    return one, run


class Encoder:
    """f(backbone, budget) -> Cached: the series with the encoder's output of every row of a span, or of as many blocks
    of rows as `budget` bytes hold.

    block: rows that are encoded at once. dtype: what the cache is stored in, and what every other row is rounded to;
    bfloat16 holds twice as many rows. A streamed series has no cache: it would take more room than the series itself.
    """

    def __init__(self, model: CrossMAE, problem: Problem, span: Span, block: int, dtype: DTypeLike) -> None:
        self.model, self.problem, self.span, self.dtype = model, problem, span, dtype
        mesh = problem.mesh
        block = -(-span.rows // -(-span.rows // block))  # equal ones, so that hardly a row is padding
        self.block = -(-block // mesh.size) * mesh.size
        self.one, run = encoding(model, mesh, span, self.block, dtype)
        self.program = memory.Program(run, mesh, "encoding", "config.tune.cache_bytes or config.evaluate.batch")

    def each(self, backbone: Any) -> int:
        """Returns the bytes of a block's encodings."""
        return memory.nbytes(jax.eval_shape(self.one, backbone, self.problem.panel, jnp.int32(0)))

    def afford(self, backbone: Any, asked: int) -> int:
        """Returns how many of `asked` bytes the encodings may take of each device (`memory.afford`)."""
        if isinstance(self.problem.panel, Host) or not asked:
            return asked
        need = self.span.rows * self.each(backbone) // self.block
        return memory.afford(self.problem.mesh, asked, need)

    def __call__(self, backbone: Any, budget: int) -> Cached:
        return self.make(backbone, budget, self.program)

    def foresee(self, backbone: Any, budget: int) -> Cached:
        """Returns what is made as shapes, of weights that are shapes. Raises TooLarge when making it will not fit."""

        def shapes(*arguments: Any) -> Encoded:
            self.program.foresee(*arguments)
            made = jax.eval_shape(lambda *a: self.program.function(*a, arguments[-1]), *arguments[:-1])
            return cast(Encoded, meshes.shapes(self.problem.mesh, made))

        return self.make(backbone, budget, shapes)

    def make(self, backbone: Any, budget: int, run: Callable[..., Encoded]) -> Cached:
        """Returns the series with what `run` makes of as many blocks as the budget holds."""
        if isinstance(self.problem.panel, Host):
            return Cached(self.problem.panel, dtype=self.dtype)
        blocks = min(-(-self.span.rows // self.block), budget // self.each(backbone))
        encoded = run(backbone, self.problem.panel, blocks) if blocks else None
        whole = blocks * self.block >= self.span.rows
        return Cached(self.problem.panel, encoded, whole, self.problem.mesh, self.dtype)


def encode_all(
    model: CrossMAE, backbone: Any, problem: Problem, span: Span, block: int, budget: int, dtype: DTypeLike
) -> Cached:
    """Returns what an `Encoder` makes."""
    return Encoder(model, problem, span, block, dtype)(backbone, budget)
