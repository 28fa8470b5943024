"""What a forecast must beat: the last season again, a linear map, and a conventional head on the same backbone.

Arrays in, y_RH out.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ptt_jax import cache, prompts, tasks
from ptt_jax import mesh as meshes
from ptt_jax.encodings import Cached
from ptt_jax.layers import centre, flatten
from ptt_jax.model import CrossMAE
from ptt_jax.problems import Problem
from ptt_jax.windows import Span, Windows, past, shuffle, stretch, take

BLOCK = 1024  # rows of one Gram update, or a few more where they do not divide by the mesh
AHEAD = 2  # blocks that are asked for before the first one is fetched: with it, as many as a stream keeps alive
MOST_ROWS = 100_000  # drawn from the training rows: far more than the map has inputs, and seconds to fit
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the mean diagonal of the Gram matrix; chosen on validation
STRONGER = (1e1, 1e2, 1e3)  # towards the last value, which is a forecast of its own; the mean is none


def seasonal_naive(x_RT: Array, season: int, horizon: int) -> Array:
    """Returns y_RH, the last season repeated; the last value when the history is shorter than a season."""
    lookback = x_RT.shape[1]
    season = season if season <= lookback else 1
    return x_RT[:, lookback - season + jnp.arange(horizon) % season]


def fit_linear(
    problem: Problem, train: Span, validation: Span, also: Sequence[tuple[Problem, Span]] = (), towards: str = "mean"
) -> np.ndarray:
    """Returns weights_TH of `layers.linear` in closed form, ridge regression with the ridge chosen on validation (Toner
    and Darlow 2024 show that least squares does what DLinear's training approaches).

    Missing targets are filled with the fit's own prediction, twice (EM); with none missing one solution is exact.
    also: further series and the windows of them that teach, too. towards: what a large ridge draws the forecast to, the
    history's 'mean', its 'last' value (what moves without a rule, like a rate of exchange, is forecast no better), or
    'either', as validation chooses.
    """
    taught = ((problem, train), *also)
    weights_TH, complete = None, all(bool(of.panel.observed_CT.all()) for of, _ in taught)
    for _ in range(1 if complete else 3):
        each = [moments(of, span, weights_TH) for of, span in taught]
        grams, crosses, _ = zip(*each, strict=True)
        gram, cross = np.sum(grams, 0), np.sum(crosses, 0)
        gram_v, cross_v, power_v = moments(problem, validation, weights_TH)
        scale = np.trace(gram) / len(gram) or 1.0  # a series that never moves
        fits = [
            np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), cross + ridge * scale * drawn_TH)
            for drawn_TH, ridges in pulls(towards, cross)
            for ridge in ridges
        ]
        losses = [power_v - 2 * np.sum(w * cross_v) + np.sum(w * (gram_v @ w)) for w in fits]
        weights_TH = jnp.asarray(fits[int(np.argmin(losses))], jnp.float32)
    return np.asarray(weights_TH)


def pulls(towards: str, like_TH: np.ndarray) -> list[tuple[np.ndarray, tuple[float, ...]]]:
    """Returns the weights that ridges draw to, and those ridges. Histories are around their mean: zeros forecast it."""
    mean_TH = np.zeros_like(like_TH)
    last_TH = mean_TH.copy()
    last_TH[-1] = 1
    both = {"mean": (mean_TH, RIDGES), "last": (last_TH, (*RIDGES, *STRONGER))}
    return [both[towards]] if towards in both else [*both.values()]


def moments(problem: Problem, span: Span, weights_TH: Array | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns X'X (T, T), X'Y (T, H) and the sum of squared targets, float64, over windows of the longest horizon."""
    used, size = min(span.counts[-1] * span.channels, MOST_ROWS), -(-BLOCK // problem.mesh.size) * problem.mesh.size
    order, block = gathering(problem.mesh, span, used, size)
    totals = [np.zeros((span.lookback, span.lookback)), np.zeros((span.lookback, span.horizons[-1])), np.zeros(())]
    feed = problem.panel.feed(span, lambda i: order(stretch(i * size, size, used)[0])[None], -(-used // size))
    asked: deque[tuple[Array, Array, Array]] = deque()

    def add() -> None:
        for total, part in zip(totals, asked.popleft(), strict=True):
            total += np.asarray(part, np.float64)

    for i, fed in enumerate(feed):
        asked.append(block(fed, weights_TH, jnp.int32(i * size)))
        if len(asked) > AHEAD:  # else the device would wait for each sum to be fetched
            add()
    while asked:
        add()
    return totals[0], totals[1], float(totals[2])


@cache.kept
def gathering(mesh: Mesh, span: Span, used: int, size: int) -> tuple[Callable, Callable]:
    """Returns the order of the rows that `moments` uses, and the sums of a block of `size` of them, under jit."""
    rows = span.counts[-1] * span.channels

    @jax.jit
    def order(at_R: Array) -> Array:
        return shuffle(jax.random.key(0), at_R, rows)

    @jax.jit
    def block(panel: Windows, weights_TH: Array | None, first: Array) -> tuple[Array, Array, Array]:
        at_R, real_R = meshes.split(mesh, stretch(first, size, used))
        x_RL, observed_RL = take(panel.at(0), span, order(at_R))
        history, target = slice(0, span.lookback), slice(span.lookback, None)
        x_RT, mean_R1 = centre(x_RL[:, history], observed_RL[:, history])
        x_RT = x_RT * real_R[:, None]
        dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # a ridge of 1e-4 needs the digits
        filled_RH = 0.0 if weights_TH is None else dot(x_RT, weights_TH)
        y_RH = jnp.where(observed_RL[:, target], x_RL[:, target] - mean_R1, filled_RH) * real_R[:, None]
        x_TR = x_RT.T
        return meshes.whole(mesh, (dot(x_TR, x_RT), dot(x_TR, y_RH), jnp.square(y_RH).sum()))

    return order, block


def make_probe(model: CrossMAE, lookback: int, horizon: int) -> dict[str, Array]:
    """Returns a conventional head of zeros: learning begins at the history's mean, as prompts do at zero-shot."""
    return {"kernel": jnp.zeros((lookback // model.patch * model.width, horizon)), "bias": jnp.zeros(horizon)}


def probe(model: CrossMAE, params: Any, x_RT: Array, observed_RT: Array, dropout_key: Array | None = None) -> Array:
    """Returns y_RH from the encoder and a new head: all of a history's encodings, one linear map (PatchTST, Nie et al.
    2023). Mask token, decoder and reconstruction head of the backbone are left out.

    params {'backbone', 'probe': {'kernel': (N * D, H), 'bias': (H,)}}. Unlike a prompt, a head belongs to one lookback,
    and where the encoder learns with it, to one horizon. With a dropout_key the encoder drops as in pre-training.
    """
    variables, train = {"params": params["backbone"]}, dropout_key is not None
    rngs = {"dropout": cast(Array, dropout_key)} if train else {}
    outputs = model.apply(variables, x_RT, observed_RT, train=train, rngs=rngs, method=model.read)
    z_RND, keep_RN, mean_R1, scale_R1 = cast(tuple[Array, ...], outputs)
    z_RND = z_RND[:, : keep_RN.shape[1]]  # under hiding 'value' a future follows
    z_RND = jnp.where(keep_RN[..., None], z_RND, 0)  # where nothing was seen there is nothing to say
    kernel = params["probe"]["kernel"].astype(model.dtype)
    y_RH = jnp.dot(flatten(z_RND), kernel, preferred_element_type=jnp.float32) + params["probe"]["bias"][None]
    return y_RH * scale_R1 + mean_R1


def forecast(
    model: CrossMAE, params: Any, x_RT: Array, observed_RT: Array, channel_R: Array, horizon: int, longest: int
) -> Array:
    """Returns y_RH in scaled space: of the probe if the parameters have one, else of the mask token, with the prompt if
    they have one. longest: the horizon that is asked where queries see each other, and cut."""
    if "probe" in params:
        return probe(model, params, x_RT, observed_RT)[:, :horizon]
    asked = longest if model.decoder_attention == "self" else horizon
    count, prompt = prompts.patches(asked, model.patch), params.get("prompt")
    tokens = None if prompt is None else prompts.tokens(prompt, count, channel_R)
    variables = {"params": params["backbone"]}
    y_RH = cast(Array, model.apply(variables, x_RT, observed_RT, tokens, asked, method=model.forecast))
    return y_RH[:, :horizon]


def probing(model: CrossMAE, span: Span, *, penalty: str, train: bool = False) -> tasks.Loss:
    """Returns the loss of `probe`: on the rows, targets and units of `tasks.forecasting`; train: with dropout.

    `optim.PROBE` freezes the backbone; `optim.HEAD` is full fine-tuning.
    """

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        y_RH = probe(model, params, *past(data.panel, span, row_R), key if train else None)
        return tasks.errors(y_RH, data.panel, span, row_R, penalty)

    return loss


def retraining(model: CrossMAE, span: Span, *, penalty: str) -> tasks.Loss:
    """Returns the loss of full fine-tuning without a new part: the mask token asks, all of the Cross-MAE learns, with
    dropout. Rows, targets and units are those of `tasks.forecasting`."""

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        x_RT, observed_RT = past(data.panel, span, row_R)
        variables, rngs, horizon = {"params": params["backbone"]}, {"dropout": key}, span.horizons[-1]
        ask = functools.partial(model.apply, rngs=rngs, method=model.forecast)
        y_RH = cast(Array, ask(variables, x_RT, observed_RT, None, horizon, train=True))
        return tasks.errors(y_RH, data.panel, span, row_R, penalty)

    return loss


def thawing(model: CrossMAE, span: Span, *, penalty: str, thawed: tuple[str, ...]) -> tasks.Loss:
    """Returns the loss of tuning in which parts of the backbone (`model.LEARNED`) learn with the prompt: encoder and
    decoder drop where they learn. Rows, targets and units are those of `tasks.forecasting`, which serves as it is where
    neither learns, and so from the cache."""
    encoder, decoder = bool({"embed", "encoder"} & {*thawed}), "decoder" in thawed
    if not encoder and not decoder:
        return tasks.forecasting(model, span, penalty=penalty)

    def loss(params: Any, data: Cached, row_R: Array, key: Array) -> tuple[Array, Array]:
        count = prompts.patches(span.horizons[-1], model.patch)
        tokens = prompts.tokens(params["prompt"], count, row_R % span.channels)

        def ask(m: CrossMAE, x_RT: Array, observed_RT: Array) -> Array:
            encoded = m.observe(x_RT, observed_RT, train=encoder)
            return m.foretell(encoded, jnp.arange(count), tokens, train=decoder)

        variables, history = {"params": params["backbone"]}, past(data.panel, span, row_R)
        y_RMP = cast(Array, model.apply(variables, *history, rngs={"dropout": key}, method=ask))
        return tasks.errors(flatten(y_RMP)[:, : span.horizons[-1]], data.panel, span, row_R, penalty)

    return loss
