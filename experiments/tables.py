"""Tables of results in Markdown, and where they stand in README.md."""

import pandas as pd
import records
from cells import SETS
from ledger import set_table
from records import gather

PUBLISHED = ("PatchTST self-supervised, fine-tuned, mean of 5", "DUET", "PatchTST/64 supervised", "SimMTM, GPHT re-run")
WIDE = ("linear", "from scratch: everything", "mask token: everything", "mask token: zero-shot", "prompts")


def markdown(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """Returns a line for each row of the table and a column for each data set: MSE / MAE, means of the horizons, with
    the spread of that mean over seeds."""
    sets = [name for name in SETS if name in {*rows["data"]}]
    lines = [
        "| | " + " | ".join(sets) + " | mean | seeds |",
        "|---" * (len(sets) + 3) + "|",
    ]

    def cells(of: pd.DataFrame) -> list[str]:
        by_seed = of.groupby(["data", "seed"])[["mse", "mae"]].mean()
        means, spreads = by_seed.groupby("data").mean(), by_seed["mse"].groupby("data").std()
        texts = []
        for name in sets:
            spread = f" ±{spreads[name]:.3f}" if name in means.index and spreads[name] == spreads[name] else ""
            texts.append(f"{means['mse'][name]:.3f}{spread} / {means['mae'][name]:.3f}" if name in means.index else "")
        whole = f"{means['mse'].mean():.4f} / {means['mae'].mean():.4f}" if len(means) == len(sets) else ""
        return [*texts, whole]

    for model, of in rows.groupby("model", sort=False):
        seeds = of.groupby("data")["seed"].nunique()
        lines.append(f"| {model} | " + " | ".join([*cells(of), str(seeds.min())]) + " |")
    for model in PUBLISHED:
        of = published[(published["model"] == model) & published["data"].isin(sets)].assign(seed=0)
        lookback = of["lookback"].iloc[0]
        lines.append(f"| *{model}, lookback {lookback} (published)* | " + " | ".join([*cells(of), ""]) + " |")
    return "\n".join(lines)


def by_horizon(rows: pd.DataFrame, published: pd.DataFrame) -> str:
    """Returns a line for each data set and horizon and a column for some rows of the table."""
    models = [m for m in WIDE if m in {*rows["model"]}]
    lines = ["| | " + " | ".join([*models, *(f"*{m} (published)*" for m in PUBLISHED[:2])]) + " |"]
    lines.append("|---" * (len(models) + 3) + "|")
    table = gather(rows)
    for (name, horizon), of in table.groupby(["data", "horizon"], sort=False):
        texts = []
        for model in models:
            one = of[of["model"] == model]
            if one.empty:
                texts.append("")
                continue
            row = one.iloc[0]
            spread = f" ±{row['mse_spread']:.3f}" if row["mse_spread"] == row["mse_spread"] else ""
            texts.append(f"{row['mse']:.3f}{spread} / {row['mae']:.3f}")
        for model in PUBLISHED[:2]:
            one = published[published[["model", "data", "horizon"]].eq([model, name, horizon]).all(axis=1)]
            texts.append("" if one.empty else f"{one['mse'].iloc[0]:.3f} / {one['mae'].iloc[0]:.3f}")
        lines.append(f"| {name} {horizon} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def write_table(name: str, text: str) -> bool:
    """Writes a table into the READMEs, here and at the top, between its markers; returns whether one has any."""
    pages = [folder / "README.md" for folder in (records.HERE, records.HERE.parent)]
    return any([set_table(page, name, text) for page in pages if page.exists()])
