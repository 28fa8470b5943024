"""How long prompts take to converge, against full fine-tuning by PatchTST's recipe, in one run on one machine.

    python -m ptt_jax.main --config=configs/etth1_light.py --workdir=runs/etth1
    python experiments/convergence.py --config=configs/etth1_light.py --backbone=runs/etth1 --json=FILE

Prompts: the whole stage for all horizons, from the series in memory to the chosen prompts on disk: compiling with an
empty cache, encoding, every step, every look at validation, every checkpoint. Full fine-tuning, one model a horizon:
10 epochs of a new head, 20 of head and encoder (PatchTST, Nie et al. 2023), the measured time of a warm step times
their number, with nothing else counted: no compiling, no validation. The epochs of `--config.pretrain` are not in it,
since both begin with the same backbone.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import jax
import peaks
from bench import FULL as PACE
from bench import Warm, compiled
from ledger import exit_code
from phases import Subject

from ptt_jax import architecture, checkpoint, config, data, flags, main, mesh, optim, problems, processes, tune
from ptt_jax.files import write_atomic
from ptt_jax.log import Log
from ptt_jax.seal import read_json

HEAD_EPOCHS, ALL_EPOCHS = 10, 20


def prompts(cfg, problem, folder: Path) -> tuple[float, dict]:
    """Returns the seconds of the tuning stage and what validation said at the chosen steps."""
    checkpoint.refer(folder, checkpoint.find_backbone(Path(cfg.backbone)))
    begun = time.monotonic()
    task = tune.tune(cfg, folder, problem, Log(folder / "metrics.jsonl"))
    spent = time.monotonic() - begun
    chosen = read_json(folder / "prompts" / f"{task}.json")["chosen"]
    looks = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    by_step = {look["step"]: look["validation_mse"] for look in looks}
    return spent, {h: by_step[steps[0]][h] for h, steps in chosen.items()}


def full(cfg, series) -> list[dict]:
    """Returns for each horizon the seconds of a warm step of the head and of everything, and of all epochs."""
    found = []
    length = series.splits["train"][1]
    for horizon in cfg.horizons:
        subject = Subject(cfg, (horizon,), cfg.tune.batch, len(series.names_C), length, False)
        steps = -(-subject.rows // cfg.tune.batch)
        seconds = {}
        for name, groups in (("head", optim.PROBE), ("everything", optim.HEAD)):
            phase = subject.probing(name, (horizon,), groups)
            warm = Warm(phase, compiled(phase), subject.material(), PACE)
            seconds[name] = sorted(warm.dispatch(warm.count) / warm.count for _ in range(5))[2]
        whole = steps * (HEAD_EPOCHS * seconds["head"] + ALL_EPOCHS * seconds["everything"])
        found.append({"horizon": horizon, "steps_an_epoch": steps, **seconds, "seconds": whole})
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict:
    """Returns both sides and their ratio."""
    cfg = flags.load_file(args.config)
    cfg.backbone, cfg.cache_dir = args.backbone, str(folder / "cache")
    config.check(cfg)
    main.set_up(cfg)
    card = checkpoint.find_backbone(Path(cfg.backbone))
    architecture.adopt(cfg, card)
    series = data.load(cfg.data)
    problem = problems.prepare(series, mesh.make(1))
    seconds, validation = prompts(cfg, problem, folder)
    models = full(cfg, series)
    whole = sum(m["seconds"] for m in models)
    return {"prompts_seconds": seconds, "validation_mse": validation, "models": models, "full_seconds": whole,
            "ratio": whole / seconds}  # fmt: skip


@exit_code("convergence")
def run(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/etth1_light.py"))
    parser.add_argument("--backbone", required=True, help="a finished run of that config")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    about = {"command": shlex.join(["python", "experiments/convergence.py", *argv]), "jax": jax.__version__,
             "device": peaks.device_name()}  # fmt: skip
    if args.json and processes.is_first():
        write_atomic(args.json, json.dumps(about | found, indent=2) + "\n")
    for m in found["models"]:
        print(
            f"horizon {m['horizon']}: {m['steps_an_epoch']} steps an epoch, head {1e3 * m['head']:.0f} ms, everything "
            f"{1e3 * m['everything']:.0f} ms, 30 epochs {m['seconds']:.0f} s"
        )
    print(
        f"prompts of all horizons {found['prompts_seconds']:.0f} s, {len(found['models'])} models fully fine-tuned "
        f"{found['full_seconds']:.0f} s: {found['ratio']:.0f} times less"
    )


if __name__ == "__main__":
    sys.exit(run())
