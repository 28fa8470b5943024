"""PT-Tuning in JAX: a frozen Cross-MAE and a few prompt tokens that turn it into a forecaster."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Bank", "Forecaster"]


def __getattr__(name: str) -> Any:
    """Imports jax and the models when they are asked for, not with the package."""
    if name == "Bank":
        from ptt_jax.bank import Bank

        return Bank
    if name == "Forecaster":
        from ptt_jax.forecaster import Forecaster

        return Forecaster
    raise AttributeError(f"module 'ptt_jax' has no attribute {name!r}")
