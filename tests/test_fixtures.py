"""What earlier versions wrote is read: `fixtures/make.py` made the files, each with the version of its format."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptt_jax import Bank, Forecaster, architecture, checkpoint, config, prompts
from ptt_jax import store as stores

FOLDER = Path(__file__).parent / "fixtures"
NAMES = ("format2", "format3", "format3-quantiles")


@pytest.fixture(scope="module", params=NAMES)
def kept(request, tmp_path_factory):
    """A folder with what a version wrote."""
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(FOLDER / f"{request.param}.zip") as file:
        file.extractall(folder)
    return folder


def test_the_format_of_today_has_a_fixture():
    assert NAMES[-1] == f"format{stores.FORMAT}-quantiles"
    assert {f"{name}.zip" for name in NAMES} <= {path.name for path in FOLDER.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000


def test_forecasts_of_what_was_kept_are_those_of_the_version_that_kept_it(kept):
    df = pd.read_csv(kept / "frame.csv", index_col="ds", parse_dates=True)
    said = json.loads((kept / "forecasts.json").read_text())
    of = Bank(kept / "bank").predict({"one": df, "the other/2": df[["b"]]})
    found = {"forecaster": Forecaster.load(kept / "forecaster").predict(df), **of}
    assert {*said} == {"format", *found}
    for name, y in found.items():
        assert [*y] == [*said[name]]
        np.testing.assert_allclose(y.to_numpy(), pd.DataFrame(said[name]).to_numpy(), atol=1e-4)


def test_its_backbone_and_its_prompt_are_read_as_a_run_s_are(kept):
    folder = kept / "forecaster"
    card, cfg = checkpoint.find_backbone(folder), config.from_json((folder / "config.json").read_text())
    backbone = checkpoint.load_backbone(card, architecture.shapes(architecture.build(card["architecture"], "float32")))
    assert stores.content_hash(backbone) == card["content_hash"]
    task = prompts.name("frame", cfg.horizons)
    ((prompt,),) = checkpoint.load_prompts(folder, task, card["content_hash"]).values()
    assert prompt["tokens_MD"].shape == (2, 8)
