"""Paths that people type, and files that are whole or absent."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

from ptt_jax.errors import UserError, brief


def check_text(where: str, text: str) -> None:
    """Raises UserError for text that no name of a file or a column can be, nor a file hold."""
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where} = {brief(text)} holds zero bytes or bytes that are not UTF-8; accepted: plain text")


def to_path(text: str | os.PathLike[str], where: str) -> Path:
    """Returns the path that somebody typed, `~` replaced. Raises UserError, which names `where`, for what can be none
    on any disk, so that whether a file is there can be asked of the others."""
    said = brief(os.fspath(text))
    check_text(where, os.fspath(text))
    try:
        path = Path(text).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError) as e:  # a part of it is too long, say, or ~somebody is nobody
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"{where} = {said} cannot be looked up ({reason}); accepted: a path that can") from None
    return path


def write_atomic(path: Path, content: str | bytes, several: bool = False) -> None:
    """Writes a file under a temporary name and renames it: a reader sees the old one or the new one, whole, and so does
    who comes after the power has gone. Raises UserError when that cannot be done.

    several: processes may write the same file at a time, maybe with the same number on machines or in containers that
    share a disk; each has a temporary name of its own then, which is left when it is killed.
    """
    temporary = path.with_name(f"{path.name}{f'.{secrets.token_hex(4)}' if several else ''}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # the name may reach the disk before the content otherwise
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({e.strerror or e}); accepted: a place that can be written and has room"
        ) from None


def sync(folder: Path) -> None:
    """Returns when all in a folder, and its name, is on the disk: what is deleted or written after that outlives no
    power failure that it does not. orbax leaves most of its small files to the system. Raises OSError."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:  # some systems open no folder
            continue
        try:
            os.fsync(file)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # which say that there is no such thing
                raise
        finally:
            os.close(file)
