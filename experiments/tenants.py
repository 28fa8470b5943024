"""A bank of many tenants' prompts against as many fine-tuned copies of its backbone: bytes, and forecasts a second.

A tenant asks for one series. Weights and prompts are drawn: neither bytes nor seconds depend on what was learned. A
copy is kept as a task of the bank is, with its weights beside the prompt. All ways are timed in turn, round by round,
from rows on the host to forecasts on the host; frames, which take seconds, once.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from peaks import timed

from ptt_jax import Bank, Forecaster, architecture, config, intervals, predict, prompts
from ptt_jax import store as stores
from ptt_jax.model import init
from ptt_jax.parcel import Parcel
from ptt_jax.store import Store

Record = dict[str, Any]
WRITTEN = 20  # copies that are written to be weighed: they differ by what noise compresses to
WAYS = {
    "bank": "bank: one call, each row its own prompt",
    "one prompt": "one call, one prompt for all rows",
    "copies": "copies: a call each, one after the other",
    "copies stacked": "copies: stacked and vmapped, one call",
    "bank.forecast": "Bank.forecast: standardised and back",
    "bank.predict": "Bank.predict: frames, intervals of 80 and 95 %",
}


def draw(cfg: ConfigDict, horizon: int, tenants: int, folder: Path) -> tuple[Bank, Any, Any]:
    """Returns a bank on the disk with so many tasks, and the copies' weights, one tree with an axis in front."""
    cfg = config.from_json(config.to_json(cfg))
    cfg.horizons = (horizon,)
    card = architecture.of(cfg)
    model = architecture.build(card, cfg.compute_dtype, views=cfg.views)
    backbone = init(model, jax.random.key(0))
    about = {"run": "", "step": 0, "architecture": card, "content_hash": stores.content_hash(backbone)}
    store = Store(folder / "run" / "backbone", ("params",))
    store.save(0, {"params": backbone}, {})
    store.close()
    (folder / "run" / "backbone.json").write_text(json.dumps(about))
    bank, rng = Bank.create(folder / "bank", folder / "run"), np.random.default_rng(0)
    params, at_K = Forecaster(horizon).get_params(), intervals.knots(horizon)
    count = prompts.patches(horizon, model.patch)
    for k in range(tenants):
        tokens_MD = rng.normal(size=(count, model.token)).astype(np.float32)
        quantile_QK = np.sort(rng.normal(size=(len(intervals.LEVELS), len(at_K))), axis=0).astype(np.float32)
        bank.put(
            Parcel(
                f"tenant {k}", bank.hash, {"tokens_MD": tokens_MD}, cfg, params, ("load",), "h", 24, at_K, quantile_QK,
                np.ones(1), 1.0, intervals.Unit.of(24, horizon, cfg.lookback),
            )
        )  # fmt: skip

    def many(a: jax.Array) -> jax.Array:
        return jnp.asarray(np.asarray(a) + np.float32(0.01) * rng.standard_normal((tenants, *a.shape), np.float32))

    return bank, model, jax.tree.map(many, backbone)


def weigh(folder: Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(cfg: ConfigDict, horizon: int, tenants: int, rounds: int) -> list[Record]:
    """Returns a record for each way."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bank, model, copies = draw(cfg, horizon, tenants, folder)
        tasks = [bank._task(name) for name in (f"tenant {k}" for k in range(tenants))]
        copy = [jax.tree.map(lambda a, k=k: a[k], copies) for k in range(tenants)]
        (folder / "copies").mkdir()
        written = min(WRITTEN, tenants)
        for task, weights in zip(tasks[:written], copy[:written], strict=True):
            whole = task._replace(prompt={**stores.names(jax.device_get(weights)), **task.prompt})
            whole.write(folder / "copies" / f"{task.name}.npz")
        size = {
            "disk_bytes_bank": weigh(bank.folder), "disk_bytes_backbone": weigh(bank.folder / "backbone"),
            "disk_bytes_copies": weigh(folder / "copies") * tenants // written, "copies_written": written,
            "prompt_bytes": sum(prompts.size(task.prompt) for task in tasks) * 4,
            "interval_bytes": sum(task.quantile_QK.nbytes for task in tasks),
            "copies_bytes": sum(a.nbytes for a in jax.tree.leaves(copies)),
        }  # fmt: skip
        return [{**record, **size} for record in time_ways(cfg, horizon, rounds, bank, model, copies, copy, tasks)]


def time_ways(
    cfg: ConfigDict, horizon: int, rounds: int, bank: Bank, model: Any, copies: Any, copy: list, tasks: list[Parcel]
) -> list[Record]:
    rng, names = np.random.default_rng(1), [task.name for task in tasks]
    history_RT = rng.normal(size=(len(tasks), cfg.lookback)).cumsum(1)
    x_RT, seen_RT, _ = predict.ready(history_RT, cfg.lookback)
    ((padded, _),) = [*predict.blocks(x_RT, seen_RT)]
    y_RH = bank.forecast(names, history_RT)
    ((kind, stack),) = bank._stacks.found.items()
    slot_R = np.pad(np.array([stack.slot[n][0] for n in names], np.int32), (0, len(padded[0]) - len(names)))
    steps = bank._stacks.steps(kind, horizon)
    own = [jax.device_put(task.prompt) for task in tasks]
    all_own = jax.tree.map(lambda *each: jnp.stack(each), *own)
    frames = pd.DataFrame(
        history_RT.T, columns=names, index=pd.date_range("2025-01-01", periods=cfg.lookback, freq="h", name="ds")
    )
    requests = {name: frames[[name]].rename(columns={name: "load"}) for name in names}

    @jax.jit
    def stacked(weights: Any, prompt: Any, x_RT: jax.Array, seen_RT: jax.Array) -> jax.Array:
        def one(weights: Any, prompt: Any, x_T: jax.Array, seen_T: jax.Array) -> jax.Array:
            return predict.run(model, horizon, weights, prompt, x_T[None], seen_T[None])[0]

        return jax.vmap(one)(weights, prompt, x_RT, seen_RT)

    def one_by_one() -> list:
        rows = zip(copy, own, x_RT, seen_RT, strict=True)
        return jax.device_get([predict.run(model, horizon, w, p, x[None], s[None]) for w, p, x, s in rows])

    ways: dict[str, Callable[[], Any]] = {
        "bank": lambda: np.asarray(predict.run(model, steps, bank.backbone, stack.prompt, *padded, slot_R)),
        "one prompt": lambda: np.asarray(predict.run(model, steps, bank.backbone, own[0], *padded)),
        "copies": one_by_one,
        "copies stacked": lambda: np.asarray(stacked(copies, all_own, x_RT, seen_RT)),
        "bank.forecast": lambda: bank.forecast(names, history_RT),
    }
    assert np.isfinite(y_RH).all()
    for way in ways.values():
        way()
    turns = [{name: timed(way)[0] for name, way in ways.items()} for _ in range(rounds)]
    turns[0]["bank.predict"] = timed(bank.predict, requests)[0]
    return [
        {
            "phase": WAYS[name], "horizons": [horizon], "tenants": len(tasks),
            "rounds": len(spent := [turn[name] for turn in turns if name in turn]),
            "ms": 1e3 * statistics.median(spent), "forecasts_per_s": len(tasks) / statistics.median(spent),
        }
        for name in turns[0]
    ]  # fmt: skip


def table(records: list[Record]) -> str:
    """Returns a markdown table of the ways, and a line of bytes for each horizon."""
    lines = ["| way | horizon | tenants | ms | forecasts/s |", "|---|---|---|---|---|"]
    for r in records:
        cells = [r["phase"], r["horizons"][0], r["tenants"], f"{r['ms']:,.0f}", f"{r['forecasts_per_s']:,.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    for r in {r["horizons"][0]: r for r in records}.values():
        mb = {key: r[key] / 1e6 for key in r if "bytes" in key}
        lines.append(
            f"horizon {r['horizons'][0]}, on the disk: bank {mb['disk_bytes_bank']:.1f} MB (backbone "
            f"{mb['disk_bytes_backbone']:.2f}, prompts {mb['prompt_bytes']:.1f}, intervals {mb['interval_bytes']:.1f} "
            f"before compression), {r['tenants']} copies {mb['disk_bytes_copies']:.0f} MB: "
            f"1/{r['disk_bytes_copies'] / r['disk_bytes_bank']:.1f}; without intervals in memory: "
            f"{mb['prompt_bytes']:.1f} MB of prompts against {mb['copies_bytes']:.0f} MB of weights"
        )
    return "\n".join(lines)
