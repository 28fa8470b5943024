"""What a query of the decoder pays to each patch of the history: the weights that `layers.attend` divides by and does
not return."""

import jax
import jax.numpy as jnp
from jax import Array

from ptt_jax.layers import MASKED, Block, rotate
from ptt_jax.model import CrossMAE, Encoded


def followed(model: CrossMAE, prompts: str = "position") -> bool:
    """Says whether `walk` follows the queries of this model and of this kind of prompt."""
    return model.decoder_attention == "cross" and model.hiding == "feature" and prompts != "layer"


def weigh(block: Block, query_RMD: Array, at_1M: Array, k_RNKh: Array, keep_RN: Array) -> Array:
    """Returns weight_RKMN, what each query of a decoder block pays to each history patch, a head K.

    To be called where the block is bound (see `walk`).
    """
    attention = block.attention
    q_RMKh = attention.query(block.norm_attention(query_RMD)) * (attention.width // attention.heads) ** -0.5
    if attention.longest:
        q_RMKh = rotate(q_RMKh, at_1M, attention.longest)
    q_RMKh = jnp.broadcast_to(q_RMKh, (len(k_RNKh), *q_RMKh.shape[1:]))
    logits_RKMN = jnp.einsum("RMKh,RNKh->RKMN", q_RMKh, k_RNKh, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits_RKMN + jnp.where(keep_RN, 0.0, MASKED)[:, None, None])


def walk(model: CrossMAE, encoded: Encoded, prompt_RMD: Array) -> tuple[list[Array], list[Array], Array]:
    """Returns the queries before the decoder and after each of its blocks, the attention weights of each block, and the
    forecast y_RMP in scaled space: all of the view that is the whole lookback. A method for `model.apply`; a prompt of
    zeros is the mask token alone."""
    at_1M = encoded.keep_RN.shape[1] + jnp.arange(prompt_RMD.shape[1])[None]
    prompt_RMD = prompt_RMD[..., : model.width]  # of the first member; a share of a linear map moves no query
    query_RMD = model.place((model.mask_token[None, None] + prompt_RMD).astype(model.dtype), at_1M)
    states, weights = [query_RMD], []
    for block, read in zip(model.decoder, encoded.memory, strict=True):
        weights.append(weigh(block, query_RMD, at_1M, read[0], encoded.keep_RN))
        query_RMD = block(query_RMD, at_1M, read, encoded.keep_RN)
        states.append(query_RMD)
    y_RMP = model.head(model.decoder_norm(query_RMD))
    return states, weights, y_RMP * encoded.scale_R1[..., None] + encoded.mean_R1[..., None]
