"""How near a run's word for its memory is to what it takes: python experiments/memory.py

Pre-trains and tunes for a few steps, ETTh1 and a generated series of 862 channels, each in a process of its own, and
compares what `ptt_jax.memory` says before a stage's first step with the peak of the process from there to the stage's
end, validation included (Linux alone counts that). Prints a Markdown table.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "ETTh1": ["--config=configs/etth1.py"],
    "862 channels, 1,500 rows": [
        "--config=configs/quickstart.py", "--config.data.channels=862", "--config.data.rows=1500",
        "--config.lookback=336", "--config.horizons=96,", "--config.model.patch=24",
        "--config.tune.cache_bytes=536870912",
    ],
}  # fmt: skip
SHORT = ["pretrain.steps=20", "pretrain.validations=1", "tune.steps=10", "tune.validations=1"]
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ROOT = Path(__file__).parent.parent


def peak() -> int:
    """Returns the process's peak in bytes since `forget`."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[0])


def forget() -> None:
    """Lets the peak begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def child(argv: list[str]) -> None:
    """Runs both stages, and prints a line of JSON for each: what was said, and the peak."""
    from ptt_jax import main, score, train, tune
    from ptt_jax.log import Log

    said: list[str] = []
    say = Log.say

    def listen(log: Log, text: str) -> None:
        if text.startswith("memory: ") and " takes " in text:
            said.append(text)
            forget()
        say(log, text)

    def measured(stage):
        def run(*args, **kwargs):
            out = stage(*args, **kwargs)
            print(json.dumps({"said": said.pop(), "peak": peak()}), flush=True)
            return out

        return run

    Log.say = listen
    train.pretrain, tune.tune = measured(train.pretrain), measured(tune.tune)
    score.score = lambda *_: sys.exit()  # what comes after is no part of this
    sys.exit(main.main(argv))


def rows(case: str, folder: str) -> list[tuple[str, ...]]:
    """Returns the lines of the table that a case makes."""
    flags = [f"--workdir={folder}", *(f"--config.{knob}" for knob in SHORT)]
    command = [sys.executable, __file__, *CASES[case], *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(found) != 2:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    out = []
    for one in found:
        stage, size, unit, parts = re.findall(
            r"memory: (\w+) takes ([\d.]+) (\w+) of .*? on the host: (.*)", one["said"]
        )[0]
        plan, took = float(size) * UNITS[unit], float(one["peak"])
        out.append((case, stage, f"{plan / 2**20:.0f}", f"{took / 2**20:.0f}", f"{plan / took - 1:+.1%}", parts))
    return out


if __name__ == "__main__":
    if sys.argv[1:]:
        child(sys.argv[1:])
    print("| series | stage | said, MiB | peak, MiB | off by | of it |\n|---|---|---|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(case, folder):
                print("| " + " | ".join(row) + " |", flush=True)
