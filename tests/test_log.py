import contextlib
import json
import math
import os
import pty
import sys

from ptt_jax.log import Log, complain
from ptt_jax.loop import Pause


def pause(step: int, loss: float = 0.5) -> Pause:
    return Pause(None, step, loss, 1.0, 2.0)


def test_a_record_is_a_line_of_json_and_a_line_for_people(tmp_path, capsys):
    log = Log(tmp_path / "metrics.jsonl")
    log.pause("tune", pause(40), 100, 0.01, 12.34, {"validation_mse": {"96": 0.25, "192": 0.5}})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {
        "stage": "tune", "step": 40, "epoch": 0.4, "loss": 0.5, "seconds": 12.34,
        "validation_mse": {"96": 0.25, "192": 0.5},
    }  # fmt: skip
    words = "tune  step 40 of 100  loss 0.5000  validation mse 96: 0.2500 192: 0.5000  12 s  2 s left\n"
    assert capsys.readouterr().out == words


def test_a_step_without_a_loss_says_none(tmp_path, capsys):
    log = Log(tmp_path / "metrics.jsonl")
    log.pause("tune", pause(0, math.nan), 100, 0.01, 0.0, {"validation_loss": 0.25})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None
    assert "loss nan" not in capsys.readouterr().out


def test_rewinding_drops_later_steps_of_that_stage_and_a_torn_line(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    for stage, step in (("pretrain", 10), ("tune", 0), ("tune", 5), ("tune", 9)):
        log.write({"stage": stage, "step": step})
    with log.path.open("a") as f:
        f.write('{"stage": "tune", "step": 1')
    log.rewind("tune", 5)
    left = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in left] == [("pretrain", 10), ("tune", 0), ("tune", 5)]


def test_nothing_but_lines_goes_to_what_is_no_terminal(tmp_path, capsys):
    log = Log(tmp_path / "metrics.jsonl")
    log.progress("tune  step 3 of 9")
    log.say("done")
    assert capsys.readouterr().out == "done\n"
    log.live = True
    log.progress("tune  step 3 of 9")
    assert capsys.readouterr().out == "\r\033[Ktune  step 3 of 9"


def test_a_terminal_has_a_progress_line_that_every_other_line_replaces(tmp_path, monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "20")
        log = Log(tmp_path / "metrics.jsonl")
        log.progress("tune  step 3 of 9  7 s left")
        log.say("tune  step 9 of 9")
        log.progress("intervals")
        complain("ptt_jax: no")
        log.progress("more")
        log.progress("")
    said = ""
    with contextlib.suppress(OSError):  # how a terminal ends that nobody writes to
        while part := os.read(ours, 1000):
            said += part.decode()
    os.close(ours)
    clear = "\r\033[K"
    lines = (
        f"{clear}tune  step 3 of 9  {clear}tune  step 9 of 9\n{clear}intervals{clear}ptt_jax: no\n{clear}more{clear}"
    )
    assert said.replace("\r\n", "\n") == lines


def test_a_complaint_is_a_plain_line_where_nobody_watches(capsys):
    complain("ptt_jax: no")
    assert capsys.readouterr() == ("", "ptt_jax: no\n")
