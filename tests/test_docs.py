"""What README and the guides show is run: Python as it stands, on a tiny model; commands through the parser that reads
them."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptt_jax import flags, main, recipe, stages

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "experiments/README.md",
    *(f"experiments/guides/{n}.md" for n in ("own_csv", "many_tasks", "how_good", "sweeps", "several_devices")),
)
TINY = {
    "model.width": 16, "model.mlp": 16, "model.heads": 2, "model.encoder_layers": 1, "pretrain.steps": 3,
    "pretrain.batch": 64, "pretrain.validations": 1, "tune.steps": 2, "tune.batch": 64, "tune.validations": 1,
}  # fmt: skip


SMALL = {
    **TINY, "lookback": 48, "horizons": "12,", "model.patch": 12, "pretrain.validation_rows": 64, "evaluate.batch": 128,
    "data.rows": 500, "data.channels": 2, "cache_dir": "",
}  # fmt: skip
RUNS = (
    "experiments/guides/sweeps.md",
    "experiments/guides/several_devices.md",
)  # their Python reads what commands leave


def fences(page: str) -> list[tuple[str, str]]:
    """(kind, code) between fences, in order; '' for fences that name no kind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def blocks(page: str, kind: str) -> list[str]:
    return [body for name, body in fences(page) if name == kind]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A recipe of seconds, and a folder with the files that the pages read."""
    whole = recipe.recipe

    def small(*args, **more):
        cfg = whole(*args, **more)
        cfg.views, cfg.cache_dir = 1, ""
        cfg.pretrain.update(flip=0.0, blend=0.0, average=0.0)
        for key, value in TINY.items():
            section, _, name = key.partition(".")
            cfg[section][name] = value
        return cfg

    monkeypatch.setattr(recipe, "recipe", small)
    monkeypatch.setattr(recipe, "LOOKBACK", 168)  # a map of a month's 720 hours, five times over, takes longest of all
    monkeypatch.chdir(tmp_path)
    rows, rng = 24 * 7 * 20, np.random.default_rng(0)  # enough for intervals of a week ahead
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=rows, freq="h")})
    for name in ("load", "wind", "rain", "heat"):
        frame[name] = np.sin(np.arange(rows) / 4) + rng.normal(size=rows)
    frame.to_csv("mine.csv", index=False)
    frame.iloc[50:].to_csv("newer.csv", index=False)
    return frame


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p not in RUNS])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tiny):
    names = {"newer_df": tiny.iloc[50:]} if page == "README.md" else {}
    for body in blocks(page, "python"):
        if ".export(" in body:
            pytest.importorskip("flatbuffers")
        exec(compile(body, page, "exec"), names)


def calls(body: str) -> list[str]:
    """The lines of a shell's block that call ptt_jax.main, without what a shell makes of them."""
    bare = (re.sub(r"\s+#.*|\[.*|^JAX_\w+=\S+ ", "", line) for line in body.replace("\\\n", " ").splitlines())
    return [line.strip() for line in bare if line.startswith("python -m ptt_jax.main") and "$" not in line]


def commands(page: str) -> list[str]:
    return [line for body in blocks(page, "") + blocks(page, "bash") for line in calls(body)]


@pytest.mark.parametrize(("page", "line"), [(page, line) for page in PAGES for line in commands(page)])
def test_a_command_of_a_page_is_understood(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = shlex.split(line)[3:]
    if argv[0] in stages.STAGES:
        assert flags.parse_stage(argv[1:])[0].output.endswith((".csv", ".stablehlo"))
    else:
        flags.parse(argv)


@pytest.mark.slow
def test_the_commands_of_the_guide_run(tiny, capsys):
    for line in commands("experiments/guides/own_csv.md"):
        assert main.main(shlex.split(line)[3:]) == 0, capsys.readouterr().err
    assert len(pd.read_csv("out.csv")) == len(pd.read_csv("next.csv")) == 48


@pytest.mark.slow
def test_the_guides_of_runs_run_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """Commands and Python in turn, in one folder, so that a run that both show is one. The session has devices enough
    for four of them; of several processes it has one, and tests/test_processes.py two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "set_up", lambda cfg: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    small = [f"--config.{key}={value}" for key, value in SMALL.items()]
    for page in RUNS:
        names: dict = {}
        for kind, body in fences(page):
            if kind == "python":
                exec(compile(body, page, "exec"), names)
                continue
            for line in calls(body):
                # of four devices, tuning and evaluation are enough here: tests of training have its own
                few = ["--config.devices=4", "--config.backbone=runs/quickstart"] if "four" in line else []
                if "--distributed" not in line:
                    argv = [*shlex.split(line)[3:], *small, *(few or ["--config.devices=1"])]
                    assert main.main(argv) == 0, capsys.readouterr().err
        if page == RUNS[0]:
            assert list(names["results"].groupby("horizon").size()) == [2]
    assert names["four"]["mse"].notna().all()
    np.testing.assert_allclose(names["four"]["mse"], names["one"]["mse"], rtol=1e-4)
    spec = importlib.util.spec_from_file_location("collect", ROOT / "experiments/collect.py")
    collect = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collect)
    capsys.readouterr()
    assert collect.main(["runs/quickstart", "runs/sweep", "--by=config.tune.learning_rates", "--split=validation"]) == 0
    assert "0.003" in capsys.readouterr().out


def test_every_guide_is_in_the_list_of_guides_and_in_the_tests():
    listed = (ROOT / "experiments/guides/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "experiments/guides").glob("*.md"):
        assert path.stem == "README" or (f"({path.name})" in listed and f"experiments/guides/{path.name}" in PAGES)
