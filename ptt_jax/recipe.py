"""What own data get untouched: patch, lookback, size and steps, from season, length and number of series.

Rules, not searches: what the benchmark sets were found to like (experiments/README.md, Levers), carried over to other
steps and cut down for a short history.
"""

from ml_collections import ConfigDict

from ptt_jax import config
from ptt_jax.errors import UserError

LONGEST_PATCH = 48  # steps: half a day of quarters of an hour, a third of a day of ten minutes
MOST_PATCHES = 30  # of a lookback: a month of hours
LOOKBACK = 720  # steps that a lookback has where the history allows it
SMALL = 20_000  # values in all, below which the model is smaller
EPOCHS = 200  # of pre-training, within these steps: a single series needs as many (experiments/README.md, Own data)
LEAST_STEPS, MOST_STEPS = 800, 5000
MOST_PATCHED = 75_000  # steps times patches of a window: three minutes on two cores
NEAR = 2  # patches: up to there a horizon is short
ENOUGH = 1500  # rows of validation
LOOKED_AT = 8192  # windows of a series of these that choose a prompt: of a hundred series, all would take minutes
SHARE = 12  # a patch is at most this part of the rows
MOST_HORIZON = 96  # steps ahead that nobody asked for


def patch_length(season: int, most: int, lookback: int = 0) -> int:
    """Returns the longest patch of at most `most` steps that divides the season; of a season shorter than 4 steps, or
    one that has no divisor to speak of, whole seasons, or half of what is allowed. With a lookback it divides that."""
    most = max(1, min(most, LONGEST_PATCH))
    divisors = [p for p in range(1, most + 1) if season % p == 0]
    if season >= 4 and 3 * divisors[-1] >= min(season, most):
        best = divisors[-1]
    else:
        whole = [p for p in range(season, most + 1, season) if p <= max(16, season)]
        best = whole[-1] if whole and season < most else max(1, most // 2)
    if lookback % best == 0:
        return best
    dividing = [p for p in range(1, most + 1) if lookback % p == 0]
    return next((p for p in reversed(dividing) if season % p == 0 and 2 * p >= best), dividing[-1])


def recipe(rows: int, channels: int, season: int, horizon: int, patch: int = 0, lookback: int = 0) -> ConfigDict:
    """Returns the config for a series: rows and channels of its values, its season, how far to forecast.

    patch, lookback: taken as they are; 0 = by rule. A lookback is at most a third of the rows, so that training has
    windows to speak of, and at least four patches.

    Raises:
      UserError: fewer rows than a model can learn from.
    """
    need = least_rows(horizon)
    if rows < need:
        raise UserError(
            f"series of {rows} rows are too short; accepted: at least {need} to learn to forecast {horizon}, or a "
            f"smaller horizon"
        )
    learned = rows - validation_rows(rows, horizon) - horizon  # lookbacks and windows of training share these
    most = max(4, min(LOOKBACK, learned // 2, rows // 3))
    patch = patch or patch_length(season, max(1, (lookback or most) // 4), lookback)
    lookback = lookback or patch * max(1, min(most // patch, MOST_PATCHES))
    cfg = config.default()
    cfg.lookback, cfg.views, cfg.horizons = lookback, 3 if lookback // patch >= 6 else 1, (horizon,)
    cfg.model.patch = patch
    # In scaled units a window weighs as much as it moves: of a channel that mostly stands still (holidays, rain), the
    # few steps that move are hundreds of spreads of what is visible, and would be all that is learned.
    cfg.pretrain.update(norm="visible", batch=224, flip=0.5, blend=0.5, average=0.99, loss="huber", units="scaled")
    if horizon <= NEAR * patch:  # few patches are hidden in a forecast, and so in pre-training
        cfg.pretrain.update(mask_ratio=0.3, tail_share=0.5)
    cfg.pretrain.choose = "forecast"  # what it is for; a better reconstruction may be a worse forecast
    cfg.tune.update(loss="mae", steps=300, batch=224, validation_rows=LOOKED_AT)
    # Two forecasts that err differently are better together: a linear map takes its share in the end, drawn to the last
    # value where nothing else can be known (rates of exchange).
    cfg.model.linear, cfg.pretrain.linear_towards, cfg.tune.linear_when = True, "either", "after"
    if rows * channels < SMALL:
        cfg.model.encoder_layers = 2  # of the usual width: a narrower model was no better
    windows = max(rows - lookback - horizon, 1) * channels
    most_steps = min(MOST_STEPS, MOST_PATCHED // (lookback // patch + -(-horizon // patch)))
    cfg.pretrain.steps = int(min(max(EPOCHS * windows / cfg.pretrain.batch, LEAST_STEPS), most_steps))
    if windows > cfg.tune.steps * cfg.tune.batch:
        cfg.tune.cache_bytes = 0  # hardly a row is asked for twice
    return cfg


def usual_horizon(rows: int, season: int) -> int:
    """Returns how far to forecast where nobody says: a season, or as much of it as MOST_HORIZON and the rows allow."""
    return max(1, min(season, MOST_HORIZON, ((rows - 1) * (SHARE - 1) // SHARE - 10) // 2))


def least_rows(horizon: int) -> int:
    """Returns how many rows a model needs to learn from."""
    return (2 * horizon + 10) * SHARE // (SHARE - 1) + 1


def validation_rows(rows: int, horizon: int) -> int:
    """Returns how many rows at the end choose and calibrate: a fifth of a short history, of a long one as many as tell
    enough; two horizons where a third of the rows holds them, and always one in whole patches."""
    return max(min(max(min(rows // 5, ENOUGH), 2 * horizon), rows // 3), horizon + rows // SHARE)
