"""What is not done twice: a program that was compiled once is read from the disk, and one that a process has is not
traced again."""

import errno
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from ptt_jax.errors import UserError
from ptt_jax.files import to_path

KEPT = 16  # programs of a kind that a process keeps: those that were not wanted for longest go
Made = TypeVar("Made")
makers: list[Any] = []


def kept(make: Callable[..., Made]) -> Callable[..., Made]:
    """Decorates a function that makes a jitted one of what can be hashed: models, spans, meshes, numbers. The same
    comes back for the same, so that a process which learns or scores again, on series and weights of the same shapes,
    traces, lowers and compiles nothing. What is made holds no array but keys."""
    maker = functools.lru_cache(KEPT, typed=True)(make)
    makers.append(maker)
    return maker


def forget() -> None:
    """Drops all programs that `kept` has: each is traced when it is wanted again."""
    for maker in makers:
        maker.cache_clear()


def offer(folder: str) -> None:
    """Turns the cache on as `use` does, unless the program that calls has one of its own."""
    if not getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009  # a type checker does not see it
        use(folder)


def use(folder: str) -> None:
    """Turns the cache on for programs of any compile time; 'default' = in the user's cache folder, '' = leaves it.

    Raises UserError for a folder that cannot be written; warns where that is the default one.
    """
    if not folder:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = home / "ptt_jax" / "xla" if folder == "default" else to_path(folder, "config.cache_dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:
        words = f"{path} cannot keep compiled programs ({e.strerror}); accepted: --config.cache_dir=DIR, or '' for none"
        if folder != "default":
            raise UserError(f"config.cache_dir = {folder!r}: {words}") from None
        warnings.warn(words, stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
