"""Parquet files, in and out, by pyarrow, which the extra `parquet` brings. numpy and pandas only."""

import io
from pathlib import Path

import pandas as pd

from ptt_jax.errors import UserError
from ptt_jax.files import write_atomic


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def check(path: Path) -> None:
    """Raises UserError where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path} is a parquet file, which pyarrow reads and writes, and that is not installed; accepted: "
            f"pip install 'ptt_jax[parquet]', or a .csv file"
        ) from None


def read(path: Path) -> pd.DataFrame:
    """Returns a file as pandas wrote it, with its index, zones and periods. Raises UserError when it is not there, is
    no whole parquet file, or has no rows."""
    check(path)
    import pyarrow

    try:
        frame = pd.read_parquet(io.BytesIO(path.read_bytes()), engine="pyarrow")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of a .csv, .csv.gz or .parquet file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the path of a .parquet file in it") from None
    except PermissionError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); give a .parquet file that can") from None
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, pyarrow.ArrowException) as e:
        reason = " ".join(str(e).split())[:120]
        raise UserError(
            f"{path} is not a whole parquet file ({reason}); give one that pandas.read_parquet reads"
        ) from e
    if not len(frame):
        raise UserError(f"{path} has no rows; it needs one row for each time stamp")
    return frame


def flat(frame: pd.DataFrame, time_column: str) -> pd.DataFrame:
    """Returns a plain table: names are text, an index that has a name or holds time is a column (`time_column`, or
    'ds', where it has none), a period is its start. Rows are counted from 1."""
    out = pd.DataFrame({str(name): cells for name, cells in frame.items()})
    for level, name in reversed([*enumerate(frame.index.names)]):
        cells = frame.index.get_level_values(level)
        label = str(name) if name is not None else time_column or "ds"
        if label not in out and (name is not None or isinstance(cells, pd.DatetimeIndex | pd.PeriodIndex)):
            out.insert(0, label, pd.Series(cells, frame.index))
    for name in out:
        if isinstance(out[name].dtype, pd.PeriodDtype):
            out[name] = out[name].dt.to_timestamp()
    return out.set_axis(pd.RangeIndex(1, len(out) + 1))


def write(path: Path, frame: pd.DataFrame) -> None:
    """Writes a file under a temporary name and renames it. Raises UserError for cells that parquet cannot hold."""
    check(path)
    import pyarrow

    try:
        content = frame.to_parquet(None, engine="pyarrow")
    except (ValueError, TypeError, pyarrow.ArrowException) as e:
        raise UserError(f"{path} cannot be written as parquet ({' '.join(str(e).split())}); accepted: a .csv") from None
    write_atomic(path, content)
