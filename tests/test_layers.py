import jax
import jax.numpy as jnp
import numpy as np

from ptt_jax import layers


def test_statistics_are_those_of_the_seen_values_alone(history):
    x_RT, seen_RT = history
    mean_R1, scale_R1 = layers.instance_stats(x_RT, seen_RT.astype(jnp.float32))
    for r in range(len(x_RT)):
        seen = np.asarray(x_RT[r])[np.asarray(seen_RT[r])].astype(np.float64)
        np.testing.assert_allclose(mean_R1[r, 0], seen.mean(), rtol=1e-5)
        np.testing.assert_allclose(scale_R1[r, 0], seen.std(), rtol=1e-5)


def test_constant_and_nearly_constant_windows_have_a_finite_scale():
    for offset, spread in ((0.0, 0.0), (1e8, 0.0), (5.0, 1e-6), (1e8, 1e-6)):
        x_RL = jnp.asarray(offset + spread * np.random.default_rng(0).normal(size=(1, 64)), jnp.float32)
        mean_R1, scale_R1 = layers.instance_stats(x_RL, jnp.ones_like(x_RL))
        back = (x_RL - mean_R1) / scale_R1 * scale_R1 + mean_R1
        assert scale_R1[0, 0] >= layers.SCALE_FLOOR
        np.testing.assert_allclose(back, x_RL, rtol=1e-6)


def test_a_row_where_nothing_is_seen_gets_finite_statistics():
    mean_R1, scale_R1 = layers.instance_stats(jnp.full((1, 8), 3.0), jnp.zeros((1, 8)))
    assert mean_R1[0, 0] == 0
    assert np.isfinite(scale_R1).all()


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 2, 8)) for i in range(2))

    def score(at_q: int, at_k: int):
        a = layers.rotate(q, jnp.array([[at_q]]), 100.0)
        b = layers.rotate(k, jnp.array([[at_k]]), 100.0)
        return (a * b).sum(-1)

    np.testing.assert_allclose(score(3, 10), score(20, 27), rtol=1e-4)
    assert np.abs(score(3, 10) - score(3, 11)).max() > 1e-3


def test_positions_far_apart_in_the_window_are_told_apart():
    e_ND = layers.sincos(jnp.arange(50)[None], 32, 200.0)[0]
    distance = np.linalg.norm(e_ND[:, None] - e_ND[None], axis=-1) + 10 * np.eye(50)
    assert distance.min() > 0.3


def test_patches_are_consecutive_pieces():
    np.testing.assert_array_equal(layers.patchify(jnp.arange(12)[None], 4)[0], np.arange(12).reshape(3, 4))
