import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax.bits import coins

THROWS = 400 * 1000


def throw(seed: int, share: float, shape=(400, 1000)) -> np.ndarray:
    return np.asarray(jax.jit(coins, static_argnums=(1, 2))(jax.random.key(seed), shape, share))


@pytest.mark.parametrize("share", [0.9, 0.8, 0.5, 0.1])
def test_coins_fall_as_often_as_asked_in_all_rows_and_columns(share):
    up, sigma = throw(0, share), np.sqrt(share * (1 - share))
    assert abs(up.mean() - share) < 4 * sigma / np.sqrt(THROWS)
    for axis in (0, 1):  # the spread of the means is that of independent coins
        n = up.shape[axis]
        assert abs(up.mean(axis).std() / (sigma / np.sqrt(n)) - 1) < 0.15
        assert np.abs(up.mean(axis) - share).max() < 5 * sigma / np.sqrt(n)


def test_coins_know_nothing_of_their_neighbours_nor_of_another_key():
    up = throw(0, 0.5)
    others = [np.roll(up, by, axis) for axis in (0, 1) for by in (1, 2, 4, 8, 16, 64)]
    others += [throw(seed, 0.5) for seed in (1, 2, 3)]
    for other in others:
        assert abs((up == other).mean() - 0.5) < 4 * 0.5 / np.sqrt(THROWS)


def test_words_that_differ_in_low_bits_throw_other_coins_and_not_the_same_in_another_order(monkeypatch):
    """Words and position put together by an exclusive or alone would: the number of coins that are up gives it away."""
    shape, up = (64, 1024), []  # as many positions as such a change of order leaves whole
    for words in ((0, 0), (5, 7), (9, 1), (3, 2)):
        monkeypatch.setattr(jax.random, "bits", lambda *_, words=words: jnp.array(words, jnp.uint32))
        up.append(int(coins(jax.random.key(0), shape, 0.5).sum()))
    assert len(set(up)) == 4, up


def test_coins_of_the_first_rows_do_not_depend_on_how_many_follow():
    np.testing.assert_array_equal(throw(0, 0.8, (8, 50)), throw(0, 0.8, (16, 50))[:8])
    assert coins(jax.random.key(0), (3,), 1.0).all()
    assert not coins(jax.random.key(0), (3,), 0.0).any()
    assert coins(jax.random.key(0), (2, 3, 4), 0.5).dtype == jnp.bool_
