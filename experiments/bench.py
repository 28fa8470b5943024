"""What a step costs, as compiled figures: FLOPs and temporary bytes, which no busy machine can change.

    python experiments/bench.py                            # the default ETTh1 model, batch 448, all horizons
    python experiments/bench.py --config=configs/etth1.py --horizons=96

Tuning prompts against fully fine-tuning the same model on the same batch. `cached`: the frozen encoder's outputs are
looked up. The frozen backward pass is absent when `tune` needs little more than a forward pass.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ptt_jax import config, optim, prompts, step, tasks, train, windows
from ptt_jax import mesh as meshes
from ptt_jax.config import UserError
from ptt_jax.main import load_file
from ptt_jax.model import CrossMAE, Encoded, init
from ptt_jax.optim import Groups
from ptt_jax.tasks import Cached

ROWS, CHANNELS = 20_000, 7  # of a series of zeros: compiled figures depend on shapes alone


def measure(cfg: ConfigDict, horizons: tuple[int, ...], batch: int) -> dict[str, tuple[float, float]]:
    """Returns {phase: (FLOPs a row, temporary bytes a row)} of one compiled step each."""
    card = train.architecture(cfg)
    model = train.build(card, cfg.compute_dtype, 0.0)
    mesh = meshes.make(1)
    panel = windows.Panel(jnp.zeros((CHANNELS, ROWS)), jnp.ones((CHANNELS, ROWS), bool))
    span = windows.span((0, ROWS), cfg.lookback, horizons, CHANNELS, "train")
    backbone = init(model, jax.random.key(0))
    prompt = prompts.make("position", prompts.patches(horizons[-1], model.patch), model.width)
    params = {"backbone": backbone, "prompt": prompt}
    fresh, cached = Cached(panel), Cached(panel, encodings(model, backbone, panel, span), complete=True)
    full = Groups((*optim.ALL.tuned, "prompt"))

    def compiled(groups: Groups, data: Any) -> tuple[float, float]:
        tx = groups.transform(train.chain(cfg.tune, 1000), params)
        one = step.one(tasks.forecasting(model, span, penalty=cfg.tune.loss), tx, groups, mesh, batch, span.rows)
        state = jax.eval_shape(lambda: step.start(params, tx))
        done = jax.jit(one).lower(state, data, jax.random.key(0)).compile()
        return done.cost_analysis()["flops"] / batch, done.memory_analysis().temp_size_in_bytes / batch

    def forward() -> tuple[float, float]:
        def forecast(params: Any, data: Cached, row_R: jax.Array) -> jax.Array:
            encoded = tasks.encode(model, params["backbone"], data, span, row_R)
            return tasks.forecast(model, params, encoded, horizons[-1])

        done = jax.jit(forecast).lower(params, fresh, jnp.zeros((batch,), jnp.int32)).compile()
        return done.cost_analysis()["flops"] / batch, done.memory_analysis().temp_size_in_bytes / batch

    return {
        "full fine-tuning": compiled(full, fresh),
        "tune, encoder at each step": compiled(optim.PROMPT, fresh),
        "tune, encodings cached": compiled(optim.PROMPT, cached),
        "forecast": forward(),
    }


def encodings(model: CrossMAE, backbone: Any, panel: windows.Panel, span: windows.Span) -> Encoded:
    """Returns the shapes of a cache of every row of the span."""
    one = jax.eval_shape(lambda b: tasks.encode(model, b, Cached(panel), span, jnp.zeros((1,), jnp.int32)), backbone)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((span.rows, *a.shape[1:]), a.dtype), one)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/etth1.py"))
    parser.add_argument(
        "--horizons", type=lambda s: tuple(int(h) for h in s.split(",")), help="instead of the config's"
    )
    parser.add_argument("--batch", type=int, default=448)
    args = parser.parse_args(argv)
    try:
        cfg = load_file(args.config)
        horizons = tuple(cfg.horizons) if args.horizons is None else args.horizons
        if not config.is_horizons(horizons) or args.batch < 1:
            raise UserError("accepted: --horizons ascending and above 0, like 96,192, and a --batch of at least 1")
        figures = measure(cfg, horizons, args.batch)
    except UserError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 2
    whole = figures["full fine-tuning"]
    print(f"{args.config}, horizons {','.join(map(str, horizons))}, batch {args.batch} rows, jax {jax.__version__}\n")
    print("| step | MFLOPs a row | of full | temporary KiB a row | of full |\n|---|---|---|---|---|")
    for phase, (flops, memory) in figures.items():
        print(
            f"| {phase} | {flops / 1e6:.2f} | {flops / whole[0]:.3f} | {memory / 1024:.1f} | {memory / whole[1]:.3f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
