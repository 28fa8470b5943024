"""What the steps of pre-training, tuning, fine-tuning and forecasting cost: time, FLOPs, bytes, share of the peak.

    python experiments/bench.py                      # the default ETTh1 model, batch 448: some minutes on a CPU
    python experiments/bench.py --quick              # within two minutes
    python experiments/bench.py --wide               # 862 channels beside 7, alternately
    python experiments/bench.py --paper              # pre-training at PatchTST's size
    python experiments/bench.py --bank               # 1,000 tenants' prompts against 1,000 fine-tuned copies
    python experiments/bench.py --chip=H100          # runs nothing: compiled figures, and that chip's bound

Each phase is what training runs: a loop of steps under one jit, its state donated, its rows cut out on the device. All
phases are timed in turn, round by round, and a phase's time is the median over the rounds, so that two of them compare
on a busy machine, too. FLOPs and bytes are the compiler's own (cost_analysis, memory_analysis) of one step, whose loop
they count once; on a GPU, FLOPs are those that a CPU's compiler counts for the same phases. `bound`:
what the device needs at least for these FLOPs and bytes, whichever takes longer; an operation's bytes are counted as if
none stayed in a cache. `full`: full fine-tuning of the same horizons.
"""

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import peaks
import phases
import tenants
from ml_collections import ConfigDict
from peaks import Peak, timed
from phases import Material, Phase, Subject

from ptt_jax import config, knobs, predict, step
from ptt_jax.errors import UserError
from ptt_jax.flags import load_file
from ptt_jax.log import Log
from ptt_jax.loop import Loop

Record = dict[str, Any]
LENGTH, LONG, WIDE = 8640, 17_544, 862  # steps of ETTh1's training rows; steps and channels of Traffic
FOUR = "full fine-tuning, one model a horizon"


class Pace(NamedTuple):
    """How long to look: seconds of a dispatch and its least steps (the memory of its temporaries is new, and slow, in
    the first), rounds, most steps of a warm epoch and its rounds."""

    seconds: float
    least: int
    rounds: int
    epoch_steps: int
    epoch_rounds: int


FULL, QUICK = Pace(1.0, 4, 7, 10_000, 4), Pace(0.1, 2, 3, 60, 1)


def compiled(phase: Phase) -> Any:
    """Returns the program that training dispatches: any number of steps, the state donated."""
    state, inputs = jax.eval_shape(phase.make, phase.subject.shapes)
    return step.many(phase.step).lower(state, jax.ShapeDtypeStruct((), jnp.int32), *inputs).compile()


def figures(phase: Phase, program: Any, peak: Peak) -> Record:
    """Returns the compiler's figures of one step, since it counts a loop's body once, and the device's bound."""
    cost, memory, rows = program.cost_analysis(), program.memory_analysis(), phase.subject.batch
    record: Record = {"phase": phase.name, "channels": phase.subject.channels, "horizons": list(phase.horizons)}
    record |= {
        "temporary_kib_a_row": memory.temp_size_in_bytes / rows / 2**10,
        "argument_mib": memory.argument_size_in_bytes / 2**20,
    }
    if phase.counted:
        # A gather is counted with all that it gathers from, once, though a step reads a few rows of it.
        unread = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(phase.unread(phase.subject.shapes)))
        accessed = cost["bytes accessed"] - unread
        bound, bound_by = peak.bound(cost["flops"], accessed)
        record |= {"mflops_a_row": cost["flops"] / rows / 1e6, "accessed_kib_a_row": accessed / rows / 2**10}
        record |= {"bound_ms": 1e3 * bound, "bound_by": bound_by}
    return record


def all_flops(records: list[Record], argv: list[str], peak: Peak, batch: int) -> None:
    """Gives the records of a GPU, whose compiler counts no product that it leaves to a library, the FLOPs that a CPU's
    counts for the same arguments, and the bound of these. argv: of this script."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counted.jsonl"
        own = [a for before, a in zip(["", *argv], argv, strict=False) if "--json" not in (before, a.partition("=")[0])]
        command = [sys.executable, __file__, *own, f"--chip={peaks.CHIPS[0]}", f"--json={file}"]
        subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.DEVNULL, check=True)
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    counted = {(r["phase"], r["channels"], *r["horizons"]): r.get("mflops_a_row") for r in lines}
    for r in records:
        if "mflops_a_row" in r:
            r["mflops_a_row"] = counted[r["phase"], r["channels"], *r["horizons"]]
            bound, r["bound_by"] = peak.bound(r["mflops_a_row"] * batch * 1e6, r["accessed_kib_a_row"] * batch * 2**10)
            r["bound_ms"] = 1e3 * bound


class Warm:
    """A phase on real arrays, run once, and how many steps make a dispatch of some length."""

    def __init__(self, phase: Phase, program: Any, material: Material, pace: Pace) -> None:
        self.chunk = program
        state, self.inputs = phase.make(material)
        self.state = jax.tree.map(jnp.copy, state)  # it is donated, and phases share a backbone
        self.dispatch(1)
        self.count = max(round(pace.seconds / self.dispatch(1)), pace.least)

    def dispatch(self, count: int) -> float:
        """Runs so many steps and returns the seconds."""
        spent, (self.state, _) = timed(self.chunk, self.state, jnp.int32(count), *self.inputs)
        return spent

    def loop(self, steps: int) -> float:
        """Runs so many steps as training does, by chunks whose losses are fetched, and returns the seconds."""
        data, *inputs = self.inputs
        log = Log(Path(os.devnull), quiet=True)
        loop = Loop("tune", steps, 1, self.chunk, data, None, jnp.zeros_like, tuple(inputs), log)
        state = self.state.replace(step=jnp.int32(0))
        spent, pauses = timed(lambda: list(loop.run(state)))
        self.state = pauses[-1].state
        return spent


def time_all(todo: list[Phase], programs: list, materials: dict[int, Material], pace: Pace) -> list[Record]:
    """Returns the time of each phase; {channels: Material} is what they run on."""
    warm = [
        Warm(phase, program, materials[phase.subject.channels], pace)
        for phase, program in zip(todo, programs, strict=True)
    ]
    rounds = [[w.dispatch(w.count) / w.count for w in warm] for _ in range(pace.rounds)]
    empty = [[w.dispatch(0) for w in warm] for _ in range(pace.rounds)]
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    idle = [statistics.median(column) for column in zip(*empty, strict=True)]
    batch = todo[0].subject.batch
    records = [
        {"step_ms": 1e3 * t, "rows_per_s": batch / t, "dispatch_ms": 1e3 * i, "steps": w.count, "rounds": pace.rounds}
        for w, t, i in zip(warm, times, idle, strict=True)
    ]
    for phase, w, record in zip(todo, warm, records, strict=True):
        if phase.epoch:
            steps = min(phase.subject.rows // batch, pace.epoch_steps)
            pairs = [(w.loop(steps), w.dispatch(steps)) for _ in range(pace.epoch_rounds)]
            loops, ones = zip(*pairs, strict=True)  # other jobs only ever add: the fastest of each is compared
            record |= {"epoch_steps": steps, "share_compiled": min(ones) / min(loops)}
    return records


def judge(record: Record, peak: Peak, batch: int) -> None:
    """Adds what a time means beside the compiled figures."""
    if "step_ms" in record and "mflops_a_row" in record:
        record["gflops_per_s"] = record["mflops_a_row"] * batch / record["step_ms"]
        record["share_of_peak"] = record["gflops_per_s"] * 1e9 / peak.flops
        record["share_of_bound"] = record["bound_ms"] / record["step_ms"]


def together(name: str, records: list[Record], horizons: tuple[int, ...], batch: int) -> Record:
    """Returns what several models of one horizon each cost, one after the other: sums, and the largest memory."""
    sums = ("step_ms", "mflops_a_row", "accessed_kib_a_row", "bound_ms")
    largest = ("temporary_kib_a_row", "argument_mib")
    record: Record = {"phase": name, "channels": records[0]["channels"], "horizons": list(horizons)}
    record |= {key: sum(r[key] for r in records) for key in sums if key in records[0]}
    record |= {key: max(r[key] for r in records) for key in largest}
    record |= {"bound_by": "/".join(dict.fromkeys(r["bound_by"] for r in records))}
    return record | ({"rows_per_s": 1e3 * batch / record["step_ms"]} if "step_ms" in record else {})


# fmt: off
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("ms a step", "step_ms", ".1f"), ("rows/s", "rows_per_s", ",.0f"),
    ("MFLOPs a row", "mflops_a_row", ".2f"), ("of full", "mflops_a_row", ""),
    ("temporary KiB a row", "temporary_kib_a_row", ".1f"), ("of full", "temporary_kib_a_row", ""),
    ("arguments MiB", "argument_mib", ".0f"),
    ("GFLOP/s", "gflops_per_s", ".1f"), ("of peak", "share_of_peak", ".2f"),
    ("bound ms", "bound_ms", ".3g"), ("of bound", "share_of_bound", ".2f"),
)
# fmt: on


def table(records: list[Record]) -> str:
    """Returns a markdown table; a figure that does not apply is left empty."""
    wide = len({r["channels"] for r in records}) > 1
    full = {(r["channels"], *r["horizons"]): r for r in records if r["phase"] == "full fine-tuning"}

    def cell(record: Record, key: str, form: str) -> str:
        if key not in record:
            return ""
        whole = full.get((record["channels"], *record["horizons"]))
        if form:
            return format(record[key], form)
        return f"{record[key] / whole[key]:.3f}" if whole else ""

    heads = ["phase", *(["channels"] if wide else []), "horizons", *(title for title, *_ in COLUMNS), "bound by"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for r in records:
        of = [str(r["channels"])] if wide else []
        cells = [r["phase"], *of, " ".join(map(str, r["horizons"])), *(cell(r, k, f) for _, k, f in COLUMNS)]
        lines.append("| " + " | ".join([*cells, r.get("bound_by", "")]) + " |")
    return "\n".join(lines)


def remarks(records: list[Record], channels: int) -> list[str]:
    """Returns what the table cannot say: windows a second, ratios, the share of a warm epoch."""
    found = {(r["phase"], r["channels"], tuple(r["horizons"])): r for r in records}
    said = []
    for (name, wide, horizons), r in found.items():
        task = f"{name}, {' '.join(map(str, horizons))}"
        if name == "pretrain" and "rows_per_s" in r:
            said.append(f"pretrain: {r['rows_per_s'] / wide:,.1f} windows of {wide} channels a second")
        if "share_compiled" in r:
            said.append(
                f"{task}: {r['share_compiled']:.1%} of a warm epoch ({r['epoch_steps']} steps) is compiled code"
            )
        for other in ("full fine-tuning", FOUR) if name == "tune, cached" else ():
            whole = found.get((other, wide, horizons), {})
            kinds = {"FLOPs": "mflops_a_row", "temporaries": "temporary_kib_a_row", "time": "step_ms"}
            shares = [f"1/{whole[k] / r[k]:.1f} of the {words}" for words, k in kinds.items() if k in whole and k in r]
            said += [f"{task}: {', '.join(shares)} of {other}"] if shares else []
        like = found.get((name, channels, horizons))
        if wide != channels and like and "step_ms" in r:
            share = r["step_ms"] / like["step_ms"]
            said.append(f"{task}: a row of {wide} channels costs {share:.3f} of a row of {channels}")
    return said


def adapt(cfg: ConfigDict, args: argparse.Namespace) -> None:
    """Changes the config as the command line says. Raises UserError."""
    if args.paper:  # the whole window is 42 patches: what PatchTST's pre-training reads
        cfg.lookback, cfg.horizons = 492, (12,)
        cfg.model.update(patch=12, width=128, mlp=512, heads=16, encoder_layers=3, decoder_layers=1, dropout=0.2)
        cfg.pretrain.update(mask_ratio=0.4, horizon=-1, tail_share=0.0)
    if args.width:
        cfg.model.mlp, cfg.model.width = cfg.model.mlp * args.width // cfg.model.width, args.width
    cfg.compute_dtype = args.dtype or cfg.compute_dtype
    config.check(cfg)
    if min(args.batch, args.channels) < 1 or (args.horizons and not knobs.is_horizons(args.horizons)):
        raise UserError(
            "accepted: --horizons ascending and above 0, like 96,192, a --batch and --channels of at least 1"
        )
    if not 1 <= args.tenants <= predict.ROWS:
        raise UserError(f"--tenants={args.tenants}: accepted: 1 to {predict.ROWS}, the rows of one call")
    if args.chip and args.chip not in peaks.CHIPS:
        raise UserError(f"--chip={args.chip} is in no table; accepted: {', '.join(peaks.CHIPS)}")


def bench(cfg: ConfigDict, args: argparse.Namespace, argv: list[str]) -> tuple[Peak, list[Record]]:
    """Returns what the device can do at most and a record for each phase."""
    pace = QUICK if args.quick else FULL
    length = LONG if args.wide else LENGTH // 4 if args.quick else LENGTH

    def subject(channels: int, cached: bool) -> Subject:
        return Subject(cfg, args.horizons or tuple(cfg.horizons), args.batch, channels, length, cached)

    if args.wide:
        subjects = [subject(args.channels, False), subject(WIDE, False)]
        todo = [phase for pair in zip(*map(phases.few, subjects), strict=True) for phase in pair]
    else:
        subjects = [subject(args.channels, not args.paper)]
        todo = [subjects[0].pretraining()] if args.paper else phases.every(subjects[0], args.quick)
    peak = peaks.by_name(args.chip, cfg.compute_dtype) if args.chip else peaks.of_device(cfg.compute_dtype)
    programs = [compiled(phase) for phase in todo]
    records = [figures(phase, program, peak) for phase, program in zip(todo, programs, strict=True)]
    if not args.chip:
        times = time_all(todo, programs, {s.channels: s.material() for s in subjects}, pace)
        records = [{**record, **spent} for record, spent in zip(records, times, strict=True)]
        if jax.default_backend() == "gpu":
            all_flops(records, argv, peak, args.batch)
    horizons = subjects[0].horizons
    single = [r for r in records if r["phase"] == "full fine-tuning" and len(r["horizons"]) == 1]
    if len(single) == len(horizons) > 1:
        records.append(together(FOUR, single, horizons, args.batch))
    for record in records:
        judge(record, peak, args.batch)
    return peak, records


def bank(cfg: ConfigDict, args: argparse.Namespace) -> tuple[Peak, list[Record]]:
    """Returns what the device can do at most and a record for each way to serve many tenants."""
    horizons = args.horizons or (cfg.horizons[0], cfg.horizons[-1])
    records = [r for h in horizons for r in tenants.measure(cfg, h, args.tenants, 3 if args.quick else 5)]
    return peaks.of_device(cfg.compute_dtype), records


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/etth1_light.py"))
    parser.add_argument(
        "--horizons", type=lambda s: tuple(int(h) for h in s.split(",")), help="instead of the config's"
    )
    parser.add_argument("--batch", type=int, default=448, help="rows in a step")
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--width", type=int, help="instead of the config's; model.mlp follows in proportion")
    parser.add_argument("--dtype", help="instead of the config's compute_dtype: float32 or bfloat16")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--wide", action="store_true", help=f"compare with {WIDE} channels of {LONG} steps")
    parser.add_argument("--paper", action="store_true", help="pre-training alone, at PatchTST's size")
    parser.add_argument("--bank", action="store_true", help="a bank of --tenants tasks alone, beside copies")
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--chip", default="", help=f"run nothing, bound of {', '.join(peaks.CHIPS)}")
    parser.add_argument("--json", type=Path, help="a file that gets a line of JSON for each phase")
    args = parser.parse_args(argv)
    try:
        cfg = load_file(args.config)
        adapt(cfg, args)
        peak, records = bank(cfg, args) if args.bank else bench(cfg, args, argv)
    except UserError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 2
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "experiments/bench.py", *argv]),
        "device": f"{args.chip}, computed" if args.chip else peaks.device_name(), "peak": peak.name,
        "peak_gflops_per_s": peak.flops / 1e9, "peak_gb_per_s": peak.bytes / 1e9,
        "jax": jax.__version__, "dtype": cfg.compute_dtype, "config": args.config.stem, "width": cfg.model.width,
        "batch": args.batch,
    }  # fmt: skip
    print(
        f"{args.config}, width {cfg.model.width}, batch {args.batch} rows, {cfg.compute_dtype}, jax {jax.__version__}, "
        f"{about['device']}; peak ({peak.name}) {peak.flops / 1e9:,.0f} GFLOP/s, {peak.bytes / 1e9:,.0f} GB/s\n"
    )
    print(tenants.table(records) if args.bank else "\n".join([table(records), "", *remarks(records, args.channels)]))
    if args.json:
        with args.json.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(about | record, allow_nan=False) + "\n" for record in records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
