"""Two processes on loopback do what one does; what goes wrong in one ends both, with a sentence each."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from ptt_jax import architecture, checkpoint, flags, main, mesh, processes
from ptt_jax import store as stores
from ptt_jax.errors import UserError

ROOT = Path(__file__).parent.parent
CONFIG = """
from ptt_jax.config import default

def get_config():
    cfg = default()
    cfg.lookback, cfg.horizons = 48, (12, 20)
    cfg.data.rows, cfg.data.channels = 500, 3
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(steps=6, batch=16, validations=3, validation_rows=32)
    cfg.tune.update(steps=4, batch=16, validations=2)
    cfg.evaluate.batch = 128
    return cfg
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*argv: str, program: tuple[str, ...] = ("-m", "ptt_jax.main")) -> subprocess.Popen:
    """Starts a program with two virtual devices and the session's way of compiling."""
    env = {k: v for k, v in os.environ.items() if "_proxy" not in k.lower()}  # loopback needs none
    env |= {"JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *program, *argv], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def both(folder: Path) -> list[str]:
    """Returns the command line of both processes of the run, without where they meet."""
    common = [f"--config={folder / 'tiny.py'}", f"--config.cache_dir={jax.config.jax_compilation_cache_dir}"]
    return [*common, f"--workdir={folder / 'two'}"]


def ends(pair: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Returns exit code, output and errors of each, without the lines in which Gloo says that it is connected."""
    try:
        said = [p.communicate(timeout=240) for p in pair]
    finally:
        for p in pair:
            p.kill()
    gloo = r".*(\[Gloo\]|peer ranks).*\n"  # its threads cut each other's lines
    return [(p.returncode, re.sub(gloo, "", out), err) for p, (out, err) in zip(pair, said, strict=True)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def one(folder):
    """A run by this process alone, on four devices. A copy is taken after its first checkpoint."""
    cfg = flags.load_file(folder / "tiny.py")
    cfg.cache_dir, cfg.devices = jax.config.jax_compilation_cache_dir, 4
    save = stores.Store.save

    def save_and_copy(store, *args):
        save(store, *args)
        if not (folder / "two").exists():
            shutil.copytree(folder / "one", folder / "two", ignore=shutil.ignore_patterns("*.lock"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.Store, "save", save_and_copy)
        main.run(cfg, folder / "one")
    return folder / "one"


CALLS = """
import json, runpy, shutil, sys
index, run, calls = json.loads(sys.argv[1])

def ended(code):
    for stream in (sys.stdout, sys.stderr):
        print(f"-- {code}", file=stream, flush=True)
    return code

sys.argv[1:] = calls.pop(0)
try:
    runpy.run_module("ptt_jax.main", run_name="__main__")  # what python -m ptt_jax.main does
except SystemExit as e:
    ended(e.code)
if index == 0:  # which alone writes
    shutil.copytree(run, f"{run}-before")
from ptt_jax import main, processes
with processes.company():
    for argv in calls:
        code = ended(main.main(argv))
    sys.exit(code)
"""


HURT = """
import json, os, sys
from ptt_jax import loop, main, processes
processes.WAIT, loop.CHUNK = 6, 1
signals = json.loads(sys.argv.pop(1))
start = loop.Loop.dispatch

def dispatch(*args, **kwargs):
    if signals:
        os.kill(os.getpid(), signals.pop(0))
    return start(*args, **kwargs)

loop.Loop.dispatch = dispatch
with processes.company():
    code = main.main()
    print(f"-- {code}", flush=True)
    sys.exit(main.main(sys.argv[1:-1]))
"""


@pytest.fixture(scope="module")
def hurt(one, folder):
    """What two processes say that go on from that checkpoint: process 1 is told to end; both begin, it is killed."""
    where, pair = f"--distributed=127.0.0.1:{free_port()},2", []
    for index, signals in enumerate(([], [signal.SIGTERM, 0, signal.SIGKILL])):
        argv = [json.dumps(signals), *both(folder), f"{where},{index}"]
        pair.append(start(*argv, program=("-c", HURT)))
    return ends(pair)


@pytest.mark.slow
def test_when_one_of_two_is_told_to_end_both_do_and_when_it_is_killed_the_other_says_so(hurt):
    """What both learn afterwards, from what was saved, is what the other tests look at."""
    (code_0, out_0, err_0), (code_1, out_1, err_1) = hurt
    assert (code_0 in (1, -signal.SIGABRT), code_1) == (True, -signal.SIGKILL), hurt  # by us, or before by jax
    assert "pretrain: going on from step 4\n" in out_0.partition("\n-- 75\n")[2]
    assert out_1 == "-- 75\n"
    for err in (err_0, err_1):
        assert "ptt_jax: told to end (SIGTERM); the same command goes on from what is saved\n" in err
    assert re.search(r"^ptt_jax: process 0 (has lost|was ended,).*; the same commands go on from", err_0, re.MULTILINE)
    assert "Traceback" not in err_0


@pytest.fixture(scope="module")
def calls(one, hurt, folder):
    """What two processes that have met say in four calls: (code, output, errors) of each process in each call.

    The first goes on from the last checkpoint to the end. Then the same again, another config, and data that process 1
    alone does not find.
    """
    where, common = f"--distributed=127.0.0.1:{free_port()},2", both(folder)
    missing, pair = ["--config.data.name=csv", "--config.data.path=none.csv"], []
    for index in (0, 1):
        first = [*common, f"{where},{index}"]
        each = first, common, [*common, "--config.tune.steps=5"], [*common, *(missing * index)]
        pair.append(start(json.dumps([index, str(folder / "two"), each]), program=("-c", CALLS)))
    said = []
    for code, *streams in ends(pair):
        (*out, rest_out), (*err, rest_err) = (
            re.split(r"^-- (\d+)\n", stream, flags=re.MULTILINE) for stream in streams
        )
        assert out[1::2] == err[1::2], streams
        assert (code, rest_out) == (int(out[-1]), ""), streams
        assert "Traceback" not in rest_err
        said.append(list(zip(map(int, out[1::2]), out[::2], err[::2], strict=True)))
    assert snapshot(folder / "two") == snapshot(folder / "two-before")  # none of the last three changed a byte
    return list(zip(*said, strict=True))


@pytest.mark.slow
def test_process_0_speaks_and_process_1_is_silent(calls):
    (code_0, out_0, _), (code_1, out_1, err_1) = calls[0]
    assert (code_0, code_1) == (0, 0), calls[0]
    assert "pretrain: going on from step 4" in out_0
    assert out_0.splitlines()[-1].startswith("report: ")
    assert out_1 == ""
    assert "Traceback" not in err_1
    assert "ptt_jax" not in err_1


def records(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in found]


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint_of_one_to_its_metrics_and_weights(one, calls, folder):
    ours, theirs = (pd.read_csv(run / "results.csv") for run in (folder / "two", one))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)
    ours, theirs = (pd.json_normalize(records(run)) for run in (folder / "two", one))
    assert len(theirs) == 3 + 3
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)  # as many lines, too: none is there twice
    weights = []
    for run in (folder / "two", one):
        card = checkpoint.find_backbone(run)
        like = architecture.shapes(architecture.build(card["architecture"], "float32"))
        backbone = checkpoint.load_backbone(card, like)
        (task,) = (p.stem for p in (run / "prompts").glob("*.json"))
        weights.append((backbone, checkpoint.load_prompts(run, task, card["content_hash"])))
    for a, b in zip(*map(jax.tree.leaves, weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for file, names in {"samples": ["forecast_prompt_SH"], "exhibits": ["high_ZSH", "attention_IKMN"]}.items():
        with np.load(folder / "two" / f"{file}.npz") as ours, np.load(one / f"{file}.npz") as theirs:
            for name in names:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in (folder / "two").iterdir())


@pytest.mark.slow
def test_a_second_call_of_both_does_nothing(calls):
    (code_0, out_0, _), (code_1, out_1, _) = calls[1]
    assert (code_0, code_1) == (0, 0)
    assert all(f"{stage}: done before" in out_0 for stage in ("pretrain", "tune", "evaluate", "report"))
    assert out_1 == ""


@pytest.mark.slow
def test_a_run_of_another_config_is_refused_by_both(calls):
    for code, _, err in calls[2]:
        assert code == 2
        assert re.search(r"^ptt_jax: .*holds a run with config.tune.steps = 4, not 5", err, re.MULTILINE)
        assert "Traceback" not in err


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_both(calls):
    (code_0, _, err_0), (code_1, _, err_1) = calls[3]
    assert (code_0, code_1) == (2, 2)
    assert re.search(r"^ptt_jax: process 1 cannot go on: .*none.csv", err_0, re.MULTILINE)
    assert re.search(r"^ptt_jax: .*none.csv", err_1, re.MULTILINE)


@pytest.mark.slow
def test_who_is_left_waiting_gives_up_with_a_sentence(folder):
    code = "import sys; from ptt_jax import main, processes; processes.WAIT = 2; sys.exit(main.main())"
    alone = ("--distributed=127.0.0.1:9,2,1", f"--distributed=127.0.0.1:{free_port()},2,0", "--distributed")
    each = [start(f"--config={folder / 'tiny.py'}", flag, program=("-c", code)) for flag in alone]
    (code_1, _, err_1), (code_0, _, err_0), (code_alone, _, err_alone) = ends(each)
    assert (code_0, code_1, code_alone) == (2, 2, 2)
    assert err_1.startswith("ptt_jax: the 2 processes at 127.0.0.1:9 did not all join within 2 s; accepted: ")
    assert "did not all join within 2 s" in err_0
    assert err_alone.startswith("ptt_jax: --distributed without a value found no cluster that jax knows")


@pytest.mark.parametrize("where", ["here", "localhost:1234", "localhost:1234,2", "a:1,2,2", "a:99999,2,0", "a:b,2,0"])
def test_a_place_that_is_none_is_a_sentence(where, capsys):
    assert main.main(["--config=configs/quickstart.py", f"--distributed={where}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ptt_jax: --distributed={where} names no process; accepted: --distributed=HOST:PORT,COUNT,")


def test_processes_started_with_different_knobs_say_which(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather", lambda text: [text, text.replace("64", "32")])
    processes.check_alike({"config.seed": 0})
    with pytest.raises(UserError, match=r"config.model.width = 64 in process 0, but 32 in process 1"):
        processes.check_alike({"config.seed": 0, "config.model.width": 64})


def test_some_devices_of_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config.devices = 2, but 2 processes have 8 devices; accepted: 0 or 8"):
        mesh.make(2)
    assert mesh.make(8).size == 8


@pytest.mark.parametrize(("ending", "code"), [(SystemExit(130), 130), (SystemExit(2), None), (ValueError("x"), 1)])
def test_who_ends_alone_does_not_wait_for_the_others_at_the_exit(ending, code, monkeypatch, capsys):
    left = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", left.append)
    with contextlib.suppress(SystemExit), processes.company():
        raise ending
    assert left == ([] if code is None else [code])
    assert ("ValueError: x" in capsys.readouterr().err) == (code == 1)  # a bug keeps its traceback
