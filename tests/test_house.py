"""Data flows one way: an import may only point to a lower rank (DESIGN: the house)."""

import ast
from pathlib import Path

import pytest

RANKS = (
    ("errors", "knobs", "bits", "ranking", "tally", "scales", "provenance"),
    ("files",),
    ("config", "seal", "results"),
    ("gaps", "layers", "windows", "mesh", "clock", "generated", "processes", "cache", "intervals", "recipe", "parquet"),
    ("frame", "stream", "bridge", "benchmarks", "steps", "seasons", "flags", "charts", "memory", "preemption", "lock"),
    ("data", "columns", "model", "prompts", "sheet"),
    ("scaling", "architecture", "members"),
    ("frames", "optim", "problems"),
    ("encodings", "answer", "attention"),
    ("tasks", "impute"),
    ("predict",),
    ("step", "baselines", "calibrate", "closing"),
    ("evaluate", "store", "log", "detect", "quantiles"),
    ("checkpoint", "rundir", "watch", "userfile", "linear", "drift"),
    ("loop",),
    ("train", "history", "restoration"),
    ("plan", "lessons", "exhibits"),
    ("tune",),
    ("finetune", "imputation"),
    ("score", "pictures", "fitted"),
    ("report", "foresight", "manifest"),
    ("fitting", "parcel", "export", "found"),
    ("forecaster", "stacks", "outlook", "panels", "request"),
    ("prospect",),
    ("stages", "bank", "page"),
    ("main",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
PACKAGE = Path(__file__).parent.parent / "ptt_jax"


def imports(tree: ast.Module) -> set[str]:
    """The rooms that a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ptt_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ptt_jax."):
            found.add(node.module.removeprefix("ptt_jax."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("ptt_jax.") for a in node.names if a.name.startswith("ptt_jax.")}
    return found


@pytest.mark.parametrize("path", sorted(p for p in PACKAGE.glob("*.py") if p.stem != "__init__"), ids=lambda p: p.stem)
def test_imports_point_to_lower_ranks(path, syntax):
    up = {name for name in imports(syntax(path)) if RANK[name] >= RANK[path.stem]}
    assert not up, f"{path.stem} (rank {RANK[path.stem]}) imports {up}"


def test_data_rooms_know_no_jax(syntax):
    for name in (
        "data",
        "scaling",
        "userfile",
        "benchmarks",
        "frame",
        "frames",
        "columns",
        "steps",
        "clock",
        "generated",
        "report",
        "errors",
        "files",
        "knobs",
        "seal",
        "results",
        "pictures",
        "ranking",
        "scales",
        "charts",
        "sheet",
        "found",
        "outlook",
        "prospect",
        "panels",
        "page",
    ):
        tree = syntax(PACKAGE / f"{name}.py")
        modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {m for m in modules if m and m.split(".")[0] in ("jax", "flax", "optax", "orbax")}, name
