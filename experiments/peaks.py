"""What a device can do at most: a small table of data sheets, and a measurement where the table is silent."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Peak(NamedTuple):
    """FLOPs a second of dense matrix products (no sparsity), and bytes a second of the memory."""

    name: str
    flops: float
    bytes: float

    def bound(self, flops: float, accessed: float) -> tuple[float, str]:
        """Returns the seconds that work of so many FLOPs and bytes takes at least, and which of both says so."""
        compute, memory = flops / self.flops, accessed / self.bytes
        return max(compute, memory), "compute" if compute >= memory else "memory"


# Pattern of jax.Device.device_kind, TFLOP/s of float32 and of bfloat16 products, TB/s. XLA multiplies float32 as TF32
# on these GPUs and in bfloat16 on TPUs unless it is told not to (jax.lax.Precision.DEFAULT). Data sheets: NVIDIA A100
# (SXM, 40 and 80 GB), H100 (SXM) and H200 (SXM), whose figures with an asterisk are twice the dense ones; TPUs:
# cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. A PCIe or NVL card is another chip, and measured.
TABLE: tuple[tuple[str, str, float, float, float], ...] = (
    ("A100-40GB", r"A100-SXM.*40GB", 156.0, 312.0, 1.555),
    ("A100-80GB", r"A100-SXM.*80GB", 156.0, 312.0, 2.039),
    ("H100", r"\bH100\b(?!.*(PCIe|NVL))", 494.7, 989.4, 3.35),
    ("H200", r"\bH200\b(?!.*NVL)", 494.7, 989.4, 4.8),
    ("TPU-v4", r"TPU v4(?! lite)", 275.0, 275.0, 1.2),
    ("TPU-v5e", r"TPU v5( lite|e)", 197.0, 197.0, 0.819),
    ("TPU-v5p", r"TPU v5(p|$)", 459.0, 459.0, 2.765),
    ("TPU-v6e", r"TPU v6( lite|e)", 918.0, 918.0, 1.638),
)
CHIPS = tuple(name for name, *_ in TABLE)


def by_name(name: str, dtype: str) -> Peak:
    """Returns a row of the table."""
    return next(peak(row, dtype) for row in TABLE if row[0] == name)


def of_device(dtype: str) -> Peak:
    """Returns the peak of the first device: of the table, else as measured now."""
    kind = jax.devices()[0].device_kind
    found = [peak(row, dtype) for row in TABLE if re.search(row[1], kind)]
    return found[0] if found else measured(dtype)


def peak(row: tuple[str, str, float, float, float], dtype: str) -> Peak:
    name, _, single, half, memory = row
    return Peak(name, 1e12 * (half if dtype == "bfloat16" else single), 1e12 * memory)


def measured(dtype: str, size: int = 2048, copied: int = 2**28) -> Peak:
    """Returns the best of several large products and of several passes over memory: what XLA gets here, when it can."""
    products = []
    for n in (size // 2, size):
        a = jnp.ones((n, n), dtype)
        products.append(2 * n**3 / fastest(jax.jit(jnp.matmul), a, a))
    # Pass after pass over the same memory: the first touch of a page costs more than its bytes.
    passes, x = 8, jnp.ones(copied // 4, jnp.float32)
    again = jax.jit(lambda x: jax.lax.fori_loop(0, passes, lambda i, x: x + i.astype(x.dtype), x))
    return Peak("measured here", max(products), passes * 2 * x.nbytes / fastest(again, x))


def fastest(f: Callable[..., Any], *inputs: Any) -> float:
    """Returns the seconds of the fastest of several warm calls."""
    jax.block_until_ready(f(*inputs))
    return min(timed(f, *inputs)[0] for _ in range(7))


def timed(f: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """Returns (seconds, outputs) of a call, its end waited for."""
    begun = time.perf_counter()
    out = jax.block_until_ready(f(*inputs))
    return time.perf_counter() - begun, out


def device_name() -> str:
    """Returns the first device in words: of a CPU, its model and how many cores this process may use."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {models[0] if models else ''}, {cores} core{'s' if cores != 1 else ''}"
