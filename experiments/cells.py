"""What the experiments are made of: a cell is one run of `ptt_jax.main`, and says which of its rows count as what.

A part is a function of the data sets and seeds that returns its cells, in an order in which a backbone comes before the
cells that tune on it.
"""

from collections.abc import Sequence
from typing import NamedTuple

SETS = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Electricity", "Traffic")
OWN = {
    "seasonal_naive": "seasonal naive",
    "linear": "linear",
    "zero_shot": "mask token: zero-shot",
    "prompt": "prompts",
}


class Cell(NamedTuple):
    """One run: its name (a folder), its config file, what it overrides, the cell whose backbone it takes, and
    {model in its results.csv: row of the table}."""

    name: str
    data: str
    config: str
    overrides: tuple[str, ...]
    backbone: str
    rows: dict[str, str]


def main(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Prompts, and what they must beat: without training, trained end to end, fine-tuned, on a random backbone."""
    cells = []
    for data in sets:
        file = f"configs/{data.lower()}.py"
        for seed in seeds:
            base, of_seed = f"{data}-s{seed}", (f"seed={seed}",)

            def cell(
                kind: str, rows: dict[str, str], *more: str, on: str = "",
                base: str = base, data: str = data, file: str = file, of_seed: tuple[str, ...] = of_seed,
            ) -> Cell:  # fmt: skip
                return Cell(f"{base}{kind}", data, file, (*of_seed, *more), on and f"{base}{on.strip('.')}", rows)

            cells += [
                cell("", OWN),
                cell("-random", {"prompt": "random backbone: prompts"}, "pretrain.epochs=0.0", "pretrain.steps=0"),
                cell("-probe", {"probe": "new head: probe"}, "tune.mode=probe", *TRAIN, on="."),
                cell("-random-probe", {"probe": "random backbone: probe"}, "tune.mode=probe", *TRAIN, on="-random"),
                cell("-head", {"head": "new head: everything"}, "tune.mode=head", *TRAIN, on="."),
                cell("-full", {"full": "mask token: everything"}, "tune.mode=full", *TRAIN, on="."),
                cell("-scratch", {"head": "from scratch: everything"}, "tune.mode=head", *TRAIN, on="-random"),
            ]
    return cells


# Whatever trains a head or the encoder gets more steps than prompts, more looks, and patience.
TRAIN = ("tune.epochs=10.0", "tune.validations=20", "tune.patience=5")
PARTS = {"main": main}
