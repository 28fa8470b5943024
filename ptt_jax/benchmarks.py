"""Benchmark files: what each must look like, how it is split, where it is found or fetched. No jax."""

import dataclasses
import hashlib
import http.client
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

from ptt_jax.errors import UserError
from ptt_jax.files import to_path, write_atomic

ETT_URL = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
ETT, AUTOFORMER = "zhouhaoyi/ETDataset on GitHub", "the data collection that the README of thuml/Autoformer points to"
TIMEOUT = 30  # seconds that a download may be silent
LONGEST, LARGEST = 900, 2**28  # seconds and bytes that a whole one may take


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A benchmark file: what it must look like, how it is split, where it comes from."""

    file: str
    rows: int
    columns: int
    freq: str
    split: str  # 'months': 12/4/4 months of 30 days, the rest unused; 'fractions': data.split
    sha256: str = ""  # '' = unknown, only the shape is checked
    url: str = ""  # '' = no plain public home
    source: str = AUTOFORMER


def ett(name: str, rows: int, freq: str, sha256: str) -> DataSet:
    return DataSet(f"{name}.csv", rows, 7, freq, "months", sha256, f"{ETT_URL}{name}.csv", ETT)


TABLE = {
    "ETTh1": ett("ETTh1", 17420, "h", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    "ETTh2": ett("ETTh2", 17420, "h", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    "ETTm1": ett("ETTm1", 69680, "15min", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    "ETTm2": ett("ETTm2", 69680, "15min", "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd"),
    "Weather": DataSet("weather.csv", 52696, 21, "10min", "fractions",
                       "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63"),
    "Electricity": DataSet("electricity.csv", 26304, 321, "h", "fractions"),
    "Traffic": DataSet("traffic.csv", 17544, 862, "h", "fractions"),
    "Exchange": DataSet("exchange_rate.csv", 7588, 8, "D", "fractions",
                        "d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97"),
    "ILI": DataSet("national_illness.csv", 966, 7, "W-TUE", "fractions",
                   "8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395"),
}  # fmt: skip


def cache_dir() -> Path:
    """$PTT_CACHE_DIR, else $XDG_CACHE_HOME/ptt_jax, else ~/.cache/ptt_jax."""
    own = os.environ.get("PTT_CACHE_DIR")
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(own) if own else shared / "ptt_jax").expanduser()


def folders_of(data: Any) -> list[Path]:
    """Where files lie that are named without a folder: data.dir, then $PTT_DATA_DIR."""
    said = {"config.data.dir": data.dir, "$PTT_DATA_DIR": os.environ.get("PTT_DATA_DIR", "")}
    return [to_path(folder, name) for name, folder in said.items() if folder]


def find(row: DataSet, data: Any) -> Path:
    """Path of the file: data.dir, then $PTT_DATA_DIR, then the cache, then the network."""
    folders = [*folders_of(data), cache_dir()]
    if data.dir and not folders[0].is_dir():
        raise UserError(f"config.data.dir = {data.dir!r} is no folder; give the one that holds {row.file}, or ''")
    for folder in folders:
        for path in (folder / row.file, *sorted(folder.glob(f"*/{row.file}"))):  # Autoformer's: a folder for each set
            if path.is_file():
                return path
    places = ", ".join(map(str, folders)) + ("" if data.dir else ", or a folder that data.dir names")
    advice = f"put {row.file} from {row.source} into one of {places}"
    if not row.url:
        raise UserError(f"{row.file} was not found and has no public home to be downloaded from; {advice}")
    if not data.download:
        raise UserError(f"{row.file} was not found and data.download is off; {advice}")
    return download(row, cache_dir() / row.file, advice)


def fetch(url: str) -> bytes:
    """Returns what an address sends. Raises OSError or HTTPException when it is not all there in time."""
    begun, raw = time.monotonic(), bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        while block := response.read1(2**16):
            raw += block
            if len(raw) > LARGEST:
                raise OSError(f"more than {LARGEST:,} bytes")
            if time.monotonic() - begun > LONGEST:
                raise TimeoutError(f"not whole after {LONGEST} s")
        if missing := getattr(response, "length", None):  # read1 says nothing of a body that breaks off
            raise http.client.IncompleteRead(bytes(raw), missing)
    return bytes(raw)


def download(row: DataSet, path: Path, advice: str) -> Path:
    """Fetches, verifies, then moves into place, so that a file in the cache is always a whole one."""
    try:
        raw = fetch(row.url)
        if hashlib.sha256(raw).hexdigest() != row.sha256:
            raise UserError(f"{row.url} sent another file than the published one (its SHA-256 differs); {advice}")
    except (OSError, http.client.HTTPException) as e:
        raise UserError(f"{row.file} could not be fetched from {row.url} into {path.parent} ({e}); {advice}") from e
    write_atomic(path, raw, several=True)
    return path
