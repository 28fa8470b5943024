"""What a study remembers: finished cells in a csv, and its table in README.md between its markers."""

import shlex
from pathlib import Path

import pandas as pd

from ptt_jax.config import write_atomic

README = Path(__file__).parent / "README.md"


class Ledger:
    """A csv to which every finished cell is added at once; `keys` are the columns that tell cells apart."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, list(keys)
        self.read()

    def read(self) -> None:
        """Takes what the file says: a table is the same whether its rows are new or old."""
        hashes = {"config": str, "backbone": str}  # 12345678 and 1234e567 are no numbers
        there = self.path.exists()
        self.rows = pd.read_csv(self.path, dtype=hashes) if there else pd.DataFrame(columns=self.keys)
        self.done = self.cells(self.rows)

    def cells(self, rows: pd.DataFrame) -> set[tuple[str, ...]]:
        return {tuple(map(word, cell)) for cell in rows[self.keys].itertuples(index=False)}

    def has(self, **cell: object) -> bool:
        return tuple(word(cell[key]) for key in self.keys) in self.done

    def add(self, rows: pd.DataFrame) -> None:
        """Adds a cell's rows, which hold its keys, and writes the file whole."""
        whole = pd.concat([self.rows, rows]) if len(self.rows) else rows
        write_atomic(self.path, whole.to_csv(index=False, float_format="%.6g"))
        self.read()


def command(script: str, argv: list[str]) -> str:
    """Returns the command to write beside a number: without where runs lie on this machine."""
    return shlex.join(["python", f"experiments/{script}.py", *(a for a in argv if not a.startswith("--run"))])


def word(value: object) -> str:
    """Returns a key as it is compared: 1.0 is written as 1, and read as either."""
    return value if isinstance(value, str) else f"{value:g}"


def show(name: str, text: str) -> None:
    """Writes a table into README.md between its markers; prints it where there are none."""
    page, begin, end = README.read_text(encoding="utf-8"), f"<!-- table {name} -->", f"<!-- end {name} -->"
    if begin not in page:
        print(text)
        return
    before, _, rest = page.partition(begin)
    write_atomic(README, f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
