"""The weights that are recomputed are those that the decoder computes with."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import attention
from ptt_jax.model import CrossMAE, init


@pytest.fixture(scope="module", params=["rotary", "sincos"])
def asked(request):
    """A model of two decoder blocks, its weights, and a prompt: everything large enough to show."""
    model = CrossMAE(
        patch=12, width=16, mlp=16, heads=2, encoder_layers=1, decoder_layers=2, patches=6, position=request.param
    )
    params = init(model, jax.random.key(3))
    params["mask_token"] = 50 * params["mask_token"]
    return model, {"params": params}, jax.random.normal(jax.random.key(5), (1, 3, 16))


def test_recomputed_attention_reproduces_each_block_and_the_forecast(asked, history):
    model, variables, prompt_RMD = asked
    x_RT, observed_RT = history
    observed_RT = observed_RT.at[0, 12:24].set(False)  # a patch that nobody may read
    encoded = jax.jit(lambda: model.apply(variables, x_RT, observed_RT, method=model.observe))()

    def by_hand(model, encoded, states, weights):
        out = []
        for block, (_, v_RNKh), query_RMD, weight_RKMN in zip(
            model.decoder, encoded.memory, states, weights, strict=False
        ):
            read_RMD = block.attention.out(jnp.einsum("RKMN,RNKh->RMKh", weight_RKMN, v_RNKh))
            after_RMD = query_RMD + read_RMD
            out.append(after_RMD + block.mlp_out(nn.gelu(block.mlp_in(block.norm_mlp(after_RMD)))))
        return out

    states, weights, y_RMP = jax.jit(lambda: model.apply(variables, encoded, prompt_RMD, method=attention.walk))()
    assert (len(states), len(weights)) == (3, 2)
    again = jax.jit(lambda: model.apply(variables, encoded, states, weights, method=by_hand))()
    for ours, theirs in zip(again, states[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    told = jax.jit(lambda: model.apply(variables, encoded, jnp.arange(3), prompt_RMD[0], method=model.foretell))()
    np.testing.assert_allclose(y_RMP, told, rtol=1e-4, atol=1e-5)
    for weight_RKMN in weights:
        np.testing.assert_allclose(weight_RKMN.sum(-1), 1, rtol=1e-5)
        assert float(weight_RKMN[0, :, :, 1].max()) == 0
        assert float(weight_RKMN[1, :, :, 1].min()) > 0
