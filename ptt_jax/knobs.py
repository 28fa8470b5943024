"""Every knob with its default, what it accepts, and its legend. Nothing else in the package knows a default."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a knob accepts: a predicate, and the words for it in an error."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: float) -> Rule:
    return Rule(lambda v: low <= v < float("inf"), f"a number of at least {low}")


def within(low: float, high: float) -> Rule:
    return Rule(lambda v: low <= v <= high, f"a number from {low} to {high}")


def count(low: int, high: int = 2**31 - 1) -> Rule:
    return Rule(lambda v: low <= v <= high, f"a whole number from {low} to {high}")


def one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, "one of " + ", ".join(names))


def is_horizons(v: Any) -> bool:
    return len(v) > 0 and all(type(h) is int and 0 < h < 2**31 for h in v) and list(v) == sorted(set(v))


def is_positives(v: Any) -> bool:
    return is_decays(v) and all(r >= TINY for r in v)


def is_decays(v: Any) -> bool:
    return all(type(r) in (int, float) and (r == 0 or TINY <= r <= HUGE) for r in v) and len(v) == len(set(v))


def is_shares(v: Any) -> bool:
    return is_decays(v) and len(v) > 0 and all(s < 1 for s in v)


def is_ratios(v: Any) -> bool:
    return is_positives(v) and len(v) > 0 and all(r < 1 for r in v)


def is_levels(v: Any) -> bool:
    return is_decays(v) and all(0 < r < 100 for r in v)


def is_range(v: Any) -> bool:
    return is_positives(v) and len(v) == 2 and v[0] < v[1] <= 1e6


def is_quantiles(v: Any) -> bool:
    return len(v) != 1 and all(type(q) is float and 0 < q < 1 for q in v) and list(v) == sorted(set(v))


def is_split(v: Any) -> bool:
    return len(v) == 3 and all(type(f) in (int, float) and f > 0 for f in v) and abs(sum(v) - 1) < 1e-6


PARTS = ("embed", "encoder", "mask_token", "decoder", "head")  # model.LEARNED, which stands higher in the house


def is_parts(v: Any) -> bool:
    return v in ("", "all") or set(v.split(",")) <= {*PARTS}


anything = Rule(lambda v: True, "")
open_fraction = Rule(lambda v: 0 < v < 1, "a number between 0 and 1, both excluded")
TINY, HUGE = 1e-30, 1e30  # what float32 and its square root hold
positive = Rule(lambda v: TINY <= v <= HUGE, f"a number above 0, from {TINY:g} to {HUGE:g}")
decay = Rule(lambda v: v == 0 or TINY <= v <= HUGE, f"0 or a number from {TINY:g} to {HUGE:g}")

# fmt: off
# key, default, what it accepts, legend
KNOBS: tuple[tuple[str, Any, Rule, str], ...] = (
    ("seed", 0, within(0, 2**32 - 1), "root of every random number: weights, masks, dropout, order of rows"),
    ("lookback", 504, count(1), "T, steps of history that the model reads; a multiple of model.patch"),
    ("horizons", (96, 192, 336, 720), Rule(is_horizons, "whole numbers above 0, ascending, like 96,192 or 48,"),
     "H, steps to forecast; all of them are tuned in one run"),
    ("views", 1, count(1, 1000),
     "lookbacks whose forecasts are averaged: the whole one and evenly shorter ones, in whole patches; 3 of 720: 720, "
     "480, 240; a new head (tune.mode probe, head) and the linear model read the whole one alone"),
    ("backbone", "", anything, "run directory whose backbone is tuned on; '' = pre-train one here"),
    ("compute_dtype", "float32", one_of("float32", "bfloat16"),
     "of matrix products and activations; parameters, statistics, softmax and loss stay float32"),
    ("devices", 0, count(0), "how many devices the data mesh takes; 0 = all (their number may move the last digit)"),
    ("cache_dir", "default", anything,
     "persistent compilation cache; 'default' = in the user's cache folder, '' = off"),

    ("output", "", anything,
     "forecast, impute, detect: the .csv or .parquet file to write (forecast: .html, too); export: the .stablehlo"),
    ("levels", (80.0, 95.0), Rule(is_levels, "percentages between 0 and 100 like 80,95 or 90,"),
     "forecast: of intervals, in percent"),

    ("data.name", "generated", anything, "a row of benchmarks.TABLE (ETTh1, Weather, ...), 'generated', or 'csv'"),
    ("data.path", "", anything, "csv: the file, .csv, .csv.gz or .parquet"),
    ("data.dir", "", anything, "where benchmark files are looked for first, before $PTT_DATA_DIR and the cache folder"),
    ("data.download", True, anything, "fetch a benchmark file that is found nowhere, where it has a public home"),
    ("data.device_bytes", 4 * 1024**3, at_least(0),
     "of each device for the series; a larger one is streamed from the host (needs grain), and no encoding is cached"),
    ("data.time_column", "", anything, "csv: column of time stamps; '' = found by name or content"),
    ("data.columns", "", anything, "csv: channels, comma-separated; '' = every column of numbers"),
    ("data.split", (0.7, 0.1, 0.2), Rule(is_split, "three fractions above 0 that sum to 1"),
     "train, validation, test share of the rows, in time order (ETT has its own borders)"),
    ("data.freq", "", anything, "csv: step as a pandas offset alias like 'h' or '15min'; '' = inferred"),
    ("data.rows", 4320, count(1), "generated: number of steps"),
    ("data.channels", 4, count(1), "generated: number of channels"),
    ("data.seed", 0, at_least(0), "generated: seed of the series"),

    ("model.patch", 24, count(1), "P, steps in a patch; best a divisor or multiple of the season"),
    ("model.width", 64, count(1, 65536), "D, width of a token; a multiple of model.heads"),
    ("model.mlp", 128, count(1, 65536), "F, hidden width of the MLP in each block"),
    ("model.heads", 4, count(1, 32768), "K, attention heads"),
    ("model.encoder_layers", 3, count(1, 256), "self-attention blocks over visible patches"),
    ("model.decoder_layers", 1, count(1, 256),
     "cross-attention blocks: queries are mask tokens, keys are visible patches"),
    ("model.dropout", 0.1, Rule(lambda v: 0 <= v < 1, "a number from 0 to below 1"),
     "on each block's outputs, wherever the encoder learns"),
    ("model.position", "rotary", one_of("rotary", "sincos", "sincos10000", "learned"),
     "how tokens and queries know where they are; sincos has periods that fit the window, sincos10000 the usual base"),
    ("model.decoder_attention", "cross", one_of("cross", "self"),
     "cross: queries read visible patches alone, and a short horizon's are a prefix of a long one's; self: first they "
     "see each other, a forecast depends on all that is asked, and the longest horizon is always asked, then cut"),
    ("model.hiding", "feature", one_of("feature", "value"),
     "feature: hidden patches are absent from the encoder; value: they enter it as zeros, the mean"),
    ("model.members", 1, count(1, 64),
     "networks in a backbone: they learn side by side, each from weights and masks of its own, and a forecast is the "
     "mean of theirs; a prompt has tokens for each, and other tasks ask the first one"),
    ("model.linear", False, anything,
     "whether the backbone holds a linear map from history to future, too, solved in closed form and frozen like the "
     "rest; a prompt says what share of the forecast it has"),

    ("pretrain.epochs", 6.0, Rule(lambda v: 0 <= v <= 1e9, "a number from 0 to 1e9"),
     "passes over all training rows (window x channel); fractions are fine; 0.0 = none, a random backbone as control"),
    ("pretrain.steps", 0, count(0), "optimisation steps; above 0 it replaces epochs"),
    ("pretrain.batch", 448, count(1), "R, rows in a step: 448 = 64 windows of 7 channels"),
    ("pretrain.learning_rate", 1e-3, positive, "peak of a warm-up and cosine schedule"),
    ("pretrain.warmup", 0.1, within(0, 1), "share of the steps that the learning rate rises"),
    ("pretrain.weight_decay", 0.01, decay, "AdamW, on kernels only"),
    ("pretrain.clip", 1.0, positive, "largest norm of a step's gradient"),
    ("pretrain.horizon", -1, count(-1),
     "steps that a window covers past the lookback; 0 = none, -1 = the longest horizon"),
    ("pretrain.also", "", anything,
     "further series to learn from, each as often as the first: names of data sets and files (from here, or else from "
     "where benchmark files lie), comma-separated"),
    ("pretrain.mask_ratio", 0.6, open_fraction, "share of a window's patches that is hidden"),
    ("pretrain.tail_share", 0.25, within(0, 1), "share of rows whose hidden patches include the window's tail"),
    ("pretrain.loss", "mse", one_of("mse", "mae", "huber"), "of hidden patches"),
    ("pretrain.units", "normalised", one_of("normalised", "scaled"),
     "of that loss: every window weighs alike, or as much as it moves, as in a forecast's error"),
    ("pretrain.norm", "window", one_of("window", "visible"), "what instance normalisation sees in pre-training"),
    ("pretrain.flip", 0.0, within(0, 1), "share of rows that are turned upside down"),
    ("pretrain.blend", 0.0, within(0, 1), "share of rows that are a random blend of two windows of the batch"),
    ("pretrain.average", 0.0, Rule(lambda v: 0 <= v < 1, "a number from 0 to below 1"),
     "decay of the moving average of the weights that becomes the backbone; 0.0 = the last weights"),
    ("pretrain.linear_towards", "mean", one_of("mean", "last", "either"),
     "what a large ridge draws the forecast of model.linear to: the history's mean, its last value, or either, as "
     "validation chooses"),
    ("pretrain.choose", "reconstruction", one_of("reconstruction", "forecast", "last"),
     "which validation loss picks the weights and stops early; its masks are fixed for the whole run"),
    ("pretrain.validations", 6, count(1), "how many times validation is looked at, evenly spread"),
    ("pretrain.validation_rows", 4096, count(1), "rows of the validation split that are looked at, drawn once"),
    ("pretrain.patience", 4, count(1), "validations without a better one before pre-training stops"),

    ("tune.mode", "prompt", one_of("prompt", "probe", "head", "full", "thaw"),
     "what learns: prompt tokens; or, to compare with, a new linear head (probe), it and the encoder (head), all of "
     "the Cross-MAE, asked by its mask token (full), or prompt tokens and parts of the backbone (thaw)"),
    ("tune.thaw", "", Rule(is_parts, "'' or 'all' or some of " + ",".join(PARTS)),
     "thaw: the parts that learn with the prompt, comma-separated"),
    ("tune.epochs", 1.0, Rule(lambda v: 0 < v <= 1e9, "a number above 0, up to 1e9"), "passes over all training rows"),
    ("tune.steps", 0, count(0), "optimisation steps; above 0 it replaces epochs"),
    ("tune.share", 1.0, Rule(lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
     "few-shot: share of the training windows that the task learns from, the first ones; a backbone saw all of its"),
    ("tune.batch", 448, count(1), "R, rows in a step"),
    ("tune.learning_rate", 1e-3, positive, "peak of a warm-up and cosine schedule"),
    ("tune.warmup", 0.1, within(0, 1), "share of the steps that the learning rate rises"),
    ("tune.weight_decay", 0.0, decay,
     "AdamW's pull of prompts towards zero, that is, towards the zero-shot forecast; of kernels under other modes"),
    ("tune.seeds", 1, count(1, 1000),
     "prompts of so many seeds, from `seed` on, in one run: results have their mean and spread"),
    ("tune.learning_rates", (), Rule(is_positives, "numbers above 0 like 3e-4,1e-3 or 1e-3,"),
     "sweep in one run; each horizon takes what is best on validation; () = tune.learning_rate"),
    ("tune.weight_decays", (), Rule(is_decays, "numbers of at least 0 like 0.0,0.1 or 0.1,"),
     "sweep in one run, with each learning rate; () = tune.weight_decay"),
    ("tune.linear_shares", (0.0, 0.25, 0.5, 0.75), Rule(is_shares, "different numbers from 0 to below 1 like 0.0,0.5"),
     "sweep in one run where the backbone holds a linear map: its share of the forecast; prompts learn beside each, "
     "and each horizon takes what is best on validation"),
    ("tune.linear_when", "beside", one_of("beside", "after"),
     "where the backbone holds a linear map: prompts learn beside each of tune.linear_shares; or alone, once, and what "
     "was best takes the share from 0 to 0.75 that is best on validation after that, by absolute error where tune.loss "
     "is mae"),
    ("tune.clip", 1.0, positive, "largest norm of a step's gradient, over what learns"),
    ("tune.prompts", "position", one_of("position", "shared", "channel", "layer"),
     "one prompt token for each future patch, one for all, one for each channel and future patch, or one for each "
     "future patch at each block of the decoder"),
    ("tune.loss", "mse", one_of("mse", "mae", "huber"), "of the forecast in scaled space"),
    ("tune.quantiles", (), Rule(is_quantiles, "two numbers between 0 and 1 or more, ascending, like 0.1,0.5,0.9"),
     "quantiles to forecast, each by a prompt of its own, tuned by pinball loss from the forecast's on; () = none"),
    ("tune.quantile_rate", 1e-1, positive, "peak learning rate of quantile prompts, which have further to go"),
    ("tune.validations", 4, count(1), "how many times validation is looked at, besides step 0"),
    ("tune.validation_rows", 0, count(0),
     "rows of the validation split that are looked at, drawn once; 0 = all of them"),
    ("tune.patience", 4, count(1), "validations in which no horizon gets better before tuning stops"),
    ("tune.watch_train", 0, count(0),
     "training rows, drawn once, whose error is looked at whenever validation is, without dropout; chooses nothing; "
     "0 = none"),
    ("tune.cache_bytes", 2 * 1024**3, at_least(0),
     "of each device for the frozen encoder's outputs; rows past it are encoded at each step"),
    ("tune.cache_dtype", "compute", one_of("compute", "bfloat16"),
     "the cache's numbers: as computed, or bfloat16, which holds twice as many rows of float32 (rows past it are "
     "rounded alike)"),

    ("impute.kind", "points", one_of("points", "blocks"), "what imputation hides: single values, or runs of them"),
    ("impute.ratios", (0.125, 0.25, 0.375, 0.5), Rule(is_ratios, "numbers between 0 and 1 like 0.125,0.5 or 0.25,"),
     "shares of the observed values that are hidden; a row draws one, so that one prompt serves all"),
    ("impute.blocks", (0.25, 2.0), Rule(is_range, "two numbers above 0, ascending, up to 1e6"),
     "shortest and longest hidden block, in seasons"),
    ("impute.fill", "season", one_of("mean", "line", "season"),
     "what the encoder reads at the gaps of a patch that is seen in part"),
    ("impute.reach", 0.5, within(0, 10**6),
     "patches from the nearest seen value at which its pull on an imputed one has faded to 1/e; 0.0 = no pull"),

    ("detect.score", "reconstruction", one_of("reconstruction", "forecast"),
     "of a step: its error when its patch is hidden between visible ones, or when only the past is visible"),
    ("detect.window", 0, count(0), "steps of a window, a multiple of the patch; 0 = the backbone's lookback"),
    ("detect.groups", 2, count(2), "reconstruction: interleaved groups of patches, hidden one after the other"),
    ("detect.stride", 0.5, Rule(lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
     "from one window to the next, as share of a window; forecast: the share that is hidden, its end"),
    ("detect.units", "window", one_of("scaled", "window"),
     "of an error: the channel's spread in training, or that of the window's visible patches"),
    ("detect.combine", "mean", one_of("mean", "max"), "how the errors of channels become one score"),

    ("evaluate.batch", 1024, count(1), "rows in a step of evaluation; changes no figure"),
    ("evaluate.test", True, anything,
     "whether the test split is scored; off while something is chosen: no test value then enters anything"),
    ("evaluate.intervals", True, anything,
     "whether results.csv says how often intervals hold, and the CRPS, calibrated on validation; changes no error"),
    ("evaluate.samples", 6, count(1, 1000), "forecasts that are kept for the report's pictures"),
)
# fmt: on

# What may differ between two calls on one run directory: where things lie (content hashes guard them) and how fast.
FREE = (
    "cache_dir", "devices", "output", "levels", "data.dir", "data.download", "data.device_bytes", "tune.cache_bytes",
    "evaluate.batch", "evaluate.intervals",
)  # fmt: skip
