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


def ablations(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """One knob at a time, from the recipe of the main table; what changes the prompt alone takes its backbone."""
    cells = []
    for data in (d for d in sets if d in ("ETTh1", "ETTm1", "Weather")):
        for seed in seeds:
            for label, (knobs, same) in ABLATIONS.items():
                name = f"{data}-s{seed}-{label.replace(' ', '-').replace('/', '-')}"
                base = f"main/{data}-s{seed}" if same else ""
                knobs = (f"seed={seed}", *knobs)
                cells.append(Cell(name, data, f"configs/{data.lower()}.py", knobs, base, {"prompt": label}))
    return cells


def transfer(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The backbone of one data set, the prompts of another; and one backbone of all sets together."""
    cells = []
    for seed in seeds:
        of_seed = f"seed={seed}"
        for source in sets:
            for data in (d for d in sets if d != source):
                rows = {"prompt": f"prompts on the backbone of {source}", "zero_shot": f"mask token of {source}"}
                base = f"main/{source}-s{seed}"
                cells.append(
                    Cell(f"{source}-to-{data}-s{seed}", data, f"configs/{data.lower()}.py", (of_seed,), base, rows)
                )
        first, *others = sets
        rows = {"prompt": "prompts on one backbone of all", "zero_shot": "mask token of all"}
        if others:
            also = (of_seed, f"pretrain.also={','.join(others)}", "pretrain.choose=last", "pretrain.patience=99")
            name = f"all-s{seed}"
            cells.append(Cell(name, first, f"configs/{first.lower()}.py", also, "", rows))
            for data in others:
                cells.append(Cell(f"all-to-{data}-s{seed}", data, f"configs/{data.lower()}.py", (of_seed,), name, rows))
    return cells


def few(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Prompts, and training from scratch, on a part of the training windows."""
    cells = []
    for data in sets:
        file = f"configs/{data.lower()}.py"
        for seed in seeds:
            for share in (0.01, 0.05, 0.1, 0.25):
                own = (f"seed={seed}", f"tune.share={share}", "tune.steps=126")
                name, base = f"{data}-s{seed}-{share}", f"main/{data}-s{seed}"
                rows = {"prompt": f"prompts, {share:.0%}", "linear": f"linear, {share:.0%}"}
                cells.append(Cell(name, data, file, own, base, rows))
                mode = (*own, "tune.mode=head", "tune.validations=20", "tune.patience=5", "tune.steps=1000")
                rows = {"head": f"from scratch, {share:.0%}"}
                cells.append(Cell(f"{name}-scratch", data, file, mode, f"{base}-random", rows))
    return cells


# Whatever trains a head or the encoder gets more steps than prompts, more looks, and patience.
TRAIN = ("tune.epochs=10.0", "tune.validations=20", "tune.patience=5")
# label: (knobs, whether the main table's backbone serves)
ABLATIONS: dict[str, tuple[tuple[str, ...], bool]] = {
    "one shared prompt": (("tune.prompts=shared",), True),
    "a prompt for each channel": (("tune.prompts=channel",), True),
    **{f"mask ratio {r}": ((f"pretrain.mask_ratio={r}",), False) for r in (0.2, 0.4, 0.8, 0.9)},
    "hidden at random": (("pretrain.tail_share=0.0",), False),
    "hidden tail": (("pretrain.tail_share=1.0",), False),
    "windows of the lookback alone": (("pretrain.horizon=1",), False),
    "visible patches normalise": (("pretrain.norm=visible",), False),
    **{f"patch {p}": ((f"model.patch={p}",), False) for p in (6, 12, 36, 72)},
    **{f"lookback {t}": ((f"lookback={t}",), False) for t in (96, 192, 336, 720, 1008, 1440)},
    **{f"decoder of {n} blocks": ((f"model.decoder_layers={n}",), False) for n in (2, 3)},
    **{f"{p} positions": ((f"model.position={p}",), False) for p in ("sincos", "learned")},
}
PARTS = {"main": main, "ablations": ablations, "transfer": transfer, "few": few}
