import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import windows
from ptt_jax.errors import UserError


def order(rows: int, size: int, steps: int, seed: int = 0) -> np.ndarray:
    batch = jax.jit(lambda s: windows.batch(jax.random.key(seed), s, size, rows))
    return np.concatenate([np.asarray(batch(jnp.int32(s))) for s in range(steps)])


@pytest.mark.parametrize(("rows", "size"), [(1, 3), (7, 3), (64, 16), (1001, 90), (5, 12)])
def test_every_epoch_visits_every_row_once(rows, size):
    seen = order(rows, size, -(-3 * rows // size) + 1)
    for epoch in range(3):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_the_order_is_a_shuffle():
    seen = order(4096, 512, 16)
    first, second = seen[:4096], seen[4096:]
    assert (first == second).sum() < 12  # about one is expected of two independent shuffles
    assert abs(np.corrcoef(first, np.arange(4096))[0, 1]) < 0.06
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.06
    assert (first != order(4096, 512, 8, seed=1)).mean() > 0.99


def test_rows_above_two_to_the_24_stay_exact():
    rows = 2**30 + 7
    seen = np.asarray(windows.batch(jax.random.key(0), jnp.int32(2**20), 512, rows))
    assert len(set(seen)) == 512
    assert seen.min() >= 0
    assert seen.max() < rows
    assert seen.max() > 2**29


def test_a_row_is_one_channel_of_one_window():
    values_TC = np.arange(40.0).reshape(20, 2).astype(np.float32)
    panel = windows.Panel(jnp.asarray(values_TC.T), jnp.ones((2, 20), bool))
    span = windows.span((10, 20), 4, (2, 3), 2, "test")
    assert (span.first, span.counts, span.rows, span.length) == (6, (9, 8), 18, 7)
    x_RL, observed_RL = windows.take(panel, span, jnp.arange(span.rows))
    for row in range(span.rows):
        start, channel = 6 + row // 2, row % 2
        inside = min(start + 7, 20) - start
        np.testing.assert_array_equal(x_RL[row, :inside], values_TC[start : start + inside, channel])
        assert observed_RL[row].tolist() == [True] * inside + [False] * (7 - inside)


def test_targets_lie_in_the_split_and_history_may_reach_back():
    span = windows.span((100, 200), 30, (10, 20), 1, "validation")
    assert span.first + span.lookback == 100
    assert span.first + span.counts[0] - 1 + span.lookback + 10 == 200
    assert span.first + span.counts[1] - 1 + span.lookback + 20 == 200


def test_steps_past_the_split_count_as_missing():
    panel = windows.Panel(jnp.zeros((1, 300)), jnp.ones((1, 300), bool))
    span = windows.span((100, 200), 30, (10, 20), 1, "validation")
    observed_L = windows.take(panel, span, jnp.array([span.rows - 1]))[1][0]
    assert int(observed_L.sum()) == 40


def test_a_split_without_one_window_says_so():
    with pytest.raises(UserError, match=r"test split has rows 90 to 100.*48 steps of history and 20 to forecast"):
        windows.span((90, 100), 48, (5, 20), 3, "test")


def test_a_mix_gives_every_series_its_turn():
    lengths, channels = (40, 90), (1, 3)
    panels = [
        windows.Panel(jnp.asarray(1000.0 * s + np.arange(c * n).reshape(c, n)), jnp.ones((c, n), bool))
        for s, (n, c) in enumerate(zip(lengths, channels, strict=True))
    ]
    spans = [windows.span((0, n), 8, (4,), c, "train") for n, c in zip(lengths, channels, strict=True)]
    mix = windows.Mix(tuple(panels), tuple(spans))
    assert mix.span.rows == 2 * spans[1].rows  # the larger one's rows once, those of the other more often
    row_R = jnp.arange(mix.span.rows)
    x_RL, observed_RL = windows.take(mix, mix.span, row_R)
    assert x_RL.shape == (mix.span.rows, 12)
    assert observed_RL.all()
    for s, (panel, of) in enumerate(zip(panels, spans, strict=True)):
        own_RL = windows.take(panel, of, jnp.arange(mix.span.rows // 2) % of.rows)[0]
        np.testing.assert_array_equal(x_RL[s::2], own_RL)
    np.testing.assert_array_equal(windows.future(mix, mix.span, row_R)[0], x_RL[:, 8:])


def test_a_mix_with_too_many_rows_is_refused():
    panel = windows.Panel(jnp.zeros((1, 2)), jnp.ones((1, 2), bool))
    wide = windows.Span(0, 2**20, (2**20,), 8, (4,), 2**10)
    with pytest.raises(UserError, match="a mix of 2 series has 2147483648 rows"):
        _ = windows.Mix((panel, panel), (wide, wide)).span


@pytest.mark.parametrize("rows", [37, 2**31 - 1])
def test_padding_past_the_last_row_never_wraps_around(rows):
    stretch = jax.jit(windows.stretch, static_argnums=1)
    first = (rows - 1) // 12 * 12  # of the last batch of 12
    row_R, real_R = (np.asarray(a) for a in stretch(jnp.int32(first), 12, rows))
    assert row_R.tolist() == [min(first + i, rows - 1) for i in range(12)]
    assert real_R.tolist() == [first + i < rows for i in range(12)]
    assert 0 < real_R.sum() < 12


@pytest.mark.parametrize(("share", "count"), [(1.0, 72), (0.5, 36), (0.1, 8), (1e-9, 1)])
def test_few_windows_are_the_first_ones_with_all_of_their_targets(share, count):
    whole = windows.span((0, 100), 8, (4, 21), 3, "train")
    some = windows.few(whole, share)
    assert some.counts == (whole.counts if share == 1 else (count, count))
    assert whole.counts[-1] == 72
    panel = windows.Panel(jnp.arange(300.0).reshape(3, 100), jnp.ones((3, 100), bool))
    x_RL, observed_RL = windows.take(panel, some, jnp.arange(count * 3))
    np.testing.assert_array_equal(x_RL, windows.take(panel, whole, jnp.arange(count * 3))[0])
    assert observed_RL.all()
    assert float(x_RL[-1, -1]) == 200 + some.first + some.length + count - 2  # the last target is the span's last step
    assert some.end == whole.end if share == 1 else some.end == 8 + 21 + count - 1
