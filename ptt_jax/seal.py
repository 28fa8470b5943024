"""JSON files that say whether they are what was written: each holds the SHA-256 of its own content.

The seal is over the values, not over how they stand on the page. A file of an earlier version has none, and is taken as
it is; a damaged one is told from that by either half of the seal: its key, or how its value begins.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic

KEY, BEGINS = "seal", "sha256:"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its seal, last."""
    plain = json.loads(json.dumps(content))
    text = json.dumps(plain, sort_keys=True)
    return {**plain, KEY: BEGINS + hashlib.sha256(text.encode()).hexdigest()}


def opened(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns a JSON object without its seal. Raises UserError when it is not what was sealed."""
    held = {key: value for key, value in found.items() if key != KEY}
    marked = KEY in found or any(str(value).startswith(BEGINS) for value in held.values())
    if marked and sealed(held)[KEY] != found.get(KEY):
        raise UserError(
            f"{path} is not what was written (its seal differs); accepted: the file as it was, or, if it was edited "
            f"on purpose, without its line {KEY!r}"
        )
    return held


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a sealed JSON file, whole or not at all. Raises UserError when that cannot be done."""
    write_atomic(path, json.dumps(sealed(content), indent=2))


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON file's object without its seal. Raises UserError when it is missing, no JSON object, or not what
    was sealed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; accepted: the directory of a run that has finished this stage"
        ) from None
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read as JSON ({e}); accepted: the file as a run wrote it") from None
    return opened(found, path)


def mark(content: bytes) -> list[Any]:
    """Returns how long something is, in bytes, and its SHA-256."""
    return [len(content), hashlib.sha256(content).hexdigest()]


def note_files(path: Path, names: Iterable[str], to_come: dict[str, str]) -> None:
    """Writes a sealed JSON file with marks of files beside it that are there, and of texts that will be."""
    content = {name: (path.parent / name).read_bytes() for name in names if (path.parent / name).exists()}
    content |= {name: text.encode() for name, text in to_come.items()}
    write_json(path, {name: mark(raw) for name, raw in content.items()})


def check_files(path: Path) -> None:
    """Raises UserError when a file is not the one that `note_files` noted; a .jsonl may have grown. An earlier version
    noted none."""
    for name, said in (read_json(path) if path.exists() else {}).items():
        file = path.parent / Path(name).name
        accepted = f"accepted: the file as it was, or, if it was edited on purpose, no {path.name}"
        try:
            content = file.read_bytes()
        except OSError as e:
            raise UserError(f"{file} cannot be read ({e.strerror}); {accepted}") from None
        if mark(content[: said[0]] if file.suffix == ".jsonl" else content) != said:
            raise UserError(f"{file} is not what was written (its SHA-256 is not the one in {path.name}); {accepted}")
