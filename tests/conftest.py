"""A strict session on eight virtual devices, and the smallest problem that has everything in it."""

import ast
import contextlib
import gc
import mmap
import os
from pathlib import Path

import jax
import jaxlib

worker = os.environ.get("PYTEST_XDIST_WORKER", "")
# Most of what compiling takes here is XLA's newer way to emit fused loops on CPUs; and where workers use every core, a
# sixth is to cut each program into parts for several threads. A switch may go, and XLA ends a process that names a flag
# it does not know: jaxlib is asked first, for the name as a string of its own, since one that is gone still stands in
# a list of reserved names. Programs that tests start inherit them.
FLAGS = {"xla_cpu_use_fusion_emitters": "false"} | ({"xla_cpu_parallel_codegen_split_count": "1"} if worker else {})
for library in Path(jaxlib.__file__).parent.glob("libjax_common.*"):
    with library.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
        known = [f"--{name}={value}" for name, value in FLAGS.items() if content.find(f"\0{name}\0".encode()) >= 0]
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *known]).strip()

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs here run for milliseconds: most of the time is XLA's, and half of that its last optimisations.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 1)  # a twentieth of a session went into notes of who called whom
# Many tests run the same programs: each is compiled once. Workers of pytest-xdist keep apart, since jax writes an entry
# in place and another process could read half of it.
home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
jax.config.update("jax_compilation_cache_dir", os.path.join(home, "ptt_jax", "tests", worker))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import cache, config, data, memory, mesh, problems
from ptt_jax.model import CrossMAE, init

# Tracing makes objects by the million, most of them for good, and Python would look for rings among all of them time
# and again: up to a tenth of a session's time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

# With the files that take longest first, no worker has one left when the others are done. The rest goes by name.
LONG = (
    "processes", "docs", "main", "train", "finetune", "knobs", "stream", "forecaster", "overfit", "crash",
    "experiments", "tasks", "bank", "impute", "ablations", "step", "stages", "quantiles", "detect_experiment",
    "detect", "numbers",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Orders the tests by their files. Of folders it leaves out what is marked slow, unless -m or -k choose."""
    places = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if of_folders(config) and not config.option.markexpr and not config.option.keyword:
        slow = {item for item in items if item.get_closest_marker("slow")}
        config.hook.pytest_deselected(items=[*slow])
        items[:] = [item for item in items if item not in slow]


def of_folders(config: pytest.Config) -> bool:
    """Says whether folders are asked for, not single files or tests."""
    return all(os.path.isdir(asked) for asked in config.args)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What -n auto means: a process for each core where folders are asked for, none for single files or tests."""
    if of_folders(config):
        return min(os.cpu_count() or 1, 8)
    return 0


def pytest_report_header() -> str:
    return f"PTT_DATA_DIR: {os.environ.get('PTT_DATA_DIR') or 'not set: tests on real data are skipped'}"


@pytest.fixture
def tiny():
    """A config that runs all stages in seconds."""
    cfg = config.default()
    cfg.lookback, cfg.horizons = 48, (12, 20)
    cfg.cache_dir = ""
    cfg.data.rows, cfg.data.channels = 500, 3
    cfg.model.update(patch=12, width=16, mlp=16, heads=2, encoder_layers=1)
    cfg.pretrain.update(steps=6, batch=16, validations=3, validation_rows=32)
    cfg.tune.update(steps=4, batch=16, validations=2)
    cfg.evaluate.batch = 128
    return cfg


@pytest.fixture(scope="session")
def problem():
    """The generated series on a mesh of one device."""
    cfg = config.default()
    cfg.data.rows, cfg.data.channels = 500, 3
    return problems.prepare(data.load(cfg.data), mesh.make(1))


@pytest.fixture(scope="session")
def model():
    return CrossMAE(patch=12, width=16, mlp=16, heads=2, encoder_layers=1, decoder_layers=1, patches=6)


@pytest.fixture(scope="session")
def params(model):
    """Random weights, large enough that every part of the model shows in its output."""
    tree = init(model, jax.random.key(3))
    tree["mask_token"] = 50 * tree["mask_token"]
    return tree


@pytest.fixture(scope="session")
def history():
    """x_RT and observed_RT: 5 rows of 48 steps, a tenth of them missing."""
    rng = np.random.default_rng(0)
    x_RT = np.cumsum(rng.normal(size=(5, 48)), axis=1).astype(np.float32)
    return jnp.asarray(x_RT), jnp.asarray(rng.random((5, 48)) > 0.1)


@pytest.fixture(scope="session")
def foretold():
    """A context that yields a list of what was foreseen and then came as it was foreseen, or 'other NAME': the program
    had to be traced or compiled again."""

    @contextlib.contextmanager
    def watch():
        known, out, work = set(), [], []
        need = memory.Program.need

        def spy(self, arguments):
            work.clear()
            found = need(self, arguments)
            foreseen = any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(arguments))
            if self in known and not foreseen:
                out.append(f"other {self.what}" if work else self.what)
            known.update([self] if foreseen else [])
            return found

        def listen(event, *_, **__):
            work.extend([event] if event.startswith("/jax/core/compile") else [])

        cache.forget()  # what other tests have traced could stand in for what was not foreseen
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(memory.Program, "need", spy)
                yield out
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return watch


@pytest.fixture(scope="session")
def syntax():
    """f(path) -> the syntax tree of a file. Python before 3.11.8 loses count when another thread, one of tensorstore's
    say, makes a tree for a traceback meanwhile (gh-106905): then it is made again."""

    def tree(path: Path) -> ast.Module:
        for _ in range(20):
            with contextlib.suppress(SystemError):
                return ast.parse(path.read_text(encoding="utf-8"))
        return ast.parse(path.read_text(encoding="utf-8"))

    return tree
