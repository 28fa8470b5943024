"""Files that say whether they are what was written."""

import json
import re

import pytest

from ptt_jax import seal
from ptt_jax.errors import UserError

CARD = {
    "format": 3,
    "step": 12,
    "run": "",
    "rate": 0.00123,
    "shapes": {"96": [1, 1, 4, 64]},
    "name": "Zürich",
    "gap": None,
}


def test_a_card_comes_back_without_its_seal(tmp_path):
    seal.write_json(tmp_path / "card.json", CARD)
    assert seal.read_json(tmp_path / "card.json") == CARD
    page = json.loads((tmp_path / "card.json").read_text())
    assert [*page] == [*CARD, "seal"]


def test_no_flipped_bit_of_a_card_is_silent(tmp_path):
    """It is found, or the content is the same."""
    path, said, harmless = tmp_path / "card.json", [], 0
    seal.write_json(path, CARD)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            assert seal.read_json(path) == CARD
            harmless += 1
        except UserError as e:
            said.append(str(e))
    assert all(str(path) in words for words in said)
    assert harmless < 20 < len(said)


def test_a_card_of_an_earlier_version_has_no_seal_and_is_read(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    assert seal.read_json(tmp_path / "card.json") == CARD


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b"[1]", "no object"),
        (b"\xff{}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_card_is_named(tmp_path, content, words):
    path = tmp_path / "card.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{words}.*accepted"):
        seal.read_json(path)


def test_files_are_known_by_their_marks(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n")
    (tmp_path / "log.jsonl").write_text("{}\n")
    seal.note_files(tmp_path / "noted.json", ["a.csv", "log.jsonl", "none.csv"], {"b.csv": "3\n"})
    with pytest.raises(UserError, match=r"b\.csv cannot be read"):
        seal.check_files(tmp_path / "noted.json")
    (tmp_path / "b.csv").write_text("3\n")
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write("{}\n")  # a log grows
    seal.check_files(tmp_path / "noted.json")
    (tmp_path / "a.csv").write_text("1,3\n")
    with pytest.raises(UserError, match=r"a\.csv is not what was written .*noted\.json.*accepted"):
        seal.check_files(tmp_path / "noted.json")
