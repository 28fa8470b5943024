"""What the table's models forecast, without a run."""

import jax
import jax.numpy as jnp
import numpy as np

from ptt_jax import score


def test_quantile_forecasts_of_the_table_never_cross_whatever_their_prompts_learned(model, params, problem):
    span, rng = problem.span("test", 48, (12, 20)), np.random.default_rng(0)
    tokens_QMD = jnp.asarray(50 * rng.normal(size=(3, 2, 16)), jnp.float32)
    inputs = {
        "backbone": params, "weights_TH": jnp.zeros((48, 20)),
        "tuned": {h: [{"tokens_MD": tokens_QMD[1]}] for h in span.horizons},
        "quantiles": {h: [{"tokens_MD": tokens_QMD}] for h in span.horizons},
    }  # fmt: skip
    forecasts = score.models(model, 24, (0,), levels=3)
    found = jax.jit(lambda panel, inputs: forecasts(panel, inputs, span, jnp.arange(9)))(problem.panel, inputs)
    for point_RH, y_QRH in zip(found["prompt 0"], found["quantile 0"], strict=True):
        assert (jnp.diff(y_QRH, axis=0) >= 0).all()
        assert (y_QRH == point_RH[None]).any(0).all()  # one is the second prompt's
        assert (y_QRH[1] != point_RH).any()  # which is not always between the two others'
