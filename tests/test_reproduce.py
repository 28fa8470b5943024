"""One command for the tables: every cell is a run that can be, is run once, and stands where it belongs."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path

import jax
import pandas as pd
import pytest

from ptt_jax import config, flags

ROOT = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """The script in a folder of its own, with runs that pretend: a cell's mse is 0.1 x its seed + the horizon's."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("reproduce")
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- table main -->\nold\n<!-- end main -->\nafter\n")
    (tmp_path / "published.csv").write_text((ROOT / "published.csv").read_text())
    monkeypatch.setattr(module.records, "HERE", tmp_path)
    for name in ("ran", "broken", "stopped"):
        monkeypatch.setattr(module, name, [], raising=False)

    def pretend(argv):
        cfg, run = flags.parse([a.replace("configs/", str(ROOT.parent / "configs") + "/") for a in argv])
        print("words of a run")
        module.ran.append(run.name)
        if run.name in module.broken:
            raise ValueError("a bug")
        if run.name in module.stopped:
            return 130
        assert not cfg.backbone or Path(cfg.backbone, "results.csv").exists(), "its backbone comes first"
        run.mkdir(parents=True, exist_ok=True)
        for name, text in (("config", config.to_json(cfg)), ("backbone", "{}"), ("versions", '{"device": "1 x chip"}')):
            (run / f"{name}.json").write_text(text)
        models = ("seasonal_naive", "linear", "zero_shot", cfg.tune.mode)
        rows = [
            (cfg.data.name, cfg.lookback, h, m, s, cfg.seed, cfg.seed / 10 + h / 1000 + (s == "validation"), 0.5, 9)
            for h in (96, 192) for m in models for s in ("validation", "test")
        ]  # fmt: skip
        columns = ["data", "lookback", "horizon", "model", "split", "seed", "mse", "mae", "windows"]
        pd.DataFrame(rows, columns=columns).to_csv(run / "results.csv", index=False)
        return 0

    monkeypatch.setattr(module.workers, "run_main", pretend)
    return module


@pytest.fixture
def crew(reproduce, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of what its processes do is XLA's
    return importlib.import_module("crew")


def run(module, tmp_path, *argv):
    return module.main([f"--runs={tmp_path / 'runs'}", "--only=main", *argv])


def test_a_table_has_means_over_seeds_and_where_they_come_from(reproduce, tmp_path, capsys):
    assert run(reproduce, tmp_path, "--data=ETTh1,ETTm2", "--rows=prompts") == 0
    assert reproduce.ran == [f"{d}-s{s}" for d in ("ETTh1", "ETTm2") for s in range(3)]
    table = pd.read_csv(tmp_path / "results/main.csv")
    prompts = table[table.model == "prompts"]
    assert prompts[["data", "horizon"]].to_numpy().tolist() == [[d, h] for d in ("ETTh1", "ETTm2") for h in (96, 192)]
    assert prompts.mse.round(6).tolist() == [0.196, 0.292] * 2  # seeds 0, 1, 2, and test alone
    assert prompts.mse_spread.round(6).tolist() == [0.1] * 4
    assert (prompts.seeds == 3).all()
    assert (table[table.model == "linear"].seeds == 1).all()
    assert prompts.command.iloc[0] == "python -m ptt_jax.main --config=configs/etth1.py --config.seed=0"
    assert {"config", "seconds", "device", "date"} <= {*table}
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- table main -->\n| | ETTh1 | ETTm2 | mean | seeds |\n")
    assert text.endswith("|\n<!-- end main -->\nafter\n")
    assert "| prompts | 0.244 ±0.100 / 0.500 | 0.244 ±0.100 / 0.500 | 0.2440 / 0.5000 | 3 |" in text
    assert "| *DUET, lookback best of 96/336/512 per cell (published)* | 0.398 / 0.418 |" in text
    assert "old" not in text
    out = capsys.readouterr().out
    assert "words of a run" not in out
    assert "6 of 6  main/ETTm2-s2  done" in out
    assert "words of a run" in (tmp_path / "runs/main/ETTm2-s2.log").read_text()


def test_a_number_of_two_devices_says_so_and_has_no_seconds(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=2") == 0
    file = tmp_path / "results/cells/main.jsonl"
    first, second = map(json.loads, file.read_text().splitlines())
    second["about"]["versions"]["device"] = "1 x another"
    file.write_text("".join(json.dumps(r) + "\n" for r in (first, second)))
    assert run(reproduce, tmp_path, "--data=ETTh1", "--tables") == 0
    table = pd.read_csv(tmp_path / "results/main.csv").set_index("model")
    assert {*table.loc["prompts", "device"]} == {"1 x another, 1 x chip"}
    assert table.loc["prompts", "seconds"].isna().all()
    assert {*table.loc["linear", "device"]} == {"1 x chip"}
    assert table.loc["linear", "seconds"].notna().all()


def test_finished_cells_are_not_run_again_and_a_stopped_one_goes_on(reproduce, tmp_path):
    reproduce.stopped = ("ETTh1-s1",)
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts") == 130
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s1"]
    assert (pd.read_csv(tmp_path / "results/main.csv").seeds == 1).all()
    reproduce.stopped = ()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts") == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s1", "ETTh1-s1", "ETTh1-s2"]
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts") == 0
    assert run(reproduce, tmp_path, "--data=ETTh1", "--tables") == 0
    assert reproduce.ran == []


def test_a_table_holds_all_that_is_finished_whatever_was_asked_for(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1,ETTh2", "--rows=prompts", "--seeds=2") == 0
    assert run(reproduce, tmp_path, "--data=ETTh2", "--rows=new head: probe", "--seeds=1") == 0
    table = pd.read_csv(tmp_path / "results/main.csv")
    prompts = table[table.model == "prompts"]
    assert [*prompts.data] == ["ETTh1"] * 2 + ["ETTh2"] * 2
    assert (prompts.seeds == 2).all()
    assert [*table[table.model == "new head: probe"].data] == ["ETTh2"] * 2


def test_a_cell_of_another_recipe_is_no_row_and_is_run_again(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts;new head: probe", "--seeds=2") == 0
    file = tmp_path / "results/cells/main.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["cell"] for r in records] == [f"ETTh1-s{s}{kind}" for s in range(2) for kind in ("", "-probe")]
    for knobs in (records[0]["config"], records[1]["on"]):
        knobs["pretrain.mask_ratio"] = 0.3
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert run(reproduce, tmp_path, "--data=ETTh1", "--tables") == 0
    table = pd.read_csv(tmp_path / "results/main.csv")
    assert (table[table.model == "prompts"].seeds == 1).all()
    assert (table[table.model == "new head: probe"].seeds == 1).all()  # what tunes on it is no row either
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts;new head: probe", "--seeds=2") == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s0-probe"]


def test_a_backbone_of_another_recipe_takes_what_was_tuned_on_it_along(reproduce, tmp_path):
    argv = ["--data=ETTh1", "--rows=prompts;new head: probe", "--seeds=1"]
    assert run(reproduce, tmp_path, *argv) == 0
    file, folder = tmp_path / "results/cells/main.jsonl", tmp_path / "runs/main"
    was = [json.loads(line) for line in file.read_text().splitlines()]
    assert was[1]["on"] == was[0]["config"]
    for r in (was[0]["config"], was[1]["on"]):  # as if the recipe had been another when all of this ran
        r["pretrain.mask_ratio"] = 0.3
    file.write_text("".join(json.dumps(r) + "\n" for r in was))
    for name in ("ETTh1-s0", "ETTh1-s0-probe"):
        path = folder / name / "config.json"
        cfg = config.from_json(path.read_text())
        cfg.pretrain.mask_ratio = 0.3
        path.write_text(config.to_json(cfg))
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, *argv) == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s0-probe"]
    assert (folder / "ETTh1-s0.former-1/config.json").exists()  # nothing is lost
    # Its own config is that of now, and it was tuned on the backbone of then.
    now = [json.loads(line) for line in file.read_text().splitlines()]
    now[1]["on"]["pretrain.mask_ratio"] = 0.3
    file.write_text("".join(json.dumps(r) + "\n" for r in now))
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, *argv) == 0
    assert reproduce.ran == ["ETTh1-s0-probe"]


def test_prompts_of_another_kind_leave_what_else_was_tuned_on_the_backbone(reproduce, tmp_path):
    argv = ["--data=ETTh1", "--rows=prompts;new head: probe", "--seeds=1"]
    assert run(reproduce, tmp_path, *argv) == 0
    file = tmp_path / "results/cells/main.jsonl"
    was = [json.loads(line) for line in file.read_text().splitlines()]
    for r in (was[0]["config"], was[1]["on"]):  # as if the set's prompts had been others then
        r["tune.prompts"] = "channel"
    file.write_text("".join(json.dumps(r) + "\n" for r in was))
    shutil.rmtree(tmp_path / "runs")
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, *argv) == 0
    assert reproduce.ran == ["ETTh1-s0"]


def test_a_directory_of_another_recipe_is_no_backbone(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=1") == 0
    path = tmp_path / "runs/main/ETTh1-s0/config.json"  # left behind by an older version on this machine
    cfg = config.from_json(path.read_text())
    cfg.pretrain.mask_ratio = 0.3
    path.write_text(config.to_json(cfg))
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=new head: probe", "--seeds=1") == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s0-probe"]


def test_random_weights_of_another_architecture_are_another_backbone(reproduce, tmp_path):
    """What was tuned on them is moved away, though their hash is the same."""
    argv = ["--data=ETTh1", "--rows=random backbone: probe", "--seeds=1"]
    assert run(reproduce, tmp_path, *argv) == 0
    folder, cards = tmp_path / "runs/main", {"ETTh1-s0-random": "value", "ETTh1-s0-random-probe": "feature"}
    for name, hiding in cards.items():
        card = {"content_hash": "a", "architecture": {"hiding": hiding}}
        (folder / name / "backbone.json").write_text(json.dumps(card))
    file = tmp_path / "results/cells/main.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "random-probe" not in line))
    assert run(reproduce, tmp_path, *argv) == 0
    assert [path.name for path in folder.glob("*.former-1")] == ["ETTh1-s0-random-probe.former-1"]


def test_a_line_that_is_no_record_is_one_sentence(reproduce, tmp_path, capsys):
    file = tmp_path / "results/cells/main.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("<<<<<<< HEAD\n")
    assert run(reproduce, tmp_path, "--tables") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "main.jsonl, line 1 is no record" in err


def test_a_knob_that_was_not_there_yet_stood_at_its_default(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=1") == 0
    file = tmp_path / "results/cells/main.jsonl"
    record = json.loads(file.read_text())
    del record["config"]["tune.share"]
    file.write_text(json.dumps(record) + "\n")
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=1") == 0
    assert reproduce.ran == []


def test_a_finished_cell_is_finished_elsewhere_but_its_backbone_is_made_again(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=1") == 0
    shutil.rmtree(tmp_path / "runs")
    reproduce.ran.clear()
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=1") == 0
    assert reproduce.ran == []
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=new head: probe", "--seeds=1") == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s0-probe"]


NOTED = ("begin", "end", "cores", "process", "share")


def notes(asked, share):
    """A worker whose runs note NOTED of themselves. One of ETTm2 kills its process, one of Weather never ends."""
    while True:
        try:
            log, argv, kind = asked.recv()
        except EOFError:
            return
        begun, name = time.monotonic(), next(a for a in argv if a.startswith("--workdir")).rpartition("/")[2]
        if "ETTm2" in kind:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(os.environ["NOTES"], "a") as f:
            about = [name, begun, time.monotonic(), sorted(os.sched_getaffinity(0)), os.getpid(), share]
            f.write(json.dumps(about) + "\n")
        if "Weather" in kind:
            time.sleep(600)
        log.write_text("words")
        asked.send(0)


def notes_of_two(asked, share, threads):
    """A team whose runs note NOTED of themselves, each of them when as many as it has threads have begun."""
    begun_by_all = threading.Barrier(threads)

    def run(lane, log, argv, kind):
        begun, name = time.monotonic(), next(a for a in argv if a.startswith("--workdir")).rpartition("/")[2]
        begun_by_all.wait(30)
        with open(os.environ["NOTES"], "a") as f:
            f.write(json.dumps([name, begun, time.monotonic(), [], os.getpid(), share]) + "\n")
        asked.send((lane, 0))

    with contextlib.suppress(EOFError):
        while True:
            threading.Thread(target=run, args=asked.recv()).start()


@pytest.fixture
def noted(reproduce, monkeypatch, tmp_path):
    """f() -> {cell: what its run noted}, of jobs that are `notes`."""
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(reproduce.workers, "serve", notes)
    monkeypatch.setattr(reproduce.workers, "serve_several", notes_of_two)
    monkeypatch.setattr(reproduce, "keep", lambda *_: None)

    def read():
        lines = (tmp_path / "notes").read_text().splitlines()
        return {of[0]: types.SimpleNamespace(**dict(zip(NOTED, of[1:], strict=True))) for of in map(json.loads, lines)}

    return read


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given out on Linux alone")
def test_several_jobs_keep_to_the_order_of_backbones_and_to_their_cores(reproduce, noted, tmp_path, capsys):
    mine = os.sched_getaffinity(0)

    def times(*argv, code=0):
        (tmp_path / "notes").write_text("")
        assert run(reproduce, tmp_path, "--seeds=2", "--jobs=2", *argv) == code
        return noted()

    found = times("--data=ETTh1", "--rows=new head: probe;prompts")
    assert len(found) == 4
    for seed in (0, 1):
        assert found[f"ETTh1-s{seed}"].end <= found[f"ETTh1-s{seed}-probe"].begin
    found = times("--data=ETTh1,ETTh2", "--rows=prompts")
    one, two = ([found[f"{data}-s{seed}"] for seed in (0, 1)] for data in ("ETTh1", "ETTh2"))
    assert one[0].process != two[0].process
    assert len({of.process for of in (*one, *two)}) == 2
    assert one[0].cores == sorted(mine)[::2]
    assert os.sched_getaffinity(0) == mine
    assert one[0].share == two[0].share == 0.4  # of a GPU's memory, of which jax itself would give the first most
    found = times("--data=ETTm2,ETTm1", "--rows=prompts", code=1)  # a process that dies fails its cell alone
    assert {*found} == {"ETTm1-s0", "ETTm1-s1"}
    assert capsys.readouterr().out.count("FAILED") == 2


def test_each_of_several_jobs_runs_several_cells_at_a_time(reproduce, noted, tmp_path, capsys):
    argv = ("--data=ETTh1,ETTh2", "--rows=prompts", "--seeds=2", "--jobs=2", "--threads=2")
    assert run(reproduce, tmp_path, *argv) == 0
    found = noted()
    assert sorted(found) == [f"{data}-s{seed}" for data in ("ETTh1", "ETTh2") for seed in (0, 1)]
    of_process = [of.process for of in found.values()]
    assert {of_process.count(process) for process in {*of_process}} == {2}
    assert {of.share for of in found.values()} == {0.4}
    assert capsys.readouterr().out.count("done") == 4


TINY = [
    "--config.data.rows=500", "--config.horizons=12,", "--config.lookback=48", "--config.model.width=16",
    "--config.model.mlp=16", "--config.model.heads=2", "--config.model.encoder_layers=1", "--config.pretrain.batch=16",
    "--config.pretrain.validation_rows=32", "--config.tune.steps=2", "--config.tune.batch=16",
    "--config.tune.validations=1", "--config.evaluate.batch=64", "--config.devices=1",
    f"--config.cache_dir={jax.config.jax_compilation_cache_dir}",
]  # fmt: skip


def tiny(folder, *more):
    return [f"--config={ROOT.parent / 'configs/quickstart.py'}", f"--workdir={folder}", *TINY, *more]


@pytest.mark.slow
def test_cells_in_lanes_of_a_team_find_what_they_find_alone(crew, tmp_path):
    team, steps = crew.Team([], 0.5, 2), "--config.pretrain.steps=3"
    try:
        for lane, seed in zip(team.lanes, (0, 1), strict=True):
            lane.start(
                tmp_path / f"{seed}.log", tiny(tmp_path / f"side-{seed}", steps, f"--config.seed={seed}"), "kind"
            )
        while None in (codes := [lane.answer() for lane in team.lanes]):
            time.sleep(0.1)
        assert codes == [0, 0]
        lane, alone = team.lanes[0], tiny(tmp_path / "alone-1", steps, "--config.seed=1")
        for argv, expected in ((["--nothing=0"], 2), (alone, 0)):  # a user's mistake ends no process
            lane.start(tmp_path / f"{expected}-alone.log", argv, "kind")
            while (code := lane.answer()) is None:
                time.sleep(0.1)
            assert (code, lane.alive) == (expected, True)
    finally:
        team.lanes[0].end()
    assert not team.alive
    assert (tmp_path / "2-alone.log").read_text().startswith("ptt_jax: ")
    for name in ("results.csv", "steps.csv"):
        assert (tmp_path / "side-1" / name).read_text() == (tmp_path / "alone-1" / name).read_text()
    for seed in (0, 1):
        text = (tmp_path / f"{seed}.log").read_text()
        assert f"side-{seed}" in text
        assert f"side-{1 - seed}" not in text
        assert text.count("pretrain  step 3 of 3") == 1


@pytest.mark.slow
def test_a_team_that_is_told_to_end_saves_what_its_lanes_are_at(crew, tmp_path):
    team = crew.Team([], 0.5, 2)
    try:
        for n, lane in enumerate(team.lanes):
            more = f"--config.seed={n}", "--config.pretrain.steps=500000", "--config.pretrain.validations=5000"
            lane.start(tmp_path / f"{n}.log", tiny(tmp_path / str(n), *more), "kind")
        while not all("pretrain  step" in (tmp_path / f"{n}.log").read_text() for n in (0, 1)):
            assert [lane.answer() for lane in team.lanes] == [None, None]
            time.sleep(0.1)
    finally:
        team.lanes[1].end()
    assert not team.alive
    for n in (0, 1):
        assert "the same command goes on" in (tmp_path / f"{n}.log").read_text()
        assert any((tmp_path / str(n) / "backbone").iterdir())
        assert not (tmp_path / str(n) / "backbone.json").exists()


def test_a_team_whose_process_dies_says_so_for_all_its_lanes(crew, tmp_path):
    team = crew.Team([], 0.5, 2)
    team.process.kill()
    for lane in team.lanes:
        lane.start(tmp_path / "log", [], "kind")
    team.process.join()
    assert [lane.answer() for lane in team.lanes] == [-signal.SIGKILL] * 2
    assert not any(lane.alive for lane in team.lanes)
    others = crew.Crew([], 1, 2)
    others.hired = dict(enumerate(team.lanes))
    assert others.free(0, {1}) is None  # until the other slot has been heard


def test_a_worker_goes_on_with_what_it_has_programs_for(reproduce):
    def cell(name, data, kind):
        return reproduce.Ahead("main", reproduce.Cell(name, data, "", (), "", {}), kind)

    ready = [cell("a", "ETTh1", "1"), cell("b", "ETTh1", "2"), cell("c", "ETTh2", "3")]
    both = {"ETTh1", "ETTh2"}
    for last, others, known, begun, name in (
        ("2", {"ETTh1"}, (), (), "b"),
        ("2", (), {"3"}, (), "b"),
        ("", {"ETTh1"}, {"2"}, (), "b"),
        ("", {"ETTh1"}, (), (), "c"),
        ("", both, (), {"1"}, "b"),
        ("", both, (), {"1", "2", "3"}, "a"),
        ("", both, (), (), "a"),
        ("", (), (), (), "a"),
    ):
        assert reproduce.pick(ready, last, others, known, begun).cell.name == name


def test_a_lane_knows_what_its_team_has_compiled_and_is_compiling(crew, tmp_path):
    class Asks:  # who answers that lane 0's cell has ended well, when it is asked
        sent, answers = [], [(0, 0)]

        def send(self, what):
            self.sent.append(what)

        def poll(self):
            return bool(self.answers)

        def recv(self):
            return self.answers.pop()

    team = object.__new__(crew.Team)
    team.asks, team.known = Asks(), set()
    team.lanes = [crew.Lane(team, 0), crew.Lane(team, 1)]
    for lane, kind in zip(team.lanes, "ab", strict=True):
        lane.start(tmp_path / kind, [], kind)
    assert (team.lanes[0].known, team.lanes[1].begun) == (set(), {"a", "b"})
    assert (team.lanes[0].answer(), team.lanes[1].answer()) == (0, None)
    for again in (False, True):  # what is known is compiled, whoever is at it
        if again:
            team.lanes[0].start(tmp_path / "a", [], "a")
        assert [(lane.known, lane.begun) for lane in team.lanes] == [({"a"}, {"b"})] * 2


def test_jobs_that_are_told_to_end_leave_nobody_behind(reproduce, noted, tmp_path, capsys):
    """SIGTERM to the program itself: its workers end, and what they spent is noted."""

    def told():
        while not noted_yet():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    def noted_yet():
        return (tmp_path / "notes").exists() and len(noted()) == 1

    thread = threading.Thread(target=told)
    thread.start()
    assert run(reproduce, tmp_path, "--data=Weather", "--seeds=1", "--jobs=2", "--rows=prompts") == 75
    thread.join()
    assert "reproduce: told to end (SIGTERM); the same command goes on" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(noted()["Weather-s0"].process, 0)
    assert float((tmp_path / "runs/main/Weather-s0.seconds").read_text()) > 0


@pytest.mark.parametrize("code", [130, 75])
def test_a_cell_that_was_told_to_end_is_the_last(reproduce, monkeypatch, tmp_path, code):
    ran = []
    monkeypatch.setattr(reproduce.workers, "run_main", lambda argv: ran.append(argv) or code)
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=2") == code
    assert len(ran) == 1


def test_a_process_keeps_its_programs_for_cells_of_the_same_shapes(reproduce, monkeypatch, tmp_path):
    workers, said = reproduce.workers, []
    cells = [("a", "1"), ("b", "1"), ("c", "2"), ("fails", "2"), ("d", "2")]
    answers = iter([(tmp_path / name, [name], kind) for name, kind in cells])

    def recv():
        if not (cell := next(answers, None)):
            raise EOFError
        return cell

    def fake(argv):
        said.append(argv[0])
        if argv == ["fails"]:
            raise ValueError
        return 2 * (argv == ["b"])

    asked = types.SimpleNamespace(recv=recv, send=said.append)
    monkeypatch.setattr(workers, "run_main", fake)
    monkeypatch.setattr(workers.cache, "forget", lambda: said.append("forgotten"))
    monkeypatch.setattr(workers.jax, "clear_caches", lambda: None)
    monkeypatch.setattr(workers.os, "dup2", lambda *_: None)
    for name in (workers.MEMORY, workers.OLDER):
        monkeypatch.delenv(name, raising=False)
    workers.serve(asked, 0.25)
    assert said == ["a", 0, "b", 2, "forgotten", "c", 0, "fails", 1]  # after which the process ends
    assert os.environ.pop(workers.MEMORY) == "0.250"
    monkeypatch.setenv(workers.OLDER, "0.1")  # jax takes one of the names alone
    workers.serve(asked, 0.25)
    assert workers.MEMORY not in os.environ
    assert said[-2:] == ["d", 0]


def test_several_threads_keep_programs_of_a_few_kinds_until_none_is_at_work(reproduce, monkeypatch):
    workers, said = reproduce.workers, []
    monkeypatch.setattr(workers.cache, "forget", lambda: said.append("forgotten"))
    monkeypatch.setattr(workers.jax, "clear_caches", lambda: None)
    hand = workers.Hand(2)
    with hand.at("1"), hand.at("2"):
        pass
    with hand.at("3"), hand.at("4"):  # nothing is dropped while another is at work
        pass
    assert said == []
    with hand.at("5"):
        assert said == ["forgotten"]


def test_kinds_of_cells_differ_where_shapes_do(reproduce, tmp_path):
    plan = reproduce.Plan({}, tmp_path, [])

    def kind(part, name):
        cells = reproduce.PARTS[part](("ETTh1", "ETTh2"), (0, 1))
        return reproduce.shapes(plan, part, next(c for c in cells if c.name == name))

    of = kind("main", "ETTh1-s0")
    for same in ("ETTh1-s1", "ETTh1-s0-probe", "ETTh1-s1-scratch"):
        assert kind("main", same) == of
    assert kind("main", "ETTh2-s0") != of
    assert kind("transfer", "ETTh2-to-ETTh1-s0") == of  # a backbone of the same architecture
    for other in ("patch-12", "lookback-96", "decoder-of-2-blocks", "decoder-of-2-blocks-prompts-at-each"):
        assert kind("ablations", f"ETTh1-s0-{other}") != of
    assert kind("ablations", "ETTh1-s0-mask-ratio-0.2") == of


def test_a_worker_runs_cells_and_all_its_words_are_in_their_logs(crew, tmp_path):
    worker = crew.Worker([], 0.5)
    try:
        for name in ("one", "two"):  # a user's mistake ends no process
            worker.start(tmp_path / f"{name}.log", [f"--nothing={name}"], "kind")
            while (code := worker.answer()) is None:
                time.sleep(0.05)
            assert code == 2
            assert (tmp_path / f"{name}.log").read_text().startswith("ptt_jax: ")
            assert worker.alive
    finally:
        worker.end()
    assert not worker.alive


def test_a_cell_that_fails_holds_up_no_other(reproduce, tmp_path, capsys):
    reproduce.broken = ("ETTh1-s0",)
    assert run(reproduce, tmp_path, "--data=ETTh1", "--rows=prompts", "--seeds=2") == 1
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s1"]
    out = capsys.readouterr().out
    assert "1 of 2  main/ETTh1-s0  FAILED, see" in out
    assert "2 of 2  main/ETTh1-s1  done" in out
    assert "ValueError: a bug" in (tmp_path / "runs/main/ETTh1-s0.log").read_text()


def test_overrides_make_a_table_of_their_own(reproduce, tmp_path, capsys):
    argv = ["--data=ETTh1", "--rows=prompts", "--seeds=1", "--config.model.width=128"]
    assert run(reproduce, tmp_path, *argv) == 0
    (file,) = (tmp_path / "results").glob("*.csv")
    assert file.stem.startswith("main-")
    assert "width=128" in pd.read_csv(file).command.iloc[0]
    assert "old" in (tmp_path / "README.md").read_text()
    assert "| prompts |" in capsys.readouterr().out


def test_a_row_brings_the_backbones_that_it_needs(reproduce, tmp_path):
    assert run(reproduce, tmp_path, "--data=Weather", "--rows=from scratch: everything", "--seeds=1") == 0
    assert reproduce.ran == ["Weather-s0-random", "Weather-s0-scratch"]


def test_another_part_brings_the_backbones_of_the_main_table_first(reproduce, tmp_path):
    argv = [f"--runs={tmp_path / 'runs'}", "--only=few", "--data=ETTh1", "--seeds=1"]
    assert reproduce.main([*argv, "--rows=prompts, 5%;from scratch: everything, 1%"]) == 0
    assert reproduce.ran == ["ETTh1-s0", "ETTh1-s0-random", "ETTh1-s0-0.01-scratch", "ETTh1-s0-0.05"]
    table = pd.read_csv(tmp_path / "results/few.csv")
    assert {*table.model} == {"prompts, 5%", "linear, 5%", "from scratch: everything, 1%"}


def test_one_backbone_of_all_sets_comes_before_its_prompts(reproduce, tmp_path):
    argv = [f"--runs={tmp_path / 'runs'}", "--only=transfer", "--data=ETTh1,Weather", "--seeds=1"]
    assert reproduce.main([*argv, "--rows=prompts on one backbone of five"]) == 0
    assert reproduce.ran == ["five-s0", "five-to-Weather-s0"]
    made = [c for c in reproduce.PARTS["transfer"](["ETTh1", "Weather"], [0]) if c.name == "five-s0"]
    assert "pretrain.also=ETTh2,ETTm1,ETTm2,Weather" in made[0].overrides


def test_what_learns_from_further_files_is_asked_for_where_they_are(reproduce, monkeypatch, tmp_path):
    monkeypatch.setenv("PTT_DATA_DIR", str(tmp_path))
    cells = reproduce.PARTS["transfer"](["ETTh1", "Weather"], [0])
    nine = {"nine-s0", "nine-to-Weather-s0"}
    assert {c.name for c in cells} - {c.name for c in reproduce.with_files(cells)} == nine
    (made,) = (c for c in cells if c.name == "nine-s0")
    (also,) = (text.partition("=")[2].split(",") for text in made.overrides if text.startswith("pretrain.also"))
    assert len(also) == 8
    for name in also[4:]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert reproduce.with_files(cells) == cells


def test_every_cell_is_a_command_that_parses(reproduce, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT.parent)
    parts = {part: make(reproduce.SETS, range(2)) for part, make in reproduce.PARTS.items()}
    by_name = {f"{part}/{cell.name}": cell for part, cells in parts.items() for cell in cells}
    assert len(by_name) == sum(map(len, parts.values()))
    plan, behind, steps, patches = reproduce.Plan(parts, tmp_path, []), set(), {}, {}
    for name, cell in by_name.items():
        part = name.partition("/")[0]
        cfg, _ = flags.parse(plan.argv(part, cell))
        patches[name] = cfg.model.patch
        assert cfg.data.name == cell.data
        assert {*cell.rows} <= {"seasonal_naive", "linear", "zero_shot", cfg.tune.mode}
        if cfg.tune.mode != "prompt":  # what prompts are compared with never gets fewer steps
            if cell.config not in steps:
                steps[cell.config] = flags.parse([f"--config={cell.config}"])[0].tune.steps
            epoch = {"ETTh1": 126, "ETTh2": 126}.get(cell.data, 0)
            assert cfg.tune.steps >= 2 * epoch
            assert cfg.tune.steps > steps[cell.config]
        if cell.backbone:  # whose patch must divide this lookback, and which comes first
            source = cell.backbone if "/" in cell.backbone else f"{part}/{cell.backbone}"
            assert source in (behind if source.startswith(f"{part}/") else by_name)
            config.check_lookback(cfg.lookback, patches[source])
            assert cfg.backbone == str(tmp_path / source)
        behind.add(name)


def test_a_study_is_called_with_the_same_runs_and_seeds(reproduce, monkeypatch, tmp_path):
    called = []
    for name in reproduce.STUDIES.values():
        study = types.SimpleNamespace(main=lambda argv, name=name: called.append((name, argv)) or 0)
        monkeypatch.setitem(sys.modules, name, study)
    runs = f"--runs={tmp_path / 'runs'}"
    assert reproduce.main([runs, "--only=imputation,anomalies", "--data=ETTh1", "--seeds=2", "--tables"]) == 0
    assert called == [
        ("impute", [runs, "--seeds=2", "--tables", "--data=ETTh1"]), ("detect", [runs, "--seeds=2", "--tables"]),
    ]  # fmt: skip
    assert reproduce.ran == []
    monkeypatch.setattr(sys.modules["tokens"], "main", lambda argv: 2)
    assert reproduce.main([runs, "--only=tokens"]) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["--only=mian"], "accepted: main"), (["--data=ETTh9"], "accepted: ETTh1"), (["--rows=prompt"], "prompts"),
     (["--seeds=0"], "accepted: 1 to 10"), (["--nope"], "argument --nope is unknown"),
     (["--jobs=0"], "accepted: 1 or more")],
)  # fmt: skip
def test_what_does_not_exist_is_one_sentence(reproduce, capsys, argv, words):
    assert reproduce.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err


def test_sets_without_a_file_are_left_out(reproduce, monkeypatch, tmp_path):
    monkeypatch.setenv("PTT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PTT_CACHE_DIR", str(tmp_path))
    (tmp_path / "weather.csv").write_text("")
    assert reproduce.at_hand(["ETTh1", "Weather", "Traffic"]) == ["ETTh1", "Weather"]  # ETT is fetched


def test_a_note_is_kept_of_every_run(reproduce, tmp_path):
    run(reproduce, tmp_path, "--data=ETTh1", "--rows=new head: probe", "--seeds=1")
    lines = (tmp_path / "results/cells/main.jsonl").read_text().splitlines()
    about = json.loads(lines[1])["about"]
    assert about["seconds"] >= 0
    assert about["versions"]["device"] == "1 x chip"
    assert "workdir" not in about["command"]
    assert "--config.backbone=runs/reproduce/main/ETTh1-s0" in about["command"]  # no path of this machine


def test_a_table_goes_into_both_readmes_between_its_markers_and_nowhere_else(reproduce, monkeypatch, tmp_path):
    here = tmp_path / "experiments"
    here.mkdir()
    monkeypatch.setattr(reproduce.records, "HERE", here)
    page = "a\n<!-- table main -->\nold\n<!-- end main -->\nb\n<!-- table few -->\nkept\n<!-- end few -->\n"
    for folder in (here, tmp_path):
        (folder / "README.md").write_text(page)
    assert reproduce.write_table("main", "new")
    for folder in (here, tmp_path):
        assert (folder / "README.md").read_text() == page.replace("old", "new")
    assert not reproduce.write_table("nowhere", "new")


def test_a_lane_whose_log_cannot_be_written_is_answered_for_all_the_same(crew, tmp_path):
    team = crew.Team([], 0.5, 2)
    try:
        (tmp_path / "folder").mkdir()
        team.lanes[0].start(tmp_path / "folder", [], "kind")  # no file
        while (code := team.lanes[0].answer()) is None:
            time.sleep(0.1)
        assert (code, team.lanes[0].alive, team.lanes[1].alive) == (1, False, False)
    finally:
        team.lanes[0].end()
