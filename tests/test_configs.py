"""Every file in configs/ sets differences from the default, passes the check and builds a model."""

from pathlib import Path

import pytest

from ptt_jax import architecture, benchmarks, config, data, flags
from ptt_jax.errors import UserError
from ptt_jax.knobs import KNOBS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
EXPECTED = "csv electricity etth1 etth1_light etth2 ettm1 ettm2 exchange ili quickstart traffic weather"


def load(path):
    return flags.load_file(path)


def test_there_is_a_config_for_every_data_set():
    assert [p.stem for p in CONFIGS] == EXPECTED.split()
    assert {load(p).data.name for p in CONFIGS} == {*benchmarks.TABLE, "csv", "generated"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_valid_and_builds_a_model(path):
    cfg = load(path)
    config.check(cfg)
    model = architecture.build(architecture.of(cfg), cfg.compute_dtype)
    assert architecture.count(architecture.shapes(model)) > 1000
    text = path.read_text(encoding="utf-8")
    assert f"--config=configs/{path.name}" in text.split('"""')[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_windows_fit_the_splits_of_the_benchmark(path):
    cfg = load(path)
    if cfg.data.name not in benchmarks.TABLE:
        pytest.skip("no row of TABLE")
    row = benchmarks.TABLE[cfg.data.name]
    months = row.split == "months"
    borders = data.by_months(row.freq) if months else data.by_fractions(row.rows, tuple(cfg.data.split), path)
    for begin, end in borders.values():
        assert end - begin >= cfg.horizons[-1]
    longest = -(-cfg.horizons[-1] // cfg.model.patch) * cfg.model.patch
    assert borders["train"][1] >= cfg.lookback + longest


def test_json_and_back_is_the_same_config():
    cfg = config.default()
    assert config.from_json(config.to_json(cfg)) == cfg
    assert config.differences(config.from_json(config.to_json(cfg)), cfg) == {}


def test_what_changes_no_result_is_no_difference():
    a, b = config.default(), config.default()
    b.tune.cache_bytes = 1
    b.data.dir = "elsewhere"
    assert config.differences(a, b) == {}
    assert config.content_hash(a) == config.content_hash(b)
    b.tune.batch = 7
    assert config.differences(a, b) == {"tune.batch": (448, 7)}
    assert config.content_hash(a) != config.content_hash(b)


@pytest.mark.parametrize("key", [key for key, *_ in KNOBS])
def test_a_value_of_the_wrong_kind_is_named(key):
    cfg = config.default()
    section, _, name = key.rpartition(".")
    holder = cfg[section] if section else cfg
    with holder.ignore_type():
        holder[name] = object()
    with pytest.raises(UserError, match=f"config.{key} = "):
        config.check(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1), ("lookback", 0), ("lookback", 100), ("horizons", ()), ("horizons", (96, 96)),
        ("horizons", (0, 5)), ("horizons", (720, 96)), ("horizons", (2.5,)), ("data.split", (0.5, 0.5)),
        ("data.split", (0.9, 0.9, 0.2)), ("model.width", 60), ("model.heads", 3), ("model.dropout", 1.0),
        ("model.position", "absolute"),
        ("pretrain.mask_ratio", 1.0), ("pretrain.mask_ratio", 0.0), ("pretrain.epochs", -1.0),
        ("pretrain.epochs", float("inf")), ("pretrain.learning_rate", float("nan")), ("pretrain.horizon", -2),
        ("pretrain.tail_share", 1.5), ("pretrain.choose", "test"), ("tune.loss", "rmse"), ("tune.prompts", "deep"),
        ("tune.weight_decay", -1.0), ("compute_dtype", "float64"), ("evaluate.batch", 0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_one_sentence_with_what_is_accepted(key, value):
    cfg = config.default()
    section, _, name = key.rpartition(".")
    (cfg[section] if section else cfg)[name] = value
    with pytest.raises(UserError, match=r"accepted: ") as e:
        config.check(cfg)
    assert name in str(e.value) or "model" in key
    assert "\n" not in str(e.value)
