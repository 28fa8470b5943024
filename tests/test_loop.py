"""Chunks of steps: what is dispatched when, what is fetched when, where a loop pauses."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import loop, mesh, step
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.log import Log
from ptt_jax.store import Store
from ptt_jax.windows import Panel


class Device:
    """Stands for the accelerator: notes when a chunk is dispatched, and when its sum is fetched."""

    def __init__(self):
        self.seen = []

    def chunk(self, state, count, data):
        number = sum(kind == "dispatch" for kind, *_ in self.seen)
        self.seen.append(("dispatch", number, int(count)))

        class Summed:
            def __array__(inner, dtype=None, copy=None):
                self.seen.append(("fetch", number))
                return np.asarray(2.0 * int(count), dtype)

        return state, step.Sums(Summed(), None, None)


def run(tmp_path, steps, pauses, first=0, profile=""):
    device, panel = Device(), Panel(jnp.zeros((1, 9)), jnp.ones((1, 9), bool))
    log = Log(tmp_path / "metrics.jsonl")
    made = loop.Loop("tune", steps, pauses, device.chunk, Cached(panel), None, jnp.zeros_like, (), log, profile)
    return device.seen, list(made.run(step.State(jnp.int32(first), None, None)))


def test_a_sum_is_fetched_after_the_next_chunk_was_dispatched(tmp_path):
    seen, (pause,) = run(tmp_path, 120, 1)
    kinds = [(kind, number) for kind, number, *_ in seen]
    assert kinds == [("dispatch", 0), ("dispatch", 1), ("fetch", 0), ("dispatch", 2), ("fetch", 1), ("fetch", 2)]
    assert [rest[0] for _, _, *rest in seen if rest] == [40, 40, 40]  # as equal as may be, 50 at most
    assert (pause.step, pause.loss) == (120, 2.0)


def test_nothing_waits_on_the_device_at_a_pause(tmp_path):
    seen, pauses = run(tmp_path, 120, 3)
    assert [p.step for p in pauses] == [40, 80, 120]
    assert [kind for kind, *_ in seen] == ["dispatch", "fetch"] * 3


@pytest.mark.parametrize(("first", "steps"), [(0, [3, 6, 10]), (5, [6, 10]), (6, [10]), (10, [])])
def test_a_loop_goes_on_behind_its_first_step(tmp_path, first, steps):
    assert [p.step for p in run(tmp_path, 10, 3, first)[1]] == steps


def test_a_trace_that_cannot_be_of_warm_steps_is_said(tmp_path, capsys):
    run(tmp_path, 4, 1, profile=str(tmp_path / "trace"))
    assert "tune: no trace, since no chunk of steps came after the one that compiles" in capsys.readouterr().out
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("missing", [("meta/metadata",), ("meta",), ("params",), ("state/_METADATA",)])
def test_a_stage_without_a_whole_step_is_one_sentence_and_left_alone(tmp_path, missing):
    trees = {item: {"w": np.arange(6, dtype=np.float32)} for item in ("params", "state")}
    store = Store(tmp_path / "s", tuple(trees))
    for at in (1, 2):
        store.save(at, trees, {})
        for name in missing:
            path = tmp_path / "s" / str(at) / name
            path.rename(tmp_path / f"{at}")
    store.close()
    store, log = Store(tmp_path / "s", tuple(trees)), Log(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"s/2.* accepted: "):
        loop.resume(store, trees, log, "tune", mesh.make(1))
    store.close()
    assert {"1", "2"} <= {p.name for p in (tmp_path / "s").iterdir()}


def test_going_on_says_when_the_curves_are_not_what_was_written(tmp_path, capsys):
    log, store = Log(tmp_path / "metrics.jsonl"), Store(tmp_path / "s", ("params",))
    log.write({"stage": "tune", "step": 1, "loss": 0.25})
    store.save(1, {"params": {"w": np.zeros(2)}}, {"log": log.mark()})
    for content, warned in ((b"", True), (b"\xff\n", True), (log.path.read_bytes(), False)):
        log.path.write_bytes(content)
        loop.resume(store, {"params": {"w": np.zeros(2)}}, log, "tune", mesh.make(1))
        assert ("metrics.jsonl is not what was written" in capsys.readouterr().out) == warned
    store.close()
