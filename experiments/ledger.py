"""What a study remembers: finished cells in a csv, its table in README.md between its markers, pictures if it can."""

import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ptt_jax import config
from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic
from ptt_jax.knobs import FREE

README = Path(__file__).parent / "README.md"


class Ledger:
    """A csv to which every finished cell is added at once.

    keys: the columns that tell cells apart; versions: those that tell what a cell was run under. A cell of another
    version is not finished, and when it is run again its new rows replace the former ones: a cell is in a table once.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], versions: tuple[str, ...] = ()) -> None:
        self.path, self.keys, self.versions = path, list(keys), list(versions)
        self.read()

    def read(self) -> None:
        """Takes what the file says: a table is the same whether its rows are new or old."""
        hashes = {"config": str, "backbone": str}  # 12345678 and 1234e567 are no numbers
        there = self.path.exists()
        names = [*self.keys, *self.versions]
        self.rows = self.newest(pd.read_csv(self.path, dtype=hashes) if there else pd.DataFrame(columns=names))
        self.done = {tuple(map(word, cell)) for cell in self.rows[names].itertuples(index=False)}

    def newest(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows of each cell's last version."""
        if rows.empty or not self.versions:
            return rows
        last = rows.groupby(self.keys)[self.versions].transform("last")
        return rows[(rows[self.versions] == last).all(axis=1)]

    def has(self, **cell: object) -> bool:
        """Says whether a cell is finished, in this version."""
        return tuple(word(cell[key]) for key in (*self.keys, *self.versions)) in self.done

    def add(self, rows: pd.DataFrame) -> None:
        """Adds a cell's rows, which hold its keys and versions, in the place of former ones; writes the file whole."""
        cells = {tuple(cell) for cell in rows[self.keys].itertuples(index=False)}
        others = [tuple(cell) not in cells for cell in self.rows[self.keys].itertuples(index=False)]
        whole = pd.concat([self.rows[others], rows], ignore_index=True) if any(others) else rows
        write_atomic(self.path, whole.to_csv(index=False, float_format="%.6g"))
        self.read()


def finish(
    ledger: Ledger, cells: Iterable[dict[str, Any]], measure: Callable[..., list[dict]],
    words: Callable[[list[dict]], str],
) -> None:  # fmt: skip
    """Measures each cell (its keys and versions) that is not finished, adds its rows at once and says words of them.
    One without rows is none."""
    for cell in cells:
        if not ledger.has(**cell) and (rows := measure(**cell)):
            ledger.add(pd.DataFrame(rows))
            print(words(rows), flush=True)


def chosen(text: str, known: Collection[str], flag: str = "data", mark: str = ",") -> list[str]:
    """Returns the names that a flag lists. Raises UserError for one that is not known."""
    names = text.split(mark)
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"--{flag}={wrong[0]} does not exist; accepted: {f'{mark} '.join(known)}")
    return names


def exit_code(script: str) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Decorates what a script runs, so that it returns the exit code: 0, or 2 after a UserError, said in one line."""

    def decorate(main: Callable[..., None]) -> Callable[..., int]:
        @functools.wraps(main)
        def run(*args: Any, **kwargs: Any) -> int:
            try:
                main(*args, **kwargs)
            except UserError as e:
                print(f"{script}: {' '.join(str(e).split())}", file=sys.stderr)
                return 2
            return 0

        return run

    return decorate


def fingerprint(cfg: Any, **constants: Any) -> str:
    """Returns 8 hex digits over what decides a study's figures: a script's constants, and all knobs, those at their
    default too, so that a changed default is noticed, but for where things lie and what may differ between two calls.
    """
    knobs = {k: v for k, v in config.flat(cfg).items() if k not in (*FREE, "backbone", "data.path")}
    text = json.dumps({"knobs": knobs, "constants": constants}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def pictures(draw: Callable[[], object]) -> None:
    """Draws; without matplotlib, an extra, says once how to get it."""
    try:
        draw()
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "matplotlib":
            raise
        say("pictures need `pip install ptt_jax[plot]`")


@functools.cache
def say(line: str) -> None:
    print(line, flush=True)


def command(script: str, argv: list[str]) -> str:
    """Returns the command to write beside a number: without where runs lie on this machine."""
    return shlex.join(["python", f"experiments/{script}.py", *(a for a in argv if not a.startswith("--run"))])


def word(value: object) -> str:
    """Returns a key as it is compared: 1.0 is written as 1, and read as either."""
    return value if isinstance(value, str) else f"{value:g}"


def set_table(readme: Path, name: str, text: str) -> bool:
    """Writes a table into a README between its markers; returns whether it has them."""
    page, begin, end = readme.read_text(encoding="utf-8"), f"<!-- table {name} -->", f"<!-- end {name} -->"
    if begin not in page:
        return False
    before, _, rest = page.partition(begin)
    write_atomic(readme, f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
    return True


def show(name: str, text: str) -> None:
    """Writes a table into README.md between its markers; prints it where there are none."""
    if not set_table(README, name, text):
        print(text)
