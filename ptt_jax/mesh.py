"""A mesh of one axis, `data`: weights and the series on every device, the rows of a batch split among them."""

from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ptt_jax.config import UserError


def make(devices: int = 0) -> Mesh:
    """Returns a mesh over the first `devices` devices (0 = all). Raises UserError when there are fewer."""
    found = jax.devices()
    if devices > len(found):
        raise UserError(
            f"config.devices = {devices}, but there are {len(found)} ({found[0].platform}); "
            f"accepted: 0 for all of them, or at most {len(found)}"
        )
    count = devices or len(found)
    # Auto axes: under Explicit ones (the default of make_mesh) sharded gathers and splitting reshapes raise.
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=found[:count])


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Returns the tree with every leaf whole on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(mesh: Mesh, x_R: Array) -> Array:
    """Inside jit: the first axis is split over the mesh; what is computed from it follows."""
    return jax.lax.with_sharding_constraint(x_R, NamedSharding(mesh, PartitionSpec("data")))


def whole(mesh: Mesh, tree: Any) -> Any:
    """Inside jit: every leaf is whole on each device, so that any process can fetch it."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def check_divides(mesh: Mesh, key: str, size: int) -> None:
    """Raises UserError when a batch does not divide by the mesh."""
    if size % mesh.size:
        near = max(size // mesh.size, 1) * mesh.size
        raise UserError(
            f"config.{key} = {size} does not divide by {mesh.size} devices; "
            f"accepted: {near}, say, or fewer with config.devices"
        )
