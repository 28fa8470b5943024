"""What the mask token learned, and what a prompt changes: queries before and after the decoder, attention, errors.

    python experiments/tokens.py --runs=runs/reproduce --data=ETTh1 --seeds=1     # runs/reproduce/main/ETTh1-s0
    python experiments/tokens.py --run=runs/etth1
    python experiments/tokens.py --tables                                         # the table of what is finished

Takes finished runs of `tune.mode=prompt` and ROWS rows (a channel of a window) of the validation split, drawn once;
nothing of test is read. The prompt is the longest horizon's that was tuned at all, of the first seed. Errors are of the
forecast as the run makes it, the mean of all its views; queries and attention are those of the view that is the whole
lookback.
"""

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from cells import SETS
from jax import Array
from ledger import Ledger, chosen, command, exit_code, fingerprint, pictures, show
from ml_collections import ConfigDict

from ptt_jax import architecture, checkpoint, config, data, members, mesh, problems, prompts
from ptt_jax.attention import walk
from ptt_jax.errors import UserError
from ptt_jax.model import CrossMAE
from ptt_jax.seal import read_json
from ptt_jax.windows import future, past

RESULTS = Path(__file__).parent / "results"
KEYS, VERSIONS = ("data", "seed"), ("config", "backbone")
ROWS = 2048
SIDES = ("without", "with")  # the prompt
PHASES = {"hour of day": lambda s: s.hour, "day of week": lambda s: s.day_of_week, "month": lambda s: s.month}


class Seen(NamedTuple):
    """What was seen of a run. Lists of two are without and with the prompt; of states and weights they hold one entry a
    stage (before the decoder, after each block) and a block."""

    data: str
    seed: int
    horizons: tuple[int, ...]
    patch: int
    states: list[list[np.ndarray]]  # of stages, state_RMD
    weights: list[list[np.ndarray]]  # of blocks, weight_RKMN
    mse_M: list[np.ndarray]  # by future patch, scaled space, of the mean of all views
    norm_M: np.ndarray  # of the prompt tokens
    mask_norm: float
    periods: np.ndarray  # of the waves by which rotary positions turn, in patches
    label: dict[str, np.ndarray]  # label_RM of each query by name
    phase: str  # which of them is the season's
    about: dict[str, Any]


def read(run: Path) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Returns a run's config, its backbone's card, and what tells the run from others (KEYS, VERSIONS). A knob
    that a run of an earlier version lacks stands at its default."""
    cfg = config.default()
    cfg.update(config.from_json(json.dumps(read_json(run / "config.json"))))
    card, name = checkpoint.find_backbone(run), read_json(run / "data.json")["name"]
    known = name, cfg.seed, fingerprint(cfg, rows=ROWS, phases=[*PHASES]), card["content_hash"][:12]
    return cfg, card, dict(zip((*KEYS, *VERSIONS), known, strict=True))


def check(run: Path, model: CrossMAE, kind: str) -> None:
    """Raises UserError where queries are not what `walk` follows them as."""
    followed = (
        ("model.hiding", model.hiding, ("feature",)), ("model.decoder_attention", model.decoder_attention, ("cross",)),
        ("tune.prompts", kind, ("position", "shared", "channel")),
    )  # fmt: skip
    for key, value, accepted in followed:
        if value not in accepted:
            raise UserError(
                f"{run} has config.{key} = {value}, whose queries this study cannot follow; accepted: "
                f"{', '.join(accepted)}"
            )


def look(run: Path) -> Seen:
    """Returns what there is to see of a run. Raises UserError when it has no tuned prompt."""
    cfg, card, about = read(run)
    series = data.load(cfg.data)
    problem = problems.prepare(series, mesh.make(1))
    model = architecture.build(card["architecture"], cfg.compute_dtype, views=cfg.views)
    check(run, model, cfg.tune.prompts)
    # One network is looked at: the first, without a linear map.
    model, backbone = members.first(model, checkpoint.load_backbone(card, architecture.shapes(model)))
    by_horizon = checkpoint.load_prompts(run, prompts.name(series.name, cfg.horizons), card["content_hash"])
    tuned = [h for h, (prompt, *_) in by_horizon.items() if any(np.any(a[..., : model.width]) for a in prompt.values())]
    if not tuned:
        raise UserError(f"{run} chose step 0 for every horizon, so no prompt was tuned; accepted: a run with a prompt")
    horizon = max(tuned)
    span = problem.span("validation", cfg.lookback, (horizon,))
    row_R = np.random.default_rng(0).permutation(span.rows)[:ROWS]
    count = prompts.patches(horizon, model.patch)
    prompt_RMD = prompts.tokens(jax.tree.map(jnp.asarray, by_horizon[horizon][0]), count, row_R % span.channels)
    prompt_RMD = (prompt_RMD if prompt_RMD.ndim == 3 else prompt_RMD[None])[..., : model.width]

    waves = model.width // model.heads // 2 if model.position == "rotary" else 0
    periods = np.geomspace(2, 4 * model.patches, waves)  # as in layers.angles

    @jax.jit
    def see(row_R: Array, prompt_RMD: Array) -> Any:
        variables, history = {"params": backbone}, past(problem.panel, span, row_R)
        encoded = model.apply(variables, *history, method=model.observe)
        states, weights, _ = model.apply(variables, encoded, prompt_RMD, method=walk)
        y_RMP = model.apply(variables, encoded, jnp.arange(count), prompt_RMD, method=model.foretell)
        x_RH, observed_RH = future(problem.panel, span, row_R)
        error_RH = jnp.where(observed_RH, jnp.square(y_RMP.reshape(len(row_R), -1)[:, :horizon] - x_RH), 0)
        whole = ((0, 0), (0, count * model.patch - horizon))  # steps past the horizon count for nothing
        sums_2M = [jnp.pad(a_RH, whole).reshape(-1, count, model.patch).sum((0, 2)) for a_RH in (error_RH, observed_RH)]
        return states, weights, sums_2M[0] / sums_2M[1]

    found = [jax.device_get(see(jnp.asarray(row_R), p)) for p in (jnp.zeros_like(prompt_RMD), prompt_RMD)]
    now_R = span.first + row_R // span.channels + span.lookback
    stamp_RM = series.stamps_T.to_numpy()[now_R[:, None] + np.arange(count) * model.patch]
    label, states = labels(stamp_RM, row_R % span.channels), [list(map(np.asarray, s)) for s, _, _ in found]
    return Seen(
        series.name, cfg.seed, tuple(h for h in cfg.horizons if h <= horizon), model.patch,
        states, [list(map(np.asarray, w)) for _, w, _ in found],
        [np.asarray(mse_M) for *_, mse_M in found], np.linalg.norm(np.asarray(prompt_RMD), axis=-1).mean(0),
        float(np.linalg.norm(backbone["mask_token"])), periods, label, phase(states, label), about,
    )  # fmt: skip


def labels(stamp_RM: np.ndarray, channel_R: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what could tell a query from another, label_RM by name: its place ahead; where in day, week and year its
    patch begins, alone and in a channel; its channel; its row. Phases that are alike for all are left out."""
    stamps, shape = pd.DatetimeIndex(stamp_RM.ravel()), stamp_RM.shape
    channel_RM = np.broadcast_to(channel_R[:, None], shape)
    phases = {name: np.asarray(of(stamps)).reshape(shape) for name, of in PHASES.items()}
    phases = {name: label_RM for name, label_RM in phases.items() if (label_RM != label_RM[0, 0]).any()}
    return {
        "future patch": np.broadcast_to(np.arange(1, shape[1] + 1), shape),
        **phases,
        "channel": channel_RM,
        **{f"channel and {name}": channel_RM * 100 + label_RM for name, label_RM in phases.items()},
        "row": np.broadcast_to(np.arange(shape[0])[:, None], shape),
    }


def phase(states: list[list[np.ndarray]], label: dict[str, np.ndarray]) -> str:
    """Returns the season whose phase tells most of the queries' variance after the last block, in a channel: where a
    patch is a day, the hour at which it begins is alike within a window, and yet the windows differ in it."""
    names = [name for name in PHASES if name in label]
    by = {name: sum(told(of[-1], label[f"channel and {name}"]) for of in states) for name in names}
    return max(by, key=lambda name: by[name]) if by else "future patch"


def components(state_SXD: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns the points of both sides on their common first two principal axes, and the variances' shares (2)."""
    flat = [s.reshape(-1, s.shape[-1]).astype(np.float64) for s in state_SXD]
    both_XD = np.concatenate(flat)
    middle_1D = both_XD.mean(0, keepdims=True)
    covariance_DD = (both_XD - middle_1D).T @ (both_XD - middle_1D) / len(both_XD)
    axes_DD, variance_D, _ = np.linalg.svd(covariance_DD, hermitian=True)
    return [(x - middle_1D) @ axes_DD[:, :2] for x in flat], variance_D[:2] / variance_D.sum()


def told(state_RMD: np.ndarray, label_RM: np.ndarray) -> float:
    """Returns the share of the variance of queries that their labels tell (eta squared); nan where there is none."""
    x_XD, label_X = state_RMD.reshape(-1, state_RMD.shape[-1]).astype(np.float64), label_RM.ravel()
    middle_1D = x_XD.mean(0, keepdims=True)
    total = np.square(x_XD - middle_1D).sum()
    if total < 1e-9 * np.square(x_XD).sum():
        return float("nan")
    _, group_X, count_G = np.unique(label_X, return_inverse=True, return_counts=True)
    sum_GD = np.zeros((len(count_G), x_XD.shape[1]))
    np.add.at(sum_GD, group_X, x_XD - middle_1D)
    return float((np.square(sum_GD).sum(1) / count_G).sum() / total)


def distance(weight_RKMN: np.ndarray) -> np.ndarray:
    """Returns how many patches lie between a query and what it reads, the mean under its attention, by head: (K, M)."""
    queries, keys = weight_RKMN.shape[-2:]
    ago_MN = keys + np.arange(queries)[:, None] - np.arange(keys)[None]
    return (weight_RKMN.mean(0) * ago_MN[None]).sum(-1)


def breadth(weight_RKMN: np.ndarray) -> np.ndarray:
    """Returns how many patches a query reads: exp of the mean entropy of its weights, by head: (K, M)."""
    entropy_RKM = -(weight_RKMN * np.log(np.maximum(weight_RKMN, 1e-30))).sum(-1)
    return np.exp(entropy_RKM.mean(0))


def latest(weight_RKMN: np.ndarray) -> np.ndarray:
    """Returns the mean attention to the last patch of the history, by head: (K, M)."""
    return weight_RKMN[..., -1].mean(0)


MEASURES = {"attention distance in patches": distance, "patches read": breadth, "attention to the last patch": latest}


def by_lag(weight_RKMN: np.ndarray) -> np.ndarray:
    """Returns the mean attention to what lies 1, 2, ... patches before a query, times the number of patches of the
    history, by head: (K, M + N - 1). 1 is what attention to all alike would be."""
    mean_KMN = weight_RKMN.mean(0)
    queries, keys = mean_KMN.shape[1:]
    lag_MN = keys + np.arange(queries)[:, None] - np.arange(keys)[None]
    lags = range(1, queries + keys)
    return keys * np.stack([mean_KMN[:, lag_MN == lag].mean(1) for lag in lags], axis=1)


def numbers(seen: Seen) -> pd.DataFrame:
    """Returns what the figures show as rows: a quantity, the stage (or block) and head that it is of (head 0: the mean
    of all), the horizon, future patch or component that it is at, the side, the value."""
    rows: list[tuple] = []
    shape = seen.states[0][-1].shape[:2]
    for stage, states in enumerate(zip(*seen.states, strict=True)):
        wide = [np.broadcast_to(s, (*shape, s.shape[-1])) for s in states]
        explained = components(wide)[1]
        rows += [("explained variance of component", stage, None, i, "both", v) for i, v in enumerate(explained, 1)]
        for side, state_RMD in zip(SIDES, wide, strict=True):
            found = ((name, told(state_RMD, label_RM)) for name, label_RM in seen.label.items())
            rows += [(f"variance told by {name}", stage, None, None, side, share) for name, share in found]
    for name, measure in MEASURES.items():
        for side, blocks in zip(SIDES, seen.weights, strict=True):
            for block, weight_RKMN in enumerate(blocks, 1):
                of_KM = measure(weight_RKMN)
                for horizon in seen.horizons:
                    of_K = of_KM[:, : prompts.patches(horizon, seen.patch)].mean(1)
                    heads = enumerate([of_K.mean(), *of_K])
                    rows += [(f"{name}, horizon", block, k, horizon, side, v) for k, v in heads]
    for side, blocks in zip(SIDES, seen.weights, strict=True):
        for block, weight_RKMN in enumerate(blocks, 1):
            for k, of_lag in enumerate(by_lag(weight_RKMN), 1):
                rows += [("attention at lag, times even", block, k, lag, side, v) for lag, v in enumerate(of_lag, 1)]
    for side, mse_M in zip(SIDES, seen.mse_M, strict=True):
        rows += [("MSE of future patch", None, None, m, side, v) for m, v in enumerate(mse_M, 1)]
    rows += [("norm of prompt", None, None, m, "with", v) for m, v in enumerate(seen.norm_M, 1)]
    rows.append(("norm of mask token", None, None, None, "without", seen.mask_norm))
    change_M = seen.mse_M[1] / seen.mse_M[0] - 1
    together = np.corrcoef(seen.norm_M, change_M)[0, 1] if len(change_M) > 2 else np.nan
    rows.append(("correlation of norm and change of MSE", None, None, None, "with", together))
    frame = pd.DataFrame(rows, columns=["quantity", "stage", "head", "at", "side", "value"])
    return frame.astype({name: float for name in ("stage", "head", "at", "value")})


def markdown(rows: pd.DataFrame) -> str:
    """Returns a table for each run: a row a measure, after the last block, without and with the prompt."""
    lines: list[str] = []
    for (name, seed), of in rows.groupby(["data", "seed"], sort=False):
        of = of[of["stage"].isna() | (of["stage"] == of["stage"].max())]
        ends = (1, of.loc[of["quantity"] == "norm of prompt", "at"].max())
        many = of["quantity"].isin(["norm of prompt", "MSE of future patch"]) & ~of["at"].isin(ends)
        of = of[~many & (of["head"].isna() | (of["head"] == 0))]  # lags have heads alone
        lines += ["", f"| {name}, seed {seed} | mask token alone | with prompts |", "|---" * 3 + "|"]
        for (quantity, at), values in of.groupby(["quantity", "at"], sort=False, dropna=False):
            by = values.set_index("side")["value"]
            found = [by.get(side, by.get("both", np.nan)) for side in SIDES]
            texts = [f"{value:.3f}" if np.isfinite(value) else "" for value in found]
            lines.append(f"| {quantity}{'' if np.isnan(at) else f' {at:.0f}'} | " + " | ".join(texts) + " |")
    return "\n".join(lines).strip()


def draw(seen: Seen) -> None:
    """Writes the figures of a run."""
    import maps

    maps.draw(seen, RESULTS / "tokens")


@exit_code("tokens")
def study(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="takes main/DATA-sSEED in it")
    parser.add_argument("--run", type=Path, help="one run directory, instead")
    parser.add_argument("--data", default="ETTh1", help="data sets, comma-separated")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="the table of what is finished, look at nothing")
    args = parser.parse_args(argv)
    ledger = Ledger(RESULTS / "tokens.csv", KEYS, VERSIONS)
    runs = [args.runs / "main" / f"{d}-s{s}" for d in chosen(args.data, SETS) for s in range(args.seeds)]
    runs = [] if args.tables else [args.run] if args.run else runs
    about = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "date": datetime.date.today().isoformat(),
        "command": command("tokens", argv),
    }
    for i, run in enumerate(runs, 1):
        if ledger.has(**read(run)[2]):
            print(f"{i} of {len(runs)}  {run}  done before")
            continue
        begun, seen = time.monotonic(), look(run)
        pictures(lambda seen=seen: draw(seen))
        rows = numbers(seen)
        seconds = time.monotonic() - begun
        ledger.add(rows.assign(**seen.about, seconds=seconds, **about))
        left = seconds * (len(runs) - i) / 60
        print(f"{i} of {len(runs)}  {run}  done  {seconds:.0f} s  {left:.0f} min left", flush=True)
    if len(ledger.rows):
        show("tokens", markdown(ledger.rows))


if __name__ == "__main__":
    sys.exit(study())
