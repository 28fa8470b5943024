"""The ablations: a row for each question's answers, none run twice, and what they cost."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_experiments import without_matplotlib

from ptt_jax import config

ROOT = Path(__file__).parent.parent / "experiments"
TRIPLE = ("ETTh1", "ETTm1", "Weather")


@pytest.fixture(scope="module")
def scripts():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT))
    yield {name: importlib.import_module(name) for name in ("cells", "costs", "ablations")}
    patch.undo()


@pytest.fixture
def table(scripts):
    """What `reproduce.gather` returns when all is finished: a cell's mse is its place among the rows, in %, above .3,
    and the horizon moves it."""
    cells, rows = scripts["cells"], []
    for cell in cells.ablations(TRIPLE, [0]):
        for model in cell.rows.values():
            at = [*cells.ABLATIONS].index(model)
            rows += [(cell.data, model, h, 0.3 * (1 + at / 100) * h / 100, 0.3, 2) for h in (50, 150)]
    return pd.DataFrame(rows, columns=["data", "model", "horizon", "mse", "mae", "seeds"])


def test_a_row_that_is_a_sets_recipe_is_not_run_and_every_other_is(scripts):
    cells = scripts["cells"]
    made = cells.ablations(TRIPLE, [0])
    for data in TRIPLE:
        recipe = config.content_hash(cells.configured(data, ()))
        own = [cell for cell in made if cell.data == data]
        hashes = [config.content_hash(cells.configured(data, cell.overrides)) for cell in own if not cell.backbone]
        assert recipe not in hashes
        assert len(hashes) == len({*hashes})
        shown = {label for cell in own for label in cell.rows.values()}
        same = {label for label in cells.ABLATIONS if cells.is_recipe(data, label)}
        left_out = {label for label in cells.ABLATIONS if not cells.possible(data, label)}
        assert shown | same | left_out == {*cells.ABLATIONS}
        assert shown & same == {cells.RECIPE}
        assert not shown & left_out


def test_prompts_at_every_block_are_tuned_on_a_decoder_that_has_several(scripts):
    made = {cell.name: cell for cell in scripts["cells"].ablations(TRIPLE, [0, 1])}
    deep = [cell for cell in made.values() if "tune.prompts=layer" in cell.overrides]
    assert len(deep) == 2 * 2 * 3
    for cell in deep:
        assert "model.decoder_layers" in " ".join(made[cell.backbone].overrides)
        assert made[cell.backbone].overrides[0] == cell.overrides[0]  # of one seed
        assert [*made].index(cell.backbone) < [*made].index(cell.name)


def test_questions_stand_together(scripts):
    questions = [variant.question for variant in scripts["cells"].ABLATIONS.values()]
    assert [q for i, q in enumerate(questions) if q != questions[i - 1]] == [*dict.fromkeys(questions)]


def test_differences_are_to_the_recipe_of_the_set(scripts, table):
    found = scripts["ablations"].change(table).set_index(["data", "row"])
    labels = [*scripts["cells"].ABLATIONS]
    for (data, row), line in found.iterrows():
        same = scripts["cells"].is_recipe(data, row)
        assert line["is_recipe"] == same
        assert line["change"] == pytest.approx(0 if same else labels.index(row))
        assert line["mse"] == pytest.approx(0.3 * (1 + line["change"] / 100))
    assert ("Weather", "Huber's error") in found[found["is_recipe"]].index
    assert ("ETTm1", "Huber's error") not in found[found["is_recipe"]].index


def test_a_row_without_all_horizons_is_left_out(scripts, table):
    half = table[~((table["model"] == "hidden tail") & (table["horizon"] == 150))]
    assert "hidden tail" not in {*scripts["ablations"].means(half)["row"]}
    assert scripts["ablations"].means(table.iloc[:0]).empty
    assert scripts["ablations"].markdown(table.iloc[:0], pd.DataFrame()) == ""


def by_label(text):
    """{row of a table: its line}"""
    return {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}


def test_the_table_has_a_heading_for_each_question_and_marks_the_recipe(scripts, table):
    text = scripts["ablations"].markdown(table, pd.DataFrame())
    for question in {variant.question for variant in scripts["cells"].ABLATIONS.values()}:
        assert f"| **{question}** | ETTh1 | ETTm1 | Weather | mean change | seeds |" in text
    lines = by_label(text)
    assert lines["Huber's error"].count("**recipe**") == 1
    assert lines["mask ratio 0.6"].count("0.300 / 0.300 **recipe**") == 3
    at = [*scripts["cells"].ABLATIONS].index("mask ratio 0.9")
    assert lines["mask ratio 0.9"].count(f"+{at}.0 %") == 4  # three sets and their mean


def test_a_set_that_is_hardly_begun_is_in_no_mean(scripts, table):
    whole = {"the recipe", "mask ratio 0.9"}
    begun = table[(table["data"] != "Weather") | table["model"].isin(whole)]
    lines = by_label(scripts["ablations"].markdown(begun, pd.DataFrame()))
    at = [*scripts["cells"].ABLATIONS].index
    assert lines["mask ratio 0.9"].count(f"+{at('mask ratio 0.9')}.0 %") == 4  # shown, and not counted
    assert lines["mask ratio 0.8"].count(f"+{at('mask ratio 0.8')}.0 %") == 3  # two sets and their mean


def test_without_a_recipe_there_is_no_difference(scripts, table):
    text = scripts["ablations"].markdown(table[table["model"] != "the recipe"], pd.DataFrame())
    assert "nan" not in text
    assert "%" not in text.replace("25 %", "").replace("50 %", "")


def test_costs_are_of_what_decides_them_and_no_more(scripts):
    costs = scripts["costs"]
    assert costs.key("ETTm1", "squared error") == costs.key("ETTm1", "Huber's error")  # which costs the same
    assert costs.key("ETTm1", "patch 24") != costs.key("ETTm1", "patch 12")
    assert costs.key("ETTm1", "prompts and head") != costs.key("ETTm1", "prompts and decoder")
    prompts = "a prompt for each channel and position"
    assert costs.key("ETTm1", prompts).endswith("-7")
    assert costs.canonical("ETTm1", "decoder of 3 blocks, prompts at each").model.decoder_layers == 3


@pytest.fixture
def small(scripts, monkeypatch, tiny):
    """Every set's recipe is the tiny config."""
    configured, text = scripts["cells"].configured, config.to_json(tiny)

    def pretend(name, knobs):
        cfg = config.from_json(text)
        for knob in knobs:
            key, _, value = knob.partition("=")
            section, _, last = key.rpartition(".")
            cfg[section][last] = type(cfg[section][last])(value)
        return cfg

    assert configured("ETTh1", ("model.patch=12",)).model.patch == 12
    monkeypatch.setattr(scripts["costs"], "configured", pretend)
    return scripts["costs"]


@pytest.mark.slow
def test_a_row_costs_what_learns_and_what_is_compiled_for_it(small, tiny):
    shared = {}
    rows = {label: small.cost("ETTh1", label, shared) for label in ("the recipe", "prompts and everything")}
    plain, whole = rows.values()
    assert len(shared) == 2  # pre-training and forecast are those of both
    assert plain["trained"] == 2 * 16
    assert whole["trained"] == 2 * 16 + whole["parameters"]
    assert plain["cached_mflops"] < plain["tune_mflops"] < whole["tune_mflops"]
    assert whole["cached_mflops"] is None
    assert plain["pretrain_mflops"] == whole["pretrain_mflops"] > 0


def test_views_tell_costs_apart(small, monkeypatch):
    keys, configured = set(), small.configured
    for views in (1, 2):

        def seen(name, knobs, views=views):
            cfg = configured(name, knobs)
            cfg.views = views
            return cfg

        monkeypatch.setattr(small, "configured", seen)
        keys.add(small.key("ETTh1", "the recipe"))
        assert small.canonical("ETTh1", "the recipe").views == views
    assert len(keys) == 2


@pytest.mark.slow
def test_a_known_cost_is_not_compiled_again(scripts, monkeypatch, tmp_path, capsys):
    costs, ran = scripts["costs"], []

    def pretend(name, label, shared):
        ran.append(label)
        return {"trained": 1920, "pretrain_mflops": 20.0 / len(ran), "tune_mflops": 8.0, "cached_mflops": None}

    monkeypatch.setattr(costs, "cost", pretend)
    file = tmp_path / "costs.csv"
    labels = ("patch 24", "patch 12", "mask ratio 0.4", "without prompts")
    first = costs.complete(["ETTh1", "ETTm1"], labels, file, "a command")
    assert len(ran) == len(first) == len({costs.key(d, r) for d in ("ETTh1", "ETTm1") for r in labels[:2]})
    assert f"1 of {len(ran)}  cost of patch 24 (ETT" in capsys.readouterr().out
    again = costs.complete(["ETTh1", "ETTm1"], labels, file, "a command")
    assert len(ran) == len(first)
    pd.testing.assert_frame_equal(first.astype(again.dtypes), again)


@pytest.fixture
def spent(scripts):
    """Costs that fall with the patch; only what learns with its memory frozen has a cached one."""
    costs, rows = scripts["costs"], {}
    for data in TRIPLE:
        for label in (r for r in scripts["cells"].ABLATIONS if costs.costed(data, r)):
            patch = costs.canonical(data, label).model.patch
            frozen = "decoder" not in label
            rows[costs.key(data, label)] = {
                "trained": 1920, "pretrain_mflops": 480 / patch, "tune_mflops": 8.0, "forecast_mflops": 6.0,
                "cached_mflops": 3.0 if frozen else np.nan, "tune_kib": 184.0, "cached_kib": 90.0 if frozen else np.nan,
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def test_costs_stand_beside_the_errors_of_rows_that_differ_in_them(scripts, table, spent):
    text = scripts["ablations"].markdown(table, spent)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "| 1,920 | 40.00 | 8.00 (3.00) | 6.00 | 184 (90) | 2 |" in lines["patch 12"]
    assert "| 8.00 | 6.00 | 184 | 2 |" in lines["prompts and decoder"]
    assert lines["mask ratio 0.4"].endswith("% | 2 |")


def test_the_guideline_names_the_best_patch_and_the_cheapest_near_it(scripts, table, spent):
    """Errors rise with the patch here, by 1 % each, but where one is the recipe."""
    lines = scripts["ablations"].guideline(table, spent).splitlines()
    assert [line.split(",")[0] for line in lines] == [f"- {name}" for name in TRIPLE]
    assert "a step of 15 min, a season of 96 steps: smallest error at patch 48 (12 h, 0.5 seasons)" in lines[1]
    close = table.assign(mse=np.where(table["model"].str.startswith("patch"), 0.3 * 0.995, table["mse"]))
    assert "cheapest of these is 72, 6.7 MFLOPs" in scripts["ablations"].guideline(close, spent).splitlines()[1]
    assert "MFLOPs" not in scripts["ablations"].guideline(table, pd.DataFrame())


def test_figures_and_table_are_written_where_they_belong(scripts, table, spent, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table ablations -->\nold\n<!-- end ablations -->\nafter\n")
    scripts["ablations"].publish(table, spent, readme, tmp_path / "figures")
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == [
        "lookback.png", "mask-ratio.png", "patch.png", "thawed.png",
    ]  # fmt: skip
    text = readme.read_text()
    assert text.startswith("before\n<!-- table ablations -->\n| **Prompts** |")
    assert text.endswith("\n<!-- end ablations -->\nafter\n")
    assert "old" not in text
    assert "- ETTh1, a step of 1 h" in text
    few = table[table["model"].isin(["the recipe", "patch 12"]) & (table["data"] == "ETTh1")]
    drawn = scripts["ablations"].draw(few, pd.DataFrame(), tmp_path / "few")
    assert [f.name for f in drawn] == ["patch.png"]  # the others have one point
    thawed = table[table["model"].isin(["the recipe", "prompts and decoder"])]
    assert [f.name for f in scripts["ablations"].draw(thawed, spent, tmp_path / "few")] == ["thawed.png"]
    assert not scripts["ablations"].draw(thawed, pd.DataFrame(), tmp_path / "few")  # how much learns is not known


def test_without_matplotlib_the_table_is_written_all_the_same(scripts, table, spent, tmp_path, monkeypatch, capsys):
    without_matplotlib(monkeypatch)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table ablations -->\n<!-- end ablations -->\n")
    for _ in range(2):
        scripts["ablations"].publish(table, spent, readme, tmp_path / "figures")
    assert "| **Prompts** |" in readme.read_text()
    assert capsys.readouterr().out == "pictures need `pip install ptt_jax[plot]`\n"
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(("argv", "words"), [(["--data=ETTh9"], "accepted: ETTh1"), (["--rows=patch 7"], "patch 6")])
def test_what_does_not_exist_is_one_sentence(scripts, capsys, argv, words):
    assert scripts["ablations"].main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
