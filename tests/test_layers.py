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


def memory(dtype=jnp.float32, rows: int = 4, size: float = 1.0):
    """Queries, keys and values of 5 queries and 7 keys, and which keys count."""
    q, k, v = (jax.random.normal(jax.random.key(i), (rows, n, 2, 8), jnp.float32) for i, n in enumerate((5, 7, 7)))
    keep = (jnp.arange(7)[None] + jnp.arange(rows)[:, None]) % 3 > 0
    return (size * q).astype(dtype), (size * k).astype(dtype), v.astype(dtype), keep


def test_attention_and_its_gradient_are_those_of_jax():
    q, k, v, keep = memory(size=3.0)

    def ours(q, k, v):
        return layers.attend(q / jnp.sqrt(8.0), k, v, keep)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=keep[:, None, None, :])

    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), rtol=1e-5, atol=1e-5)
    gradients = (jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), (0, 1, 2))(q, k, v) for f in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_keys_that_do_not_count_weigh_exactly_nothing():
    q, k, v, keep = memory()
    wild = [jnp.where(keep[..., None, None], a, 1e6) for a in (k, v)]
    np.testing.assert_array_equal(layers.attend(q, *wild, keep), layers.attend(q, k, v, keep))


def test_logits_and_softmax_of_bfloat16_are_float32():
    """Logits of about 60: bfloat16 would round them by a quarter, and the weights by as much."""
    q, k, v, keep = memory(jnp.bfloat16, rows=64, size=4.0)
    whole = layers.attend(*(a.astype(jnp.float32) for a in (q, k, v)), keep)
    half = layers.attend(q, k, v, keep)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=2**-7, atol=2**-7)
