"""Chunks of steps: what is dispatched when, what is fetched when, where a loop pauses."""

import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import loop, step
from ptt_jax.encodings import Cached
from ptt_jax.log import Log
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
