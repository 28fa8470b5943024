"""The study of flipped bytes, on a few of the bytes of what today's version kept."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_experiments import script

from ptt_jax import store as stores

FIXTURE = Path(__file__).parent / "fixtures" / f"format{stores.FORMAT}.zip"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(FIXTURE) as file:
        file.extractall(folder)
    return folder


@pytest.mark.parametrize("kind", ["forecaster", "bank"])
def test_no_flipped_byte_is_silent(kept, kind):
    flips = script("flips")
    rows = flips.flip(kind, kept / kind, 30, np.random.default_rng(0))
    verdicts = [row["verdict"] for row in rows]
    assert flips.SILENT not in verdicts, [row for row in rows if row["verdict"] == flips.SILENT]
    assert verdicts.count(flips.FOUND) > 8
