"""An exported program gives the forecast of `Predictor`, in a process that has nothing of ptt_jax."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptt_jax import export, manifest
from ptt_jax.errors import UserError
from ptt_jax.model import init
from ptt_jax.predict import Predictor

pytest.importorskip("flatbuffers")

LOOKBACK, HORIZON = 48, 20
ALONE = """
import json, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ptt_jax", "flax", "optax", "orbax", "ml_collections", "pandas"):
            raise ImportError(name + " is not to be had here")

sys.meta_path.insert(0, Wall())
import jax, numpy as np
with open("model.json") as f:
    page = json.load(f)
with open(page["program"]["file"], "rb") as f:
    forecast = jax.jit(jax.export.deserialize(f.read()).call)
history = np.load("history.npy")
np.savez("found.npz", **{str(n): forecast(history[:n]) for n in (1, 3, 100)})
"""


@pytest.fixture(scope="module")
def predictor(model, params):
    """Random weights and a random prompt, three views."""
    prompt = {"tokens_MD": jax.random.normal(jax.random.key(1), (2, 16))}
    return Predictor(model.clone(views=3), params, prompt, LOOKBACK, HORIZON)


@pytest.fixture(scope="module")
def folder(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    predictor(histories(), HORIZON)  # what was traced before says where it comes from
    assert export.write(path / "model.stablehlo", predictor, {"freq": "h"}).exists()
    return path


def histories() -> np.ndarray:
    """100 rows in all sorts of units, a tenth of them missing; and rows 0 to 5, each hard in its own way."""
    rng = np.random.default_rng(0)
    history_RT = rng.normal(size=(100, LOOKBACK)).cumsum(1) * 10 ** rng.uniform(-20, 20, (100, 1))
    history_RT[rng.random(history_RT.shape) < 0.1] = np.nan
    history_RT[0, : LOOKBACK - 5] = np.nan  # it hardly began
    history_RT[1] = np.nan
    history_RT[2, 5:] = 0.1  # it stands still
    history_RT[2, :5] = np.nan
    history_RT[3], history_RT[3, 7] = np.nan, -5.5  # a single value
    history_RT[4] = 0.0
    history_RT[5, -12:] = 1e6  # and it leaps at the end
    return history_RT.astype(np.float32)


def compare(found_RH, predictor, history_RT, tolerance=1e-5):
    history_RT = np.asarray(history_RT, np.float64)
    truth_RH = predictor(history_RT, predictor.horizon)
    np.testing.assert_array_equal(np.isnan(found_RH), np.isnan(truth_RH))
    size_R1 = np.nan_to_num(np.abs(history_RT)).max(1, keepdims=True)
    np.testing.assert_allclose(found_RH / (size_R1 + 1e-30), truth_RH / (size_R1 + 1e-30), rtol=0, atol=tolerance)


def test_a_process_without_ptt_jax_gives_the_same_forecast(folder, predictor):
    np.save(folder / "history.npy", histories())
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        for rows in (1, 3, 100):
            assert found[str(rows)].shape == (rows, HORIZON)
            assert found[str(rows)].dtype == np.float32
            compare(found[str(rows)], predictor, histories()[:rows])
        np.testing.assert_array_equal(found["100"][2], np.float32(0.1))
        np.testing.assert_array_equal(found["100"][3], np.float32(-5.5))
        assert np.isnan(found["100"][1]).all()


def test_the_page_says_what_the_program_is(folder, predictor):
    page = json.loads((folder / "model.json").read_text())
    assert page["notes"] == {key: said for key, said in manifest.NOTES.items() if key != "intervals"}  # it has none
    content = (folder / "model.stablehlo").read_bytes()
    assert page["program"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert page["program"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert page["input"]["shape"] == ["rows", LOOKBACK]
    assert page["output"]["shape"] == ["rows", HORIZON]
    assert page["freq"] == "h"
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith("model")) == ["model.json", "model.stablehlo"]


def test_a_program_names_no_file_of_this_machine_and_is_the_same_every_time(folder, predictor):
    content = (folder / "model.stablehlo").read_bytes()
    for trace in (b".py", b"site-packages", export.__file__.encode()):
        assert trace not in content
    assert bytes(export.exported(predictor, ("cpu", "cuda", "tpu")).serialize()) == content
    assert jax.config.jax_traceback_in_locations_limit != 0  # as it was


def test_a_level_costs_digits_unless_it_is_taken_off(folder, predictor):
    forecast = jax.jit(jax.export.deserialize((folder / "model.stablehlo").read_bytes()).call)
    level, moves_RT = 1e6, np.random.default_rng(0).normal(size=(3, LOOKBACK))
    truth_RH = predictor(level + moves_RT, HORIZON) - level
    rough_RH = np.asarray(forecast(np.float32(level + moves_RT)), np.float64) - level
    assert 1e-3 < np.abs(rough_RH - truth_RH).max() < 0.1
    found_RH = np.asarray(forecast(np.float32(level + moves_RT - level)), np.float64) + level
    np.testing.assert_allclose(found_RH - level, truth_RH, atol=1e-5)


@pytest.mark.parametrize(
    ("of", "prompt", "tolerance"),
    [
        ({"decoder_attention": "self", "position": "learned"}, None, 1e-5),
        ({"hiding": "value", "position": "sincos", "decoder_layers": 2}, {"tokens_IMD": (2, 2, 16)}, 1e-5),
        ({"dtype": jnp.bfloat16}, {"tokens_MD": (1, 16)}, 3e-2),
    ],
)
def test_every_kind_of_model_is_exported(model, of, prompt, tolerance):
    other = model.clone(**of)
    prompt = prompt and {k: jax.random.normal(jax.random.key(1), shape) for k, shape in prompt.items()}
    predictor = Predictor(other, init(other, jax.random.key(0)), prompt, LOOKBACK, HORIZON)
    history_RT = histories()[6:9]
    compare(np.asarray(export.exported(predictor, ("cpu",)).call(history_RT)), predictor, history_RT, tolerance)


@pytest.mark.parametrize(("levels", "attention"), [((0.1, 0.9), "cross"), ((0.2, 0.5), "self")])
def test_what_quantile_prompts_say_is_exported_in_order(predictor, levels, attention, tmp_path):
    quantiles = {"tokens_MD": jax.random.normal(jax.random.key(2), (2, 2, 16))}
    model = predictor.model.clone(decoder_attention=attention, position="learned")
    of = predictor._replace(model=model, backbone=init(model, jax.random.key(0)), quantiles=quantiles, levels=levels)
    history_RT = histories()[:9]
    path = export.write(tmp_path / "m.stablehlo", of, {}, ("cpu",))
    y_RH, told_LRH = map(np.asarray, jax.export.deserialize(path.read_bytes()).call(history_RT))
    compare(y_RH, of, history_RT)
    truth_RH, away_LRH = of.told(np.asarray(history_RT, np.float64), HORIZON)
    page = json.loads((tmp_path / "m.json").read_text())
    assert page["quantiles"]["shape"] == [len(away_LRH), "rows", HORIZON]
    assert page["quantiles"]["levels"] == sorted({*levels, 0.5})
    assert page["notes"] == {key: said for key, said in (manifest.NOTES | manifest.TOLD).items() if key != "intervals"}
    size_R1 = np.nan_to_num(np.abs(history_RT)).max(1, keepdims=True) + 1e-30
    np.testing.assert_allclose(told_LRH / size_R1[None], (truth_RH + away_LRH) / size_R1[None], rtol=0, atol=1e-5)
    assert (np.nan_to_num(np.diff(told_LRH, axis=0)) >= 0).all()


@pytest.mark.parametrize(
    ("path", "platforms", "words"),
    [
        ("model.onnx", ("cpu",), "no .stablehlo file; accepted: a path like model.stablehlo"),
        ("no/model.stablehlo", ("cpu",), "there is no folder"),
        ("mine.stablehlo", ("cpu",), r"would write .*mine\.json, and something else is there"),
        ("model.stablehlo", ("cpu", "gpu"), "accepted: some of cpu, cuda, rocm, tpu, each once"),
        ("model.stablehlo", "cpu", "accepted: some of"),
        ("model.stablehlo", (), "accepted: some of"),
    ],
)
def test_an_export_that_cannot_be_is_refused_before_anything_is_written(predictor, tmp_path, path, platforms, words):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=words):
        export.write(tmp_path / path, predictor, {}, platforms)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


def test_a_missing_flatbuffers_is_said(predictor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match=r"accepted: pip install ptt_jax\[export\]"):
        export.write(tmp_path / "model.stablehlo", predictor, {}, ("cpu",))


def test_an_export_that_breaks_off_leaves_nothing(predictor, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_atomic", full)
    with pytest.raises(UserError, match="No space left on device; accepted: a place that can be written"):
        export.write(tmp_path / "model.stablehlo", predictor, {}, ("cpu",))
    assert not list(tmp_path.iterdir())


def test_a_page_has_a_line_for_a_list_and_leaves_names_as_they_are():
    page = {
        "ratio": {"b [ kW ]": 1.5, "[\n c ]": 2},
        "levels": [0.1, 0.9],
        "shape": ["rows", 12],
        "quantile": [[1], [2]],
    }
    text = manifest.to_read(page)
    assert json.loads(text) == page
    assert {' "levels": [0.1, 0.9],', ' "shape": ["rows", 12],', "  [1],"} <= {*text.splitlines()}
