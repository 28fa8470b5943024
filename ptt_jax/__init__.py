"""PT-Tuning in JAX: a frozen Cross-MAE and a few prompt tokens that turn it into a forecaster."""

__version__ = "0.1.0"
