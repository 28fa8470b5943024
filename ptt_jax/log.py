"""What a run says: metrics.jsonl for programs, lines for people, a progress line for terminals."""

import contextlib
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.seal import mark

CLEAR = "\r\033[K"  # to the beginning of the line, and nothing after it


class Unheard(Exception):
    """Standard output took nothing any more: its disk is full, or its reader has gone."""


def complain(text: str) -> None:
    """Prints a line to stderr, on a terminal in the place of a progress line; where that takes none either, nothing."""
    with contextlib.suppress(OSError):
        if sys.stdout and sys.stdout.isatty():
            print(CLEAR, end="", flush=True)
        print(text, file=sys.stderr, flush=True)


def tell(text: str, end: str = "\n") -> None:
    """Prints to standard output, at once. Raises Unheard."""
    try:
        print(text, end=end, flush=True)
    except OSError as e:
        raise Unheard(f"standard output cannot be written ({e.strerror})") from e


def hush() -> None:
    """Drops what standard output and stderr could not take: Python would try again at the exit, and complain."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where a shell closed it
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Log:
    """Appends records to metrics.jsonl and prints them; a quiet one (of all processes but the first) does neither, a
    silent one does not print."""

    def __init__(self, path: Path, quiet: bool = False, silent: bool = False) -> None:
        self.path, self.quiet, self.silent = path, quiet, quiet or silent
        self.live = bool(sys.stdout and sys.stdout.isatty()) and not self.silent

    def say(self, text: str) -> None:
        """Prints a line."""
        if not self.silent:
            tell((CLEAR if self.live else "") + text)

    def progress(self, text: str) -> None:
        """Shows a line that the next one replaces, on a terminal only; '' clears it. A longer line than the terminal is
        wide could not be replaced, and is cut."""
        if self.live:
            tell(CLEAR + text[: shutil.get_terminal_size().columns - 1], end="")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record, a line of JSON. Raises UserError when there is no room for it."""
        if self.quiet:
            return
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(record, allow_nan=False) + "\n")
                f.flush()
                os.fsync(f.fileno())  # a checkpoint that comes after it may not outlive it
        except OSError as e:
            raise UserError(
                f"{self.path} cannot be written ({e.strerror}); accepted: room on that disk, and the same command, "
                f"which goes on from the last checkpoint"
            ) from None

    def pause(self, stage: str, pause: Any, steps: int, epochs_a_step: float, spent: float, values: dict) -> None:
        """Writes and prints a `loop.Pause` with the validation `values`, numbers or {horizon: number}."""
        loss = None if math.isnan(pause.loss) else pause.loss
        epoch = round(pause.step * epochs_a_step, 4)
        self.write({"stage": stage, "step": pause.step, "epoch": epoch, "loss": loss, **values, "seconds": spent})
        words = [f"{stage}  step {pause.step} of {steps}"] + ([] if loss is None else [f"loss {loss:.4f}"])
        for name, value in values.items():
            many = value if isinstance(value, dict) else {"": value}
            words.append(name.replace("_", " ") + " " + " ".join(f"{k}: {v:.4f}".lstrip(": ") for k, v in many.items()))
        self.say("  ".join([*words, f"{spent:.0f} s", f"{pause.left:.0f} s left"]))

    def rewind(self, stage: str, step: int) -> None:
        """Drops what a stage logged after `step`, which a resumed run will do and log again, and a torn last line."""
        if self.quiet or not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a torn or damaged line
                record = json.loads(line)
                if record["stage"] != stage or record["step"] <= step:
                    kept.append(line)
        write_atomic(self.path, b"".join(line + b"\n" for line in kept))

    def mark(self) -> list[Any]:
        """Returns the mark (`seal.mark`) of metrics.jsonl as it is, which a checkpoint keeps."""
        return mark(self.path.read_bytes() if self.path.exists() else b"")

    def check(self, noted: list[Any] | None) -> None:
        """Says so when metrics.jsonl does not begin with what a mark is of: nothing but curves is made of it."""
        if noted and not self.quiet:
            content = self.path.read_bytes() if self.path.exists() else b""
            if mark(content[: noted[0]]) != noted:
                self.say(f"warning: {self.path} is not what was written; weights and scores do not depend on it")
