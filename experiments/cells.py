"""What the experiments are made of: a cell is one run of `ptt_jax.main`, and says which of its rows count as what.

A part is a function of the data sets and seeds that returns its cells, in an order in which a backbone comes before the
cells that tune on it.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from ptt_jax import config
from ptt_jax.flags import load_file

ROOT = Path(__file__).parent.parent
FIVE = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather")
# Of hours and half-hours, long enough for the benchmark's windows; below the folder of data.
MORE_FILES = tuple(f"more/{name}.csv.gz" for name in ("WTH", "Beijing_air", "gefcom2012_load", "vic_elec"))
SETS = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Electricity", "Traffic")
OWN = {
    "seasonal_naive": "seasonal naive",
    "linear": "linear",
    "zero_shot": "mask token: zero-shot",
    "prompt": "prompts",
}
NO_STEPS = ("pretrain.epochs=0.0", "pretrain.steps=0")  # a random backbone
RANDOM_BESIDE = "random backbone: prompts beside a linear map"
THREE_WIDER_BESIDE = "three wider networks: prompts beside a linear map"
BESIDE = ("model.linear=True",)
THREE = ("model.members=3",)
WIDER = ("model.width=128", "model.mlp=256", "model.decoder_layers=2")


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
                cell("-linear", {"prompt": "prompts beside a linear map"}, *BESIDE),
                cell("-three", {"prompt": "three networks: prompts beside a linear map"}, *THREE, *BESIDE),
                cell("-wider", {"prompt": "wider: prompts beside a linear map"}, *WIDER, *BESIDE),
                cell("-three-wider", {"prompt": THREE_WIDER_BESIDE}, *THREE, *WIDER, *BESIDE),
                cell("-random", {"prompt": "random backbone: prompts"}, *NO_STEPS),
                cell("-random-linear", {"prompt": RANDOM_BESIDE}, *BESIDE, *NO_STEPS),
                cell("-probe", {"probe": "new head: probe"}, "tune.mode=probe", *MORE, on="."),
                cell("-random-probe", {"probe": "random backbone: probe"}, "tune.mode=probe", *MORE, on="-random"),
                cell("-head", {"head": "new head: everything"}, "tune.mode=head", *MORE, on="."),
                cell("-full", {"full": "mask token: everything"}, "tune.mode=full", *MORE, on="."),
                cell("-scratch", {"head": "from scratch: everything"}, "tune.mode=head", *MORE, on="-random"),
            ]
    return cells


def ablations(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """One knob at a time, from the recipe of the main table; what changes the prompt alone takes its backbone. A row
    that is a set's recipe is not run again."""
    cells = []
    for data in (d for d in sets if d in ("ETTh1", "ETTm1", "Weather")):
        for seed in seeds:
            main_one = f"main/{data}-s{seed}"
            for label, variant in ABLATIONS.items():
                if not possible(data, label) or (label != RECIPE and (is_recipe(data, label) or not variant.knobs)):
                    continue
                base = variant.on and (main_one if is_recipe(data, variant.on) else named(data, seed, variant.on))
                knobs = (f"seed={seed}", *variant.knobs)
                rows = {"prompt": RECIPE, "zero_shot": WITHOUT} if label == RECIPE else {variant.model: label}
                cells.append(Cell(named(data, seed, label), data, f"configs/{data.lower()}.py", knobs, base, rows))
    return cells


def named(data: str, seed: int, label: str) -> str:
    return f"{data}-s{seed}-{re.sub('[^A-Za-z0-9.]+', '-', label)}"


def configured(data: str, knobs: Sequence[str]) -> ConfigDict:
    """Returns the recipe of a set with some of its knobs changed."""
    cfg = load_file(ROOT / "configs" / f"{data.lower()}.py")
    for knob in knobs:
        key, _, text = knob.partition("=")
        section, _, name = key.rpartition(".")
        holder = cfg[section] if section else cfg
        holder[name] = type(holder[name])(text)
    return cfg


@functools.cache
def is_recipe(data: str, label: str) -> bool:
    """Says whether a row of the ablations is what the set's recipe does anyway."""
    if ABLATIONS[label].model != "prompt":
        return False
    return config.content_hash(configured(data, ABLATIONS[label].knobs)) == config.content_hash(configured(data, ()))


@functools.cache
def possible(data: str, label: str) -> bool:
    """Says whether the patch of a row divides its lookback."""
    cfg = configured(data, ABLATIONS[label].knobs)
    return cfg.lookback % cfg.model.patch == 0


def transfer(sets: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The backbone of one data set, the prompts of another; one backbone of five sets together; one of these and four
    files of others."""
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
        for word, also in {"five": others, "nine": [*others, *MORE_FILES]}.items():
            rows = {"prompt": f"prompts on one backbone of {word}", "zero_shot": f"mask token of {word}"}
            knobs = (
                f"pretrain.also={','.join(also)}",
                "pretrain.choose=last",
                "pretrain.patience=99",
                f"pretrain.steps={800 * (1 + len(also))}",
            )
            name, file = f"{word}-s{seed}", f"configs/{first.lower()}.py"
            cells.append(Cell(name, first, file, (of_seed, *knobs), "", rows))
            own = of_seed, f"lookback={lookback(first)}"
            for data in (d for d in sets if d != first):
                cells.append(Cell(f"{word}-to-{data}-s{seed}", data, f"configs/{data.lower()}.py", own, name, rows))
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
                    mode = (*own[:2], "tune.mode=head", *MORE)
                    label = "new head: everything" if kind == "head" else "from scratch: everything"
                    cells.append(Cell(f"{name}-{kind}", data, file, mode, on, {"head": f"{label}, {share:.0%}"}))
    return cells


# Whatever trains a head or the encoder gets more steps than prompts on any set, more looks, and patience.
TRAIN = ("tune.steps=1500", "tune.validations=30", "tune.patience=4", "tune.learning_rate=1e-4")
MORE = (*TRAIN, "tune.prompts=position")  # no prompt learns there: a set's own kind makes no other run of it
RECIPE, WITHOUT = "the recipe", "without prompts"


class Variant(NamedTuple):
    """A row of the ablations: the question that it answers, what it changes, on whose backbone (a label; '' = one of
    its own), and which model of its results.csv is shown."""

    question: str
    knobs: tuple[str, ...] = ()
    on: str = ""
    model: str = "prompt"


def one_knob(question: str, key: str, labels: dict[str, object], on: str = "") -> dict[str, Variant]:
    """Returns a row for each value of a knob."""
    return {label: Variant(question, (f"{key}={value}",), on) for label, value in labels.items()}


def each(word: str, *values: object) -> dict[str, object]:
    return {f"{word} {value}": value for value in values}


def thaw(parts: str) -> Variant:
    return Variant("Frozen or thawed", ("tune.mode=thaw", f"tune.thaw={parts}", *TRAIN), RECIPE, "thaw")


DEEP = "tune.prompts=layer"
PATCHES, RATIOS = (6, 12, 24, 36, 48, 72, 96), (0.2, 0.4, 0.6, 0.8, 0.9)
LOOKBACKS = (96, 192, 336, 480, 576, 720, 960, 1440)
ABLATIONS: dict[str, Variant] = {
    RECIPE: Variant("Prompts", (), RECIPE),
    WITHOUT: Variant("Prompts", (), RECIPE, "zero_shot"),
    **one_knob("Prompts", "tune.prompts", {
        "one prompt for each position": "position", "one shared prompt": "shared",
        "a prompt for each channel and position": "channel",
    }, RECIPE),
    **one_knob("Decoder blocks", "model.decoder_layers", {
        "decoder of 1 block": 1, "decoder of 2 blocks": 2, "decoder of 3 blocks": 3,
    }),
    "decoder of 2 blocks, prompts at each": Variant("Decoder blocks", (DEEP,), "decoder of 2 blocks"),
    "decoder of 3 blocks, prompts at each": Variant("Decoder blocks", (DEEP,), "decoder of 3 blocks"),
    **one_knob("What queries see", "model.decoder_attention", {
        "visible patches alone": "cross", "each other first": "self",
    }),
    **one_knob("How much is hidden", "pretrain.mask_ratio", each("mask ratio", *RATIOS)),
    **one_knob("Which patches are hidden", "pretrain.tail_share", {
        "hidden at random": 0.0, "a tail in 25 % of the rows": 0.25, "a tail in 50 % of the rows": 0.5,
        "hidden tail": 1.0,
    }),
    **one_knob("Feature or value masking", "model.hiding", {
        "feature: absent from the encoder": "feature", "value: zeros in the encoder": "value",
    }),
    **one_knob("Pre-training window", "pretrain.horizon", {
        "windows of the lookback": 0, "windows of the lookback and one patch": 1,
        "windows of the lookback and the longest horizon": -1,
    }),
    **one_knob("Statistics in pre-training", "pretrain.norm", {
        "visible patches normalise": "visible", "the whole window normalises": "window",
    }),
    **one_knob("Pre-training loss", "pretrain.loss", {
        "squared error": "mse", "absolute error": "mae", "Huber's error": "huber",
    }),
    **one_knob("Units of that loss", "pretrain.units", {
        "each window weighs alike": "normalised", "as much as it moves": "scaled",
    }),
    **one_knob("Augmentation", "pretrain.flip", each("share turned upside down:", 0.0, 0.5)),
    **one_knob("Augmentation", "pretrain.blend", each("share of blends:", 0.0, 0.5)),
    **one_knob("Average of the weights", "pretrain.average", each("decay", 0.0, 0.99)),
    **one_knob("Dropout", "model.dropout", each("dropout", 0.0, 0.1, 0.2)),
    **one_knob("Patch length", "model.patch", each("patch", *PATCHES)),
    **one_knob("Lookback", "lookback", each("lookback", *LOOKBACKS)),
    **one_knob("Positions", "model.position", {
        "rotary positions": "rotary", "sincos positions, fitting periods": "sincos",
        "sincos positions, base 10000": "sincos10000", "learned positions": "learned",
    }),
    "prompts alone": Variant("Frozen or thawed", (), RECIPE),
    "prompts alone, trained as the thawed": Variant("Frozen or thawed", TRAIN, RECIPE),
    "prompts and mask token": thaw("mask_token"),
    "prompts and head": thaw("head"),
    "prompts, mask token, head": thaw("mask_token,head"),
    "prompts and decoder": thaw("decoder"),
    "prompts, mask token, decoder, head": thaw("mask_token,decoder,head"),
    "prompts and encoder": thaw("embed,encoder"),
    "prompts and everything": thaw("all"),
}  # fmt: skip
PARTS = {"main": main, "ablations": ablations, "transfer": transfer, "few": few}
