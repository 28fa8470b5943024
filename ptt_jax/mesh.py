"""A mesh of one axis, `data`: weights and the series on every device, the rows of a batch split among them."""

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ptt_jax.errors import UserError


def make(devices: int = 0) -> Mesh:
    """Returns a mesh over the first `devices` devices (0 = all). Raises UserError when there are fewer."""
    found = jax.devices()  # of all processes
    if devices > len(found):
        raise UserError(
            f"config.devices = {devices}, but there are {len(found)} ({found[0].platform}); "
            f"accepted: 0 for all of them, or at most {len(found)}"
        )
    count = devices or len(found)
    if count < len(found) and jax.process_count() > 1:
        raise UserError(
            f"config.devices = {devices}, but {jax.process_count()} processes have {len(found)} devices; "
            f"accepted: 0 or {len(found)}, since no process may be left out"
        )
    # Auto axes: under Explicit ones (the default of make_mesh) sharded gathers and splitting reshapes raise.
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=found[:count])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Returns the tree with every leaf whole on each device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Array:
        if isinstance(leaf, Array) and leaf.sharding == sharding:
            return leaf
        return jax.make_array_from_callback(np.shape(leaf), sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(put, tree)


def shapes(mesh: Mesh, tree: Any) -> Any:
    """Returns the tree as shapes: what `replicate` makes of it, before that is there."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def split(mesh: Mesh, tree: Any) -> Any:
    """Inside jit: the first axis of every leaf is split over the mesh; what is computed from it follows."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec("data")))


def whole(mesh: Mesh, tree: Any) -> Any:
    """Inside jit: every leaf is whole on each device again, so that each process can fetch it."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def check_divides(mesh: Mesh, key: str, size: int) -> None:
    """Raises UserError when a batch does not divide by the mesh."""
    if size % mesh.size:
        near = max(size // mesh.size, 1) * mesh.size
        raise UserError(
            f"config.{key} = {size} does not divide by {mesh.size} devices; "
            f"accepted: {near}, say, or fewer with config.devices"
        )
