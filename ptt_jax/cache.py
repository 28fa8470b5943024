"""The persistent compilation cache: a program that was compiled once is read from the disk."""

import os
from pathlib import Path

import jax


def offer(folder: str) -> None:
    """Turns the cache on as `use` does, unless the program that calls has one of its own."""
    if not getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009  # a type checker does not see it
        use(folder)


def use(folder: str) -> None:
    """Turns the cache on for programs of any compile time; 'default' = in the user's cache folder, '' = leaves it."""
    if not folder:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "ptt_jax" / "xla" if folder == "default" else folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
