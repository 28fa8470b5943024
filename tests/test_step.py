"""One device, eight virtual devices and a pmap of the step agree; the number of steps in a dispatch changes no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import encodings, optim, problems, prompts, step, tasks, windows
from ptt_jax import mesh as meshes
from ptt_jax.encodings import Cached
from ptt_jax.errors import UserError
from ptt_jax.layers import Block
from ptt_jax.model import CrossMAE

BATCH = 32


def setup(problem, model, params, mesh, groups):
    span = problem.span("train", 48, (24,))
    tree = (
        {"backbone": params, "prompt": prompts.make("position", 2, 16)}
        if groups == optim.PROMPT
        else {"backbone": params}
    )
    average = 0.9 if groups == optim.ALL else 0.0
    knobs = {"peak": 1e-2, "warmup": 0.0, "steps": 20, "weight_decay": 0.01, "clip": 1.0, "average": average}
    tx = groups.transform(optim.chain(**knobs), tree)
    if groups == optim.PROMPT:
        loss = tasks.forecasting(model, span, penalty="mse")
    else:
        hidden = {"ratio": 0.5, "tail_share": 0.5, "norm": "window", "flip": 0.5, "blend": 0.5}
        loss = tasks.reconstruction(model, span, **hidden, train=True)
    state = meshes.replicate(mesh, step.start(jax.tree.map(jnp.copy, tree), tx))
    data = Cached(meshes.replicate(mesh, jax.device_get(problem.panel)))
    return state, data, step.one(loss, tx, groups, mesh, BATCH, span.rows), (loss, tx, span)


def close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [optim.ALL, optim.PROMPT], ids=["pretrain", "tune"])
def test_one_device_and_eight_give_the_same_weights(problem, model, params, groups):
    ends = []
    for devices in (1, 8):
        mesh = meshes.make(devices)
        state, data, one, _ = setup(problem, model, params, mesh, groups)
        state, total = step.many(one)(state, jnp.int32(5), data, jax.random.key(5))
        kept = optim.averaged(state.opt_state) if groups == optim.ALL else ()
        ends.append(jax.device_get((state.params, total.loss, kept)))
    close(*ends)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0][0]["backbone"], jax.device_get(params))
    assert (max(jax.tree.leaves(moved)) > 1e-3) == (groups == optim.ALL)


def test_dropout_is_the_same_on_any_number_of_devices_and_sends_nothing(problem, params):
    sizes = {"patch": 12, "width": 16, "mlp": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "patches": 6}
    ends, sent = [], []
    for devices, rate in ((1, 0.5), (4, 0.5), (4, 0.0)):
        model, mesh = CrossMAE(**sizes, dropout=rate), meshes.make(devices)
        state, data, one, _ = setup(problem, model, params, mesh, optim.ALL)
        program = jax.jit(one).lower(state, data, jax.random.key(5)).compile()
        sent.append([program.as_text().count(f" {name}(") for name in ("all-reduce", "all-gather", "all-to-all")])
        for _ in range(3):
            state, loss = program(state, data, jax.random.key(5))
        ends.append(jax.device_get((state.params, loss.loss)))
    close(*ends[:2])
    assert sent[1] == sent[2]
    assert sent[0] == [0, 0, 0]
    assert np.abs(ends[1][1] - ends[2][1]) > 1e-3


def test_rows_are_split_over_the_mesh(problem, model, params):
    mesh = meshes.make(4)
    state, data, one, _ = setup(problem, model, params, mesh, optim.ALL)
    text = jax.jit(one).lower(state, data, jax.random.key(5)).compile().as_text()
    assert "all-reduce" in text  # gradients of rows on other devices


@pytest.mark.parametrize("groups", [optim.ALL, optim.PROMPT], ids=["pretrain", "tune"])
def test_a_pmap_of_the_step_agrees_with_jit(problem, model, params, groups):
    state, data, one, (loss, tx, span) = setup(problem, model, params, meshes.make(4), groups)
    key = jax.random.key(5)

    def per_device(state, data, row_R, key, mine):
        tuned, frozen = groups.part(state.params)

        def mean(tuned):
            # Masks of a batch follow from its key: each device makes those of all rows, and counts its own.
            sums = loss(optim.join(tuned, frozen), data, row_R, key)
            total_R, count_R = (jax.lax.dynamic_slice_in_dim(a_R, mine * (BATCH // 4), BATCH // 4) for a_R in sums)
            return total_R.sum(), count_R.sum()

        (total, count), grads = jax.value_and_grad(mean, has_aux=True)(tuned)
        everywhere = jax.lax.psum(count, "data")
        grads = jax.tree.map(lambda g: jax.lax.psum(g, "data") / everywhere, grads)
        tuned, opt_state = optim.step(tx, grads, state.opt_state, tuned, frozen)
        return step.State(state.step + 1, optim.join(tuned, frozen), opt_state), jax.lax.psum(
            total, "data"
        ) / everywhere

    order_key, step_key = jax.random.split(key)
    mapped = jax.pmap(per_device, axis_name="data", in_axes=(None, None, None, None, 0), out_axes=None)
    theirs, summed = jax.device_get(state), 0.0
    for s in range(3):
        row_R = windows.batch(order_key, jnp.int32(s), BATCH, span.rows)
        theirs, value = mapped(theirs, data, row_R, jax.random.fold_in(step_key, s), jnp.arange(4))
        theirs, summed = jax.device_get(theirs), summed + float(value)
    ours, total = step.many(one)(state, jnp.int32(3), data, key)
    close(jax.device_get(ours.params), theirs.params)
    np.testing.assert_allclose(total.loss, summed, rtol=1e-5)


def test_the_number_of_steps_in_a_dispatch_changes_no_bit(problem, model, params):
    mesh = meshes.make(1)
    ends = []
    for counts in ((6,), (1, 3, 2)):
        state, data, one, _ = setup(problem, model, params, mesh, optim.ALL)
        chunk = step.many(one)
        for count in counts:
            state, _ = chunk(state, jnp.int32(count), data, jax.random.key(5))
        assert chunk._cache_size() == 1  # and compiles nothing anew
        ends.append(jax.device_get(state))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_that_does_not_divide_by_the_mesh_says_so():
    with pytest.raises(UserError, match=r"config.tune.batch = 30 does not divide by 4 devices; accepted: 28"):
        meshes.check_divides(meshes.make(4), "tune.batch", 30)
    with pytest.raises(UserError, match="there are 8"):
        meshes.make(9)


def test_steps_leave_every_bit_of_the_frozen_leaves(problem, model, params):
    mesh = meshes.make(1)
    state, data, one, _ = setup(problem, model, params, mesh, optim.PROMPT)
    state, _ = step.many(one)(state, jnp.int32(4), data, jax.random.key(5))
    before, after = ([np.asarray(a).tobytes() for a in jax.tree.leaves(t)] for t in (params, state.params["backbone"]))
    assert before == after
    assert np.abs(state.params["prompt"]["tokens_MD"]).max() > 1e-3


def test_dropout_is_on_in_pretraining(problem, params):
    span, row_R, key = problem.span("train", 48, (24,)), jnp.arange(8), jax.random.key(0)
    sizes = {"patch": 12, "width": 16, "mlp": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "patches": 6}
    hiding = {"ratio": 0.5, "tail_share": 0.5, "norm": "window"}
    sums = [
        jax.jit(tasks.reconstruction(CrossMAE(**sizes, dropout=rate), span, **hiding, train=train))(
            {"backbone": params}, Cached(problem.panel), row_R, key
        )[0].sum()
        for rate, train in ((0.0, True), (0.5, True), (0.5, False))
    ]
    assert sums[0] == sums[2]
    assert sums[0] != sums[1]


def test_what_dropout_lets_through_makes_up_for_what_it_does_not():
    block = Block(8, 2, 8, 0.4, 0.0, jnp.float32)
    x = jnp.ones((64, 50, 8))
    out = block.apply({}, x, True, rngs={"dropout": jax.random.key(0)}, method=lambda m, x, train: m.drop(x, train))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.6], rtol=1e-6)
    assert abs(out.mean() - 1) < 0.02


def test_the_state_is_donated(problem, model, params):
    state, data, one, _ = setup(problem, model, params, meshes.make(1), optim.PROMPT)
    step.many(one)(state, jnp.int32(2), data, jax.random.key(5))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.opt_state))


def test_members_side_by_side_are_the_same_on_one_device_and_eight(problem, model, params):
    """Two seeds times two settings, with a cache that holds half of the rows."""
    axes = step.State(step=None, params={"backbone": None, "prompt": 0}, opt_state=0)
    ends = []
    for devices in (1, 8):
        on = problems.prepare(problem.series, meshes.make(devices))
        span, backbone = on.span("train", 48, (12, 20)), meshes.replicate(on.mesh, jax.tree.map(jnp.copy, params))
        alone = {"backbone": backbone, "prompt": prompts.make("position", 2, 16)}
        loss = tasks.forecasting(model, span, penalty="mse")

        def transform(hyper, alone=alone):
            rate, decay = hyper["learning_rate"], hyper["weight_decay"]
            chain = optim.chain(peak=rate, warmup=0.0, steps=20, weight_decay=decay, clip=1.0)
            return optim.PROMPT.transform(chain, alone)

        def build(hyper, loss=loss, on=on, span=span, transform=transform):
            return step.one(loss, transform(hyper), optim.PROMPT, on.mesh, BATCH, span.rows)

        many = jax.tree.map(lambda a: jnp.zeros((2, 2, *a.shape), a.dtype), alone["prompt"])
        opt_state = transform({"learning_rate": 1e-2, "weight_decay": 0.0}).init(alone)
        opt_state = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, 2, *a.shape)), opt_state)
        state = step.State(jnp.int32(0), {"backbone": backbone, "prompt": many}, opt_state)
        whole = encodings.encode_all(model, backbone, on, span, 64, 2**30, jnp.float32)
        data = encodings.encode_all(model, backbone, on, span, 64, whole.encoded_bytes // 2, jnp.float32)
        assert 0 < data.stored < span.rows
        hyper = {"learning_rate": jnp.array([1e-2, 3e-2]), "weight_decay": jnp.array([0.0, 1.0])}
        keys = jax.random.split(jax.random.key(5), 2)
        state, losses = step.many(step.fan(build, axes))(
            meshes.replicate(on.mesh, state), jnp.int32(4), data, keys, hyper
        )
        ends.append(jax.device_get((state.params["prompt"], losses.loss)))
    close(*ends)
    tokens = ends[0][0]["tokens_MD"].reshape(4, -1)
    assert len({row.tobytes() for row in tokens}) == 4
