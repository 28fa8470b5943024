import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ptt_jax import optim
from ptt_jax.errors import UserError
from ptt_jax.optim import Groups


@pytest.fixture
def tree(params):
    # A negative zero among the frozen leaves: adding a zero update to it would flip its sign bit.
    backbone = {**params, "mask_token": params["mask_token"].at[0].set(-0.0)}
    return {"backbone": backbone, "prompt": {"tokens_MD": jnp.ones((2, 16))}}


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_frozen_leaves_keep_every_bit_under_decay_and_clip(tree):
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.0, steps=9, weight_decay=0.5, clip=1.0), tree)
    tuned, frozen = optim.PROMPT.part(tree)
    state = tx.init(tree)
    for _ in range(3):
        tuned, state = jax.jit(lambda g, s, t: optim.step(tx, g, s, t, frozen))(tuned, state, tuned)
    after = optim.join(tuned, frozen)
    assert bits(after["backbone"]) == bits(tree["backbone"])
    assert (after["prompt"]["tokens_MD"] < 1).all()


def test_the_optimiser_holds_no_moments_of_frozen_leaves(tree):
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.1, steps=9, weight_decay=0.0, clip=1.0), tree)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(tx.init(tree)))
    assert 2 * 32 <= sizes < 2 * 32 + 10


def test_weight_decay_pulls_prompts_towards_zero(tree):
    tuned, frozen = optim.PROMPT.part(tree)
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.0, steps=50, weight_decay=1.0, clip=1.0), tree)
    state, grads = tx.init(tree), jax.tree.map(jnp.zeros_like, tuned)
    for _ in range(10):
        tuned, state = optim.step(tx, grads, state, tuned, frozen)
    assert (tuned["prompt"]["tokens_MD"] > 0).all()
    assert (tuned["prompt"]["tokens_MD"] < 0.9).all()


def test_clip_sees_the_tuned_gradient_alone(tree):
    """Frozen gradients are not even computed; were they mixed in, their norm would shrink the prompt's step."""
    tuned, frozen = optim.PROMPT.part(tree)
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.0, steps=9, weight_decay=0.0, clip=1.0), tree)
    small = jax.tree.map(lambda t: jnp.full_like(t, 1e-3), tuned)
    moved, _ = optim.step(tx, small, tx.init(tree), tuned, frozen)
    alone = optim.chain(peak=0.1, warmup=0.0, steps=9, weight_decay=0.0, clip=1.0)
    updates, _ = alone.update(small["prompt"], alone.init(tree["prompt"]), tree["prompt"])
    np.testing.assert_array_equal(moved["prompt"]["tokens_MD"], tree["prompt"]["tokens_MD"] + updates["tokens_MD"])


@pytest.mark.parametrize("name", ["promt", "encoder_", ""])
def test_a_misspelt_group_is_an_error_and_not_a_frozen_run(tree, name):
    with pytest.raises(ValueError, match="match no parameter"):
        Groups((name,)).transform(optim.chain(peak=1, warmup=0, steps=1, weight_decay=0, clip=1), tree)


def test_parts_join_to_the_same_tree(tree):
    for groups in (optim.PROMPT, Groups(("head", "prompt")), optim.ALL):
        tuned, frozen = groups.part(tree)
        assert bits(optim.join(tuned, frozen)) == bits(tree)
        assert len(jax.tree.leaves(tuned)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(tree))


def test_the_table_counts_every_parameter_once(tree):
    table = optim.table(tree, optim.PROMPT)
    assert sum(row["parameters"] for row in table.values()) == sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert {name for name, row in table.items() if row["tuned"]} == {"prompt"}
    assert table["prompt"] == {"parameters": 32, "tuned": 32}


def test_durations_are_steps_or_epochs():
    assert optim.plan(2.0, 0, 10, 100, "tune") == 20
    assert optim.plan(0.5, 0, 10, 100, "tune") == 5
    assert optim.plan(2.0, 7, 10, 100, "tune") == 7
    assert optim.plan(0.001, 0, 10, 100, "tune") == 1
    with pytest.raises(UserError, match="less than"):
        optim.plan(1.0, 2**31, 10, 100, "tune")


def test_multi_transform_zeroes_every_update_but_the_tuned(tree):
    tx = optim.PROMPT.transform(optim.chain(peak=0.1, warmup=0.0, steps=9, weight_decay=0.5, clip=1.0), tree)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, tree), tx.init(tree), tree)
    assert all((u == 0).all() for u in jax.tree.leaves(updates["backbone"]))
    assert (updates["prompt"]["tokens_MD"] != 0).all()


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    rate = optim.schedule(1.0, 0.1, 100)
    values = [float(rate(s)) for s in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[10] == pytest.approx(1.0)
    assert values == sorted(values[:11]) + sorted(values[11:], reverse=True)
    assert values[100] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_any_warm_up_and_any_number_of_steps_learn(warmup, steps):
    rates = [float(optim.schedule(1.0, warmup, steps)(s)) for s in range(steps)]
    assert min(rates) > 0
    assert max(rates) <= 1


def test_decay_goes_by_name_and_spares_biases(tree):
    decayed = optim.decayed(tree)
    paths = {jax.tree_util.keystr(p) for p, on in jax.tree_util.tree_leaves_with_path(decayed) if on}
    assert paths
    assert all(p.endswith(("['kernel']", "['tokens_MD']")) for p in paths)


def test_the_average_of_the_weights_is_what_its_decay_says_and_changes_no_step(tree):
    knobs = {"peak": 0.1, "warmup": 0.0, "steps": 40, "weight_decay": 0.0, "clip": 1.0}
    plain, kept = (optim.ALL.transform(optim.chain(**knobs, average=a), tree) for a in (0.0, 0.5))
    grads = jax.tree.map(jnp.ones_like, tree)
    states, params, seen = [plain.init(tree), kept.init(tree)], [tree, tree], []
    updates = [jax.jit(tx.update) for tx in (plain, kept)]
    for _ in range(30):
        for i, update in enumerate(updates):
            change, states[i] = update(grads, states[i], params[i])
            params[i] = optax.apply_updates(params[i], change)
        seen.append(params[1]["backbone"]["mask_token"])
        jax.tree.map(np.testing.assert_array_equal, *params)
    average = tree["backbone"]["mask_token"]
    for t, x in enumerate(seen):
        keep = min(0.5, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * x
    found = optim.averaged(states[1])["backbone"]["mask_token"]
    np.testing.assert_allclose(found, average, rtol=1e-5)
    assert np.abs(found - seen[-1]).max() > 1e-4
