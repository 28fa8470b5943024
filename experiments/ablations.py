"""What the ablations say: their table by question, what each row costs, a guideline for the patch, four figures.

    python experiments/reproduce.py --only=ablations       # runs the cells and writes results/ablations.csv
    python experiments/ablations.py                        # compiles what rows cost; table, guideline, figures
    python experiments/ablations.py --tables               # compiles nothing: with the costs that are known

Costs are the compiler's own (cost_analysis, memory_analysis) of one step, as in bench.py, on the machine at hand, at
batch 448: nothing is timed. They are kept in results/ablations/costs.csv, a line for each model that differs in cost;
penalties, statistics and augmentation, which are element-wise, are left at their defaults there.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import costs
import pandas as pd
from cells import ABLATIONS, LOOKBACKS, PATCHES, RATIOS, RECIPE, SETS, configured, is_recipe, possible
from ledger import chosen, exit_code, pictures, set_table

from ptt_jax import benchmarks, config
from ptt_jax.clock import season, step_seconds

HERE = Path(__file__).parent
TRIPLE = ("ETTh1", "ETTm1", "Weather")
FIGURES = {"patch": ("patch", PATCHES), "mask-ratio": ("mask ratio", RATIOS), "lookback": ("lookback", LOOKBACKS)}
THAWED = "Frozen or thawed"
KNOB = {"patch": "model.patch", "mask ratio": "pretrain.mask_ratio", "lookback": "lookback"}
COLOURS = {"ETTh1": "#0072B2", "ETTm1": "#D55E00", "Weather": "#009E73"}  # Okabe and Ito


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a line for each set and row that is there, means over horizons: mse, mae, seeds, and is_recipe. A row
    that is the set's recipe has the recipe's numbers.

    table: columns as `reproduce.gather` returns them.
    """
    found = table.groupby(["data", "model"], sort=False).agg(
        mse=("mse", "mean"), mae=("mae", "mean"), horizons=("horizon", "nunique"), seeds=("seeds", "min")
    )
    most = found["horizons"].max() if len(found) else 0
    found = found[found["horizons"] == most]  # a mean over fewer horizons is of another thing
    rows = []
    for name in (s for s in SETS if s in {*table["data"]}):
        for label in ABLATIONS:
            same = is_recipe(name, label)
            source = (name, RECIPE if same else label)
            if source in found.index:
                rows.append({"data": name, "row": label, "is_recipe": same, **found.loc[source].to_dict()})
    return pd.DataFrame(rows, columns=["data", "row", "is_recipe", "mse", "mae", "horizons", "seeds"])


def shown(of: pd.DataFrame, name: str) -> str:
    """Returns the cell of a set: MSE / MAE, and how far the MSE is from the recipe's."""
    here = of[of["data"] == name]
    if here.empty:
        return ""
    row = here.iloc[0]
    told = "**recipe**" if row["is_recipe"] else "" if pd.isna(row["change"]) else f"{row['change']:+.1f} %"
    return f"{row['mse']:.3f} / {row['mae']:.3f} {told}".strip()


def change(table: pd.DataFrame) -> pd.DataFrame:
    """Returns `means` with `change`, the MSE's difference to the set's recipe in %."""
    found = means(table)
    recipe = found[found["row"] == RECIPE].set_index("data")["mse"]
    base = found["data"].map(recipe)
    return found.assign(change=100 * (found["mse"] / base - 1))


def spent_by(table: pd.DataFrame, sets: Sequence[str], label: str) -> dict[str, str]:
    """Returns what a row costs, as cells; of sets that differ, all of them. In brackets: from the cache."""
    keys = dict.fromkeys(costs.key(name, label) for name in sets if costs.costed(name, label))
    rows = [table.loc[k] for k in keys if k in table.index]

    def cell(head: str, form: str, other: str = "") -> str:
        texts = []
        for row in rows:
            text = format(row[head], form)
            texts.append(f"{text} ({row[other]:{form}})" if other and not pd.isna(row[other]) else text)
        return "; ".join(dict.fromkeys(texts))

    return {
        "trained parameters": cell("trained", ",.0f"),
        "MFLOPs a row: pre-training": cell("pretrain_mflops", ".2f"),
        "tuning (cached)": cell("tune_mflops", ".2f", "cached_mflops"),
        "forecast": cell("forecast_mflops", ".2f"),
        "KiB a row, tuning (cached)": cell("tune_kib", ".0f", "cached_kib"),
    } if rows else {}  # fmt: skip


def markdown(table: pd.DataFrame, spent: pd.DataFrame) -> str:
    """Returns a table for each question, its heading in the first cell: MSE / MAE of each set and the difference to its
    recipe in %, or that it is the recipe; and what rows cost where they differ in it. Means of the differences are over
    all sets but those that are hardly begun: of less than half as many rows as another one.

    table: columns as `reproduce.gather` returns them; spent: of `costs.read`.
    """
    found, parts = change(table), []
    sets = [name for name in SETS if name in {*found["data"]}]
    run = found[~found["is_recipe"].astype(bool)]["data"].value_counts()
    counted = [name for name in sets if 2 * run.get(name, 0) >= run.max()]
    for question in dict.fromkeys(variant.question for variant in ABLATIONS.values()):
        labels = [label for label, variant in ABLATIONS.items() if variant.question == question and label != RECIPE]
        here = {label: found[found["row"] == label] for label in labels if label in {*found["row"]}}
        if not {*here} - {label for label, of in here.items() if of["is_recipe"].all()}:
            continue  # nothing but the recipe
        cost = {label: spent_by(spent, sets, label) for label in here}
        heads = next(filter(None, cost.values()), {})
        titles = [f"**{question}**", *sets, "mean change", *heads, "seeds"]
        lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        for label, of in here.items():
            changes = of[~of["is_recipe"] & of["data"].isin(counted)]["change"]
            mean = f"{changes.mean():+.1f} %" if changes.count() == len(counted) else ""
            cells = [*(shown(of, name) for name in sets), mean, *(cost[label].get(head, "") for head in heads)]
            lines.append(f"| {label} | " + " | ".join([*cells, str(int(of["seeds"].min()))]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def words(steps: int, name: str) -> str:
    """Returns a number of steps as a span of time: '6 h', '90 min'."""
    minutes = int(step_seconds(benchmarks.TABLE[name].freq) * steps / 60)
    return f"{minutes // 60} h" if minutes % 60 == 0 else f"{minutes} min"


def guideline(table: pd.DataFrame, spent: pd.DataFrame) -> str:
    """Returns a line for each set: its step and season, the patch with the smallest error, those within 1 % of it, and
    which of these costs least. It describes the numbers of the table and chooses nothing."""
    found, lines = means(table), []
    for name in (s for s in SETS if s in {*found["data"]}):
        known = found[(found["data"] == name) & found["row"].isin(each_label("patch"))]
        if len(known) < 2:
            continue
        mse = {int(row.rsplit(" ", 1)[1]): value for row, value in zip(known["row"], known["mse"], strict=True)}
        best, day = min(mse, key=lambda p: mse[p]), season(benchmarks.TABLE[name].freq)
        near = sorted(p for p in mse if mse[p] <= 1.01 * mse[best])
        of = {p: costs.key(name, f"patch {p}") for p in near}
        flops = {p: float(spent.loc[k, "pretrain_mflops"]) for p, k in of.items() if k in spent.index}
        text = (
            f"- {name}, a step of {words(1, name)}, a season of {day} steps: smallest error at patch {best} "
            f"({words(best, name)}, {best / day:.2g} seasons), within 1 % of it {', '.join(map(str, near))}"
        )
        if len(flops) == len(near):
            least = min(flops, key=lambda p: flops[p])
            text += f"; cheapest of these is {least}, {flops[least]:.1f} MFLOPs a row of pre-training"
            text += f" against {flops[best]:.1f}" if least != best else ""
        lines.append(text + ".")
    return "\n".join(lines)


def each_label(word: str) -> list[str]:
    """Returns the rows that a figure is made of, 'patch 6' and so on."""
    return [f"{word} {value}" for value in next(values for w, values in FIGURES.values() if w == word)]


def draw(table: pd.DataFrame, spent: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes a figure for each of FIGURES that has two points of a set or more: the MSE's difference to the recipe
    against the knob, a line for each set; under the patch length what pre-training costs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    found = change(table)
    files = draw_thawed(found, spent, folder)
    for name, (word, values) in FIGURES.items():
        lines = {}
        for data_name in (s for s in SETS if s in {*found["data"]}):
            of = found[(found["data"] == data_name) & found["row"].isin(each_label(word))].dropna(subset=["change"])
            if len(of) > 1:
                lines[data_name] = of.assign(at=[float(row.rsplit(" ", 1)[1]) for row in of["row"]]).sort_values("at")
        if not lines:
            continue
        by_patch = costs_by_patch(spent, [*lines]) if word == "patch" else {}
        panels = 2 if by_patch else 1
        figure = Figure(figsize=(6.4, 2.0 + 1.9 * panels), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:panels])[:, 0]
        for data_name, of in lines.items():
            recipe = found[(found["data"] == data_name) & (found["row"] == RECIPE)].iloc[0]
            label = f"{data_name} (recipe: MSE {recipe['mse']:.3f})"
            look = {"color": COLOURS.get(data_name, "#CC79A7"), "linewidth": 1.4}
            axes[0].plot(of["at"], of["change"], marker="o", markersize=3.5, label=label, **look)
            at = config.flat(configured(data_name, ()))[KNOB[word]]
            axes[0].plot([at], [0], marker="o", markersize=8, fillstyle="none", linestyle="none", **look)
        axes[0].axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axes[0].set_ylabel("MSE against the recipe, %")
        axes[0].legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
        if by_patch:
            axes[1].plot([*by_patch], [*by_patch.values()], color="0.3", marker="s", markersize=3.5, linewidth=1.2)
            axes[1].set_yscale("log")
            axes[1].set_ylabel("MFLOPs a row,\npre-training")
        units = {"patch": "patch length, steps", "lookback": "lookback, steps"}.get(word, word)
        axes[-1].set_xlabel(f"{units} (ring: the recipe)")
        ticks = sorted({*values} & {at for of in lines.values() for at in of["at"]})
        for ax in axes:
            if word != "mask ratio":
                ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(ticks))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticklabels([f"{t:g}" for t in ticks])
            ax.spines[["top", "right"]].set_visible(False)
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=150)
    return files


def draw_thawed(found: pd.DataFrame, spent: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes what thawing parts of a backbone does to the MSE, a line of the figure for each row with the parameters
    that it trains, in the order of their number; nothing where no set has two rows or more. found: of `change`."""
    from matplotlib.figure import Figure

    asked = [label for label, variant in ABLATIONS.items() if variant.question == THAWED]
    of = found[found["row"].isin(asked)].dropna(subset=["change"])
    keys = {label: costs.key(of["data"].iloc[0], label) for label in asked if label in {*of["row"]}} if len(of) else {}
    trained = {label: int(spent.loc[k, "trained"]) for label, k in keys.items() if k in spent.index}
    of = of[of["row"].isin([*trained])]
    of = of[of.groupby("data")["row"].transform("size") > 1]
    if of.empty:
        return []
    order = sorted({*of["row"]}, key=lambda label: (trained[label], asked.index(label)))
    figure = Figure(figsize=(6.4, 1.1 + 0.3 * len(order)), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(of["data"]):
        here = of[of["data"] == name]
        at = [order.index(row) for row in here["row"]]
        axes.plot(here["change"], at, linestyle="none", marker="o", markersize=5, color=COLOURS.get(name), label=name)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(order)), [f"{label}: {trained[label]:,}" for label in order])
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("MSE against the recipe, %")
    said = f"what learns: how many numbers ({of['data'].iloc[0]})"  # of sets of another patch they differ a little
    axes.annotate(said, (0, 1), (-4, 6), "axes fraction", "offset points", fontsize=8, ha="right")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "thawed.png", dpi=150)
    return [folder / "thawed.png"]


def costs_by_patch(spent: pd.DataFrame, sets: Sequence[str]) -> dict[int, float]:
    """Returns the MFLOPs of pre-training by patch, of the first set that has them at all of its patches."""
    for name in sets:
        keys = {p: costs.key(name, f"patch {p}") for p in PATCHES if possible(name, f"patch {p}")}
        if {*keys.values()} <= {*spent.index}:
            return {p: float(spent.loc[k, "pretrain_mflops"]) for p, k in keys.items()}
    return {}


def publish(table: pd.DataFrame, spent: pd.DataFrame, readme: Path, folder: Path) -> None:
    """Writes table and guideline into a README between its markers, and the figures."""
    set_table(readme, "ablations", "\n\n".join(filter(None, [markdown(table, spent), guideline(table, spent)])))
    pictures(lambda: draw(table, spent, folder))


@exit_code("ablations")
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(TRIPLE), help="data sets, comma-separated")
    parser.add_argument("--rows", default="", help="rows whose cost is compiled, separated by semicolons; default: all")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    args = parser.parse_args(argv)
    sets = chosen(args.data, TRIPLE)
    rows = chosen(args.rows, ABLATIONS, "rows", ";") if args.rows else [*ABLATIONS]
    file, results = HERE / "results/ablations/costs.csv", HERE / "results/ablations.csv"
    command = shlex.join(["python", "experiments/ablations.py", *argv])
    spent = costs.read(file) if args.tables else costs.complete(sets, rows, file, command)
    if results.exists():
        publish(pd.read_csv(results), spent, HERE / "README.md", HERE / "results/ablations")


if __name__ == "__main__":
    sys.exit(main())
