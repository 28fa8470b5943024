"""A run that dies by SIGKILL, twice, goes on to the bits of one that does not: experiments/crash.py for the patient."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

spec = importlib.util.spec_from_file_location("crash", Path(__file__).parent.parent / "experiments/crash.py")
FEW = {
    "pretrain.steps": 8, "pretrain.validations": 4, "tune.steps": 8, "tune.validations": 4, "data.rows": 400,
    "horizons": "12,", "evaluate.samples": 1,
}  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_among_its_checkpoints_ends_as_if_it_had_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(spec.origin).parent))
    crash = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(crash)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # the run's seconds are XLA's
    monkeypatch.setenv("GIT_DIR", os.devnull)  # who works here meanwhile changes no run
    case, folder = crash.run_of(**FEW, cache_dir=jax.config.jax_compilation_cache_dir), tmp_path / "job"
    crash.fresh(folder)
    assert crash.attempt(case, folder)[0] == {}
    whole = crash.outcome(folder)
    assert {"weights", "run/results.csv", "run/report.html", "run/metrics.jsonl"} <= {*whole}
    crash.fresh(folder)
    for step in ("backbone/4", "prompts/*/4"):
        with (tmp_path / "said").open("a") as said:
            argv = [sys.executable, "-m", "ptt_jax.main", *case.argv]
            process = subprocess.Popen(argv, cwd=folder, stdout=said, stderr=said)
        while not [*(folder / "run").glob(step)]:
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(crash.POLL)
        process.kill()
        process.wait()
    assert crash.attempt(case, folder)[0] == {}
    assert re.search(r"pretrain: going on from step [46]", (tmp_path / "said").read_text())
    assert re.search(r"tune: going on from step [46]", folder.with_suffix(".out").read_text())
    assert not crash.differences(crash.outcome(folder), whole)
