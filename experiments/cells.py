"""What the experiments are made of: a cell is one run of `ptt_jax.main`, and says which of its rows count as what.

A part is a function of the data sets and seeds that returns its cells, in an order in which a backbone comes before the
cells that tune on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ptt_jax.main import load_file

ROOT = Path(__file__).parent.parent
FIVE = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather")
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
                cell("-mae", {"prompt": "prompts, tuned by absolute error"}, "tune.loss=mae", on="."),
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
    """The backbone of one data set, the prompts of another; and one backbone of five sets together."""
    cells = []
    for seed in seeds:
        of_seed = f"seed={seed}"
        for source in sets:
            rows = {"prompt": f"prompts on the backbone of {source}", "zero_shot": f"mask token of {source}"}
            own = of_seed, f"lookback={lookback(source)}"
            for data in (d for d in sets if d != source):
                name, file = f"{source}-to-{data}-s{seed}", f"configs/{data.lower()}.py"
                cells.append(Cell(name, data, file, own, f"main/{source}-s{seed}", rows))
        # The same five whatever is asked for, so that a finished one is what its row says.
        first, *others = FIVE
        rows = {"prompt": "prompts on one backbone of five", "zero_shot": "mask token of five"}
        also = (
            f"pretrain.also={','.join(others)}",
            "pretrain.choose=last",
            "pretrain.patience=99",
            "pretrain.steps=4000",
        )
        name, file = f"five-s{seed}", f"configs/{first.lower()}.py"
        cells.append(Cell(name, first, file, (of_seed, *also), "", rows))
        own = of_seed, f"lookback={lookback(first)}"
        for data in (d for d in sets if d != first):
            cells.append(Cell(f"five-to-{data}-s{seed}", data, f"configs/{data.lower()}.py", own, name, rows))
    return cells


def lookback(data: str) -> int:
    """Returns the lookback of a set's config, which its backbone's patch divides."""
    return int(load_file(ROOT / "configs" / f"{data.lower()}.py").lookback)


def few(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Prompts and a new head on a part of the training windows, on a backbone that saw all of them; and training from
    scratch on that part alone."""
    cells = []
    for data in sets:
        file = f"configs/{data.lower()}.py"
        for seed in seeds:
            for share in (0.01, 0.05, 0.1, 0.25):
                own = (f"seed={seed}", f"tune.share={share}", "tune.steps=126")
                name, base = f"{data}-s{seed}-{share}", f"main/{data}-s{seed}"
                rows = {"prompt": f"prompts, {share:.0%}", "linear": f"linear, {share:.0%}"}
                cells.append(Cell(name, data, file, own, base, rows))
                for kind, on in (("head", base), ("scratch", f"{base}-random")):
                    mode = (*own[:2], "tune.mode=head", *TRAIN)
                    label = "new head: everything" if kind == "head" else "from scratch: everything"
                    cells.append(Cell(f"{name}-{kind}", data, file, mode, on, {"head": f"{label}, {share:.0%}"}))
    return cells


# Whatever trains a head or the encoder gets more steps than prompts on any set, more looks, and patience.
TRAIN = ("tune.steps=1500", "tune.validations=30", "tune.patience=4", "tune.learning_rate=1e-4")
# label: (knobs, whether the main table's backbone serves)
ABLATIONS: dict[str, tuple[tuple[str, ...], bool]] = {
    "the recipe": ((), True),
    "one shared prompt": (("tune.prompts=shared",), True),
    "a prompt for each channel": (("tune.prompts=channel",), True),
    **{f"mask ratio {r}": ((f"pretrain.mask_ratio={r}",), False) for r in (0.2, 0.4, 0.8, 0.9)},
    "hidden at random": (("pretrain.tail_share=0.0",), False),
    "hidden tail": (("pretrain.tail_share=1.0",), False),
    "windows of the lookback and one patch": (("pretrain.horizon=1",), False),
    "visible patches normalise": (("pretrain.norm=visible",), False),
    "the whole window normalises": (("pretrain.norm=window",), False),
    **{f"patch {p}": ((f"model.patch={p}",), False) for p in (6, 12, 36, 72)},
    **{f"lookback {t}": ((f"lookback={t}",), False) for t in (96, 192, 336, 720, 1008, 1440)},
    **{f"decoder of {n} blocks": ((f"model.decoder_layers={n}",), False) for n in (2, 3)},
    **{f"{p} positions": ((f"model.position={p}",), False) for p in ("sincos", "learned")},
}
PARTS = {"main": main, "ablations": ablations, "transfer": transfer, "few": few}
