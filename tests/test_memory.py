"""What programs take of a memory, by the compiler's figures: said, made to fit, or refused with nothing written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import config, data, loop, memory, mesh, problems, rundir, step
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.memory import Room
from ptt_jax.model import Encoded
from ptt_jax.windows import Panel

MIB = 2**20
LINUX = {
    "proc/self/status": "VmPeak:\t  9 kB\nVmRSS:\t  102400 kB\n",
    "proc/meminfo": "MemTotal:  9 kB\nMemAvailable:  409600 kB\n",
    "proc/self/cgroup": "0::/\n",
}
V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": f"{200 * MIB}\n",
    "sys/fs/cgroup/job/memory.current": f"{150 * MIB}\n",
    "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {30 * MIB}\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": "1\n",
    "sys/fs/cgroup/job/step/memory.stat": "inactive_file 0\n",
}
V1 = {
    "proc/self/cgroup": "5:cpuset:/\n4:memory:/box\n0::/\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{500 * MIB}\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{450 * MIB}\n",
    "sys/fs/cgroup/memory/box/memory.stat": f"cache 7\ninactive_file {10 * MIB}\n",
}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        (LINUX, Room(100 * MIB, 500 * MIB)),
        (LINUX | V2, Room(100 * MIB, 180 * MIB)),
        (LINUX | V1, Room(100 * MIB, 160 * MIB)),
        ({}, None),
        (LINUX | {"proc/meminfo": "MemTotal: 9 kB\n"}, None),
    ],
    ids=["no group", "version 2", "version 1", "no proc", "an old kernel"],
)
def test_a_host_has_what_its_system_says_and_its_control_groups_allow(files, room, tmp_path):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory.of_host(tmp_path) == room


def work(state, count, series):
    return jax.lax.fori_loop(0, count, lambda _, s: jnp.sin(s @ series), state)


@pytest.fixture
def made():
    """A program with a donated argument, its arguments, the bytes it needs, and what it says."""
    said, on = [], mesh.make(1)
    function = jax.jit(lambda *a: work(*a), donate_argnums=0)  # of its own in each test: nothing is compiled yet
    arguments = mesh.replicate(on, (jnp.ones((200, 200)), jnp.int32(2), jnp.ones((200, 200))))
    parts = lambda state, count, series: {"state": state.nbytes, "series": series.nbytes}  # noqa: E731
    program = memory.Program(function, on, "pretrain", "config.pretrain.batch", said.append, parts)
    figures = jax.jit(lambda *a: work(*a), donate_argnums=0).lower(*arguments).compile().memory_analysis()
    return program, arguments, figures.temp_size_in_bytes, said


def has(monkeypatch, room):
    monkeypatch.setattr(memory, "of_device", lambda on: room)


def test_a_program_that_fits_says_what_it_takes_and_is_compiled_once(made, monkeypatch):
    program, arguments, need, said = made
    has(monkeypatch, Room(100 * MIB, 100 * MIB + need))
    monkeypatch.setattr(memory, "of_host", lambda: Room(100 * MIB, 300 * MIB))
    compiled = []
    listener = lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        out = program(*arguments)
        program(out, *arguments[1:])
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiled) == 1
    assert need >= 160_000
    whole = memory.words(100 * MIB + need)
    assert said == [
        f"memory: pretrain takes {whole} of 300 MiB on the host: 156 KiB state, 156 KiB series, "
        f"{memory.words(need)} to work in"
    ]


def test_a_program_that_does_not_fit_is_refused_with_the_knob_and_nothing_has_run(made, monkeypatch):
    program, arguments, need, said = made
    has(monkeypatch, Room(0, need - 1024))
    with pytest.raises(
        memory.TooLarge, match=r"pretrain needs 1 KiB more memory .* less by config.pretrain.batch"
    ) as e:
        program(*arguments)
    assert e.value.short == 1024
    assert not arguments[0].is_deleted()
    assert said == []
    has(monkeypatch, None)  # where nobody says what there is, nothing is refused
    program(*arguments)
    assert said == []


def test_a_cache_is_halved_until_half_of_what_is_free_is_left(monkeypatch):
    on = mesh.make(1)
    has(monkeypatch, Room(1, 1001))
    assert memory.afford(on, 10_000, 500) == 10_000  # what is needed fits
    assert memory.afford(on, 400, 10**9) == 400
    assert memory.afford(on, 4000, 10**9) == 500
    has(monkeypatch, Room(1001, 1001))
    assert memory.afford(on, 4000, 10**9) == 0
    has(monkeypatch, None)
    assert memory.afford(on, 4000, 10**9) == 4000


def test_an_accelerator_says_its_own_memory_and_the_hosts_beside_it(monkeypatch):
    class Device:
        platform, process_index = "gpu", 0

        def __init__(self, used):
            self.memory_stats = lambda: {"bytes_in_use": used, "bytes_limit": 1000 * MIB}

    class On:
        devices, size = np.array([Device(200 * MIB), Device(300 * MIB)]), 2

    monkeypatch.setattr(memory, "of_host", lambda: Room(100 * MIB, 400 * MIB))
    room = memory.of_device(On)
    assert room == Room(300 * MIB, 1000 * MIB)
    total = memory.total(On, room, 50 * MIB)
    assert total == "350 MiB of 1000 MiB on each of 2 devices, and 100 MiB of 400 MiB on the host"


def looped(tmp_path, fits):
    """A loop whose chunk needs 100 bytes more than are free beside a cache of more than `fits` rows of a byte."""

    panel, known = Panel(jnp.zeros((1, 9)), jnp.ones((1, 9), bool)), []

    def chunk(state, count, data):
        if data.stored > fits:
            raise memory.TooLarge("too large", 100)
        return state, step.Sums(np.float32(data.stored), None, None)

    def encode(most):
        assert all(data.encoded.keep_RN.is_deleted() for data in known)  # two caches would not fit
        known.append(Cached(panel, Encoded((), jnp.ones((most, 1), bool), None, None)) if most else Cached(panel))
        return known[-1]

    made = loop.Loop("tune", 2, 1, chunk, encode(250), None, jnp.zeros_like, (), Log(tmp_path / "m"), encode=encode)
    return made.run(step.State(jnp.int32(0), None, None))


def test_the_cache_of_encodings_gives_way_to_a_step_and_the_loop_says_so(tmp_path, capsys):
    (pause,) = looped(tmp_path, 60)
    assert pause.loss == 50 / 2
    assert capsys.readouterr().out.count("memory: tune does not fit beside") == 2  # 250, 150, 50
    with pytest.raises(memory.TooLarge):
        list(looped(tmp_path, -1))


def test_a_series_that_no_device_holds_is_refused_with_the_knob(monkeypatch):
    cfg = config.default()
    cfg.data.rows = 200
    has(monkeypatch, Room(0, 1000))
    with pytest.raises(UserError, match=r"generated takes 4 KiB of each .* config.data.device_bytes below 4000"):
        problems.prepare(data.load(cfg.data), mesh.make(1))


def test_what_is_refused_before_its_first_step_leaves_no_directory_behind(tmp_path):
    @rundir.or_nothing
    def stage(cfg, run):
        raise memory.TooLarge("too large", 1)

    def begin(run):
        rundir.open_run(run, config.default(), {"name": "generated"})
        (run / "metrics.jsonl").write_text("")
        (run / "prompts" / "task" / "0").mkdir(parents=True)  # the look before the first step
        return run

    fresh = begin(tmp_path / "fresh")
    begun = begin(tmp_path / "begun")
    (begun / "backbone" / "7").mkdir(parents=True)
    before = sorted(begun.rglob("*"))
    foreign = begin(tmp_path / "foreign")
    (foreign / "notes.txt").write_text("mine")
    for run in (fresh, begun, foreign):
        with pytest.raises(memory.TooLarge):
            stage(None, run)
    assert not fresh.exists()
    assert sorted(begun.rglob("*")) == before
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]
