"""A forecaster as two files that need no ptt_jax: a program with weights and prompt inside, and a page about it.

    Forecaster.load("kept").export("model.stablehlo")      # and model.json beside it

    import jax                                             # in a process that has jax and flatbuffers alone
    forecast = jax.jit(jax.export.deserialize(open("model.stablehlo", "rb").read()).call)
    y_RH = forecast(history_RT)                            # float32, NaN = missing, in and out in original units

    y_RH, told_LRH = forecast(history_RT)                  # with quantile prompts: what these say, too

The program is `Predictor.__call__` in float32, standardisation too, for any number of rows: that axis is symbolic, and
jax compiles for each number that comes. It has a value's seven digits, so that of a series at 1e6 which moves by 1 the
input is rounded to a sixteenth of that. A forecast moves with the level of its row: whoever takes a level off before,
in float64, and puts it on again has every digit; the page says how.

Which jax runs it: jax.export promises jaxlibs up to 6 months newer and up to 3 weeks older than the one that wrote
(docs.jax.dev, "Exporting and serializing", compatibility guarantees); newer ones may refuse, and since 0.11.1 jax says
so. Files are for serving: what lasts is the folder of `Forecaster.save`, from which they are written again.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax import export as jax_export

from ptt_jax import config, fitted, manifest, predict
from ptt_jax.errors import UserError
from ptt_jax.files import to_path, write_atomic
from ptt_jax.predict import Predictor
from ptt_jax.seal import read_json

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # those that jax.export has names for
USUAL = ("cpu", "cuda", "tpu")


def program(predictor: Predictor, history_RT: Array) -> Array | tuple[Array, Array]:
    """Returns y_RH float32, the forecast of each row in its own units; history_RT is NaN where missing. And y_LRH where
    there are quantile prompts: what they say, the forecast among it unless one is of the median, in order.

    A row without any value is NaN; one that stands still goes on so, to the last digit.
    """
    seen_RT = jnp.isfinite(history_RT)
    # As `scaling.exact`: around a value of the row, in units of how far it goes, so that float32 keeps what moves.
    first_R1 = jnp.argmax(seen_RT, axis=1, keepdims=True)
    centre_R1 = jnp.take_along_axis(jnp.where(seen_RT, history_RT, 0), first_R1, axis=1)
    away_RT = jnp.where(seen_RT, history_RT - centre_R1, 0)
    reach_R1 = jnp.abs(away_RT).max(1, keepdims=True)
    moves_R1 = reach_R1 > 0
    u_RT = away_RT / jnp.where(moves_R1, reach_R1, 1)
    count_R1 = jnp.maximum(seen_RT.sum(1, keepdims=True, dtype=jnp.float32), 1)
    mean_R1 = u_RT.sum(1, keepdims=True) / count_R1
    rest_RT = jnp.where(seen_RT, u_RT - mean_R1, 0)
    scale_R1 = jnp.where(moves_R1, jnp.sqrt((rest_RT**2).sum(1, keepdims=True) / count_R1), 1)

    def restored(y_RH: Array) -> Array:
        y_RH = (y_RH * scale_R1 + mean_R1) * reach_R1 + centre_R1  # what stands still has a reach of 0
        return jnp.where(seen_RT.any(1, keepdims=True), y_RH, jnp.nan)

    asked, x_RT = (predictor.model, predictor.horizon, predictor.backbone, predictor.prompt), rest_RT / scale_R1
    if not predictor.levels:
        return restored(predict.run(*asked, x_RT, seen_RT))
    y_QRH = predict.run_levels(*asked, predictor.quantiles, x_RT, seen_RT)
    told_LRH = y_QRH[1:] if 0.5 in predictor.levels else y_QRH  # as `Predictor.told`
    return restored(y_QRH[0]), jax.vmap(restored)(jnp.sort(told_LRH, axis=0))


def exported(predictor: Predictor, platforms: Sequence[str]) -> jax_export.Exported:
    """Returns the program, lowered for the platforms and compiled for none, with a symbolic number of rows."""
    inside = predictor._replace(
        **{word: jax.device_get(getattr(predictor, word)) for word in ("backbone", "prompt", "quantiles")}
    )

    def forecast(history: Array) -> Array | tuple[Array, Array]:
        return program(inside, history)

    shape = *jax_export.symbolic_shape("rows"), predictor.lookback
    with placeless():
        make = jax_export.export(jax.jit(forecast), platforms=tuple(platforms))
        return make(jax.ShapeDtypeStruct(shape, jnp.float32))


@contextlib.contextmanager
def placeless() -> Iterator[None]:
    """Inside, a program does not say which file and line an operation comes from: folders of this machine are nobody's
    business, and the same forecaster is the same bytes wherever it is exported."""
    settings = {"jax_traceback_in_locations_limit": 0, "jax_hlo_source_file_canonicalization_regex": ".*"}
    former = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in former.items():
            jax.config.update(name, value)


def write(path: str | Path, predictor: Predictor, about: dict[str, Any], platforms: Sequence[str] = USUAL) -> Path:
    """Writes the program, and NAME.json beside NAME.stablehlo; returns the program's path.

    about: what the page says besides (`manifest.of_fitted`, `of_run`). Raises UserError before anything is written.
    """
    target = to_path(path, "export")
    check(target, platforms)
    page = target.with_suffix(".json")
    made = exported(predictor, platforms)
    content = bytes(made.serialize())
    said = manifest.make(target.name, content, made, predictor, about)
    temporary = target.with_name(target.name + ".tmp")
    try:
        temporary.write_bytes(content)
        write_atomic(page, manifest.to_read(said))
        temporary.replace(target)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UserError(f"export({str(path)!r}): {e.strerror}; accepted: a place that can be written") from None
    return target


def check(target: Path, platforms: Sequence[str]) -> None:
    """Raises UserError for a path or platforms that nothing can be exported to, or when flatbuffers is missing."""
    call = f"export({str(target)!r})"
    if target.suffix != ".stablehlo" or target.is_dir():
        raise UserError(f"{call}: no .stablehlo file; accepted: a path like model.stablehlo")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{call}: there is no folder {target.parent}; accepted: one that is there")
    page = target.with_suffix(".json")
    if page.exists() and not manifest.is_page(page):
        raise UserError(f"{call} would write {page}, and something else is there; accepted: another name")
    unknown = [name for name in platforms if name not in PLATFORMS]
    if isinstance(platforms, str) or unknown or not len(platforms) or len(set(platforms)) < len(platforms):
        raise UserError(f"export(platforms={platforms!r}): accepted: some of {', '.join(PLATFORMS)}, each once")
    try:
        import flatbuffers  # noqa: F401  (jax.export writes and reads with it)
    except ImportError:
        raise UserError(
            f"{call} needs flatbuffers, and it is not installed; accepted: pip install ptt_jax[export]"
        ) from None


def of_run(run: Path, horizon: int = 0) -> tuple[Predictor, dict[str, Any]]:
    """Returns the first seed's prompt of a run directory on its backbone, and what the page says besides.

    horizon: one that the run tuned; 0 = the longest. The program standardises each row by itself and not by the run's
    scaler, which only moves the forecast of a row that hardly moves (layers.SCALE_FLOOR). Raises UserError when the run
    has no prompt, or not for that horizon, or one for each channel.
    """
    cfg = config.restored(json.dumps(read_json(run / "config.json")), run / "config.json")
    tasks = [file for file in sorted((run / "prompts").glob("*.json")) if "levels" not in read_json(file)]
    if cfg.tune.prompts == "channel" or not tasks:
        what = "a prompt for each channel, and a row does not say which it is" if tasks else "no tuned prompt"
        raise UserError(f"{run} has {what}; accepted: a run of tune.mode=prompt, or the folder of Forecaster.save")
    longest = cfg.horizons[-1]
    accepted = (longest,) if cfg.model.decoder_attention == "self" else cfg.horizons
    if horizon and horizon not in accepted:
        raise UserError(f"{run} has no horizon {horizon} to export; accepted: {', '.join(map(str, accepted))}")
    cfg.horizons = (horizon or longest,)
    predictor = fitted.predictor(run, tasks[0].stem, cfg)
    data = read_json(run / "data.json")
    return predictor, {"freq": data["freq"], "prompt": read_json(tasks[0])["content_hash"]}
