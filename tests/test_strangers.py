"""What comes from a stranger is data: no pickle, no program, no path that leads elsewhere."""

import ast
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from ptt_jax import Bank, Forecaster, cache, checkpoint, flags, seal
from ptt_jax import store as stores
from ptt_jax.errors import UserError

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "ptt_jax").glob("*.py"), *(ROOT / "experiments").glob("*.py")])
UNSAFE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_no_room_reads_a_format_that_can_run_code(syntax):
    for node in (node for path in FILES for node in ast.walk(syntax(path))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not UNSAFE & {name.split(".")[0] for name in names}, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "pd.read_pickle", "__import__"), ast.unparse(node)
            if called in ("np.load", "numpy.load"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert said.get("allow_pickle") == "False", ast.unparse(node)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / f"format{stores.FORMAT}.zip") as file:
        file.extractall(folder)
    return folder


def load(folder):
    """Reads all that is read of a saved Forecaster, or of a bank."""
    if folder.name == "bank":
        Bank(folder).check()
    else:
        Forecaster.load(folder)


def bombs(mark):
    """Returns {kind: content}: a plain pickle, and what numpy keeps objects in."""
    bomb, npz, npy = np.array([Bomb(mark)], object), io.BytesIO(), io.BytesIO()
    np.savez(npz, about=bomb, hash=bomb, quantile_QH=bomb, ratio_C=bomb, relative=bomb)
    np.save(npy, bomb)
    return {"pickle": pickle.dumps(Bomb(mark)), "npz": npz.getvalue(), "npy": npy.getvalue()}


@pytest.mark.parametrize("name", ["forecaster", "bank"])
def test_no_file_in_the_place_of_another_runs_code(kept, tmp_path, name):
    """Each is an error that names a file, or is not read at all."""
    folder, mark, refused = Path(shutil.copytree(kept / name, tmp_path / name)), tmp_path / "exploded", 0
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        for kind, content in bombs(mark).items():
            if kind == "pickle" or path.suffix == ".npz":
                path.write_bytes(content)
                try:
                    load(folder)
                except UserError as e:
                    refused += str(folder) in str(e)
                assert not mark.exists(), path
        path.write_bytes(whole)
    assert refused > 8
    load(folder)
    pickle.loads(bombs(mark)["pickle"])
    assert mark.exists()  # the bomb is one


def test_a_stranger_s_folder_of_compiled_programs_is_not_used(kept, tmp_path, monkeypatch):
    """A compiled program is code: where they are kept is this machine's to say."""
    folder, asked = Path(shutil.copytree(kept, tmp_path / "copy")), []
    card = seal.read_json(folder / "forecaster" / "config.json")
    seal.write_json(folder / "forecaster" / "config.json", {**card, "cache_dir": str(tmp_path / "evil")})
    monkeypatch.setattr(cache, "offer", asked.append)
    assert Forecaster.load(folder / "forecaster").fitted.cfg.cache_dir == "default"
    assert asked == ["default"]
    assert flags.load_file(folder / "forecaster" / "config.json").cache_dir == "default"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("forecaster.json", {"task": "../../elsewhere/frame-12"}),
        ("forecaster.json", {"task": ["frame-12"]}),
        ("backbone.json", {"step": "../../../elsewhere"}),
        ("backbone.json", {"step": -1}),
        ("prompts/frame-12.json", {"step": "/etc"}),
        ("backbone.json", {"run": 7}),
    ],
)
def test_a_card_leads_nowhere_else(kept, tmp_path, file, change):
    folder = Path(shutil.copytree(kept / "forecaster", tmp_path / "copy"))
    seal.write_json(folder / file, {**seal.read_json(folder / file), **change})
    with pytest.raises(UserError, match=rf"{file} (names|lacks).*accepted"):
        Forecaster.load(folder)


def test_a_backbone_that_refers_to_itself_is_one_sentence(tmp_path):
    card = {"step": 0, "content_hash": "0", "architecture": {}}
    for name, other in (("a", "b"), ("b", "a")):
        seal.write_json(tmp_path / name / "backbone.json", {**card, "run": str(tmp_path / other)})
    with pytest.raises(UserError, match="leads back to itself"):
        checkpoint.find_backbone(tmp_path / "a")


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "..", ".", "a\0b", "~/x", "C:\\x", "a/../../b"])
def test_no_name_of_a_task_leads_out_of_the_bank(kept, tmp_path, name):
    folder = Path(shutil.copytree(kept / "bank", tmp_path / "deep" / "bank"))
    bank = Bank(folder)
    path = bank._path(name)
    assert path.resolve().parent == (folder / "tasks").resolve()
    bank.add(name, bank.forecaster("one"))
    assert name in bank
    assert {p.name for p in tmp_path.rglob("*") if p.parent == folder / "tasks"} == {
        "one.npz",
        "the%20other%2F2.npz",
        path.name,
    }
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["bank"]


def test_what_was_saved_on_one_layout_of_devices_is_restored_on_another(tmp_path):
    tree = {"w": np.arange(16, dtype=np.float32).reshape(8, 2)}
    eight = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    split = jax.sharding.NamedSharding(eight, jax.sharding.PartitionSpec("data"))
    store = stores.Store(tmp_path / "s", ("params",))
    store.save(1, {"params": jax.device_put(tree, split)}, {})
    store.save(2, {"params": jax.device_put(tree, jax.devices()[3])}, {})
    for step in (1, 2):
        found = store.restore(step, "params", tree)
        np.testing.assert_array_equal(found["w"], tree["w"])
        assert jax.device_put(found, split)["w"].sharding == split
    store.close()
