"""What a finished run has left to be shown: its files as they are read once, and how its models look and are called."""

import zipfile
import zlib
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptt_jax.charts import swatch
from ptt_jax.errors import UserError
from ptt_jax.results import ordered
from ptt_jax.seal import check_files, read_json
from ptt_jax.sheet import legend

LOOKS = {"seasonal_naive": "m0", "linear": "m1", "zero_shot": "m2", "prompt": "m3 tuned"}
ABSENT = (
    "Not kept by this run: there is no {}, or nothing of this in it. A run of an earlier version gets it when its "
    "results.csv is removed and its command is run again."
)


class Found:
    """The files of a run. Raises UserError without results.csv, or when a file is not what results.json says; any other
    may be missing.

    samples and kept: the arrays of samples.npz and exhibits.npz; cards: (title, object) of prompts/*.json and
    finetuned/*.json; split: the one that is shown; tuned: the model that learned, by its mode; looks: {model: its
    classes in the page's style}.
    """

    def __init__(self, run: Path) -> None:
        if not (run / "results.csv").exists():
            raise UserError(f"There is no {run / 'results.csv'}: a report needs a run that has been evaluated.")
        check_files(run / "results.json")
        self.run, self.results = run, pd.read_csv(run / "results.csv")
        names = ("config", "backbone", "versions", "data")
        self.config, self.backbone, self.versions, self.data = (read(run / f"{name}.json") for name in names)
        folders = {"the prompt": "prompts", "fine-tuning": "finetuned"}
        files = {
            title: sorted((run / folder).glob("*.json"), key=lambda file: file.stem)
            for title, folder in folders.items()
        }
        self.cards = [(title, read(file)) for title, of in files.items() for file in of]
        self.samples, self.kept = arrays(run / "samples.npz"), arrays(run / "exhibits.npz")
        self.models = ordered(self.results["model"].unique())
        self.split = "test" if "test" in {*self.results["split"]} else "validation"
        self.tuned = str(self.config.get("tune", {}).get("mode", "prompt"))
        spare, its = cycle(["m4", "m5", "m6", "m7"]), "" if "prompt" in self.models else "m3 tuned"
        self.looks = {m: LOOKS.get(m) or (its if m == self.tuned else "") or next(spare) for m in self.models}
        self.name = str(self.results["data"].iloc[0])

    def table(self, name: str) -> pd.DataFrame | None:
        """Returns the rows of a csv on the split that is shown; None without the file."""
        if not (self.run / name).exists():
            return None
        rows = pd.read_csv(self.run / name, dtype={"channel": str, "data": str}, keep_default_na=False)
        numbers = rows[["mse", "mae"]].apply(pd.to_numeric, errors="coerce")
        return rows.assign(**numbers)[rows["split"] == self.split]

    def legend(self) -> str:
        return legend((swatch(self.looks[m]), spoken(m)) for m in self.models)


def read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file; none without the file."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}); accepted: the file as a run wrote it, or none") from None


def spoken(model: str) -> str:
    return model.replace("_", " ")
