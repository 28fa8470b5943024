"""Downloads from a server on this machine that does what servers do: another file, a hang, half a body."""

import dataclasses
import hashlib
import http.server
import os
import threading

import pytest

from ptt_jax import benchmarks
from ptt_jax.errors import UserError

BODY = b"date,OT\n2016-07-01 00:00:00,1.0\n" * 50
ROW = benchmarks.DataSet("tiny.csv", 50, 1, "h", "fractions", hashlib.sha256(BODY).hexdigest())


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by the name that is asked for."""

    def do_GET(self):
        name = self.path.strip("/")
        if name == "missing":
            return self.send_error(404)
        self.send_response(200)
        if name != "endless":
            self.send_header("Content-Length", str(len(BODY)))
        self.send_header("Content-Disposition", 'attachment; filename="../../evil.csv"')
        self.end_headers()
        if name == "silent":
            self.server.over.wait(5)
        elif name == "slow":
            while not self.server.over.wait(0.02):
                self.wfile.write(b"x")
        elif name == "endless":
            while not self.server.over.is_set():
                self.wfile.write(b"x" * 2**16)
        else:
            sent = {"whole": BODY, "half": BODY[: len(BODY) // 2], "other": BODY.replace(b"1.0", b"1.1")}
            self.wfile.write(sent[name])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as of:
        of.over, of.handle_error = threading.Event(), lambda *_: None
        thread = threading.Thread(target=of.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{of.server_port}"
        of.over.set()
        of.shutdown()
        thread.join()


def fetch(server, name, folder):
    row = dataclasses.replace(ROW, url=f"{server}/{name}")
    return benchmarks.download(row, folder / "cache" / row.file, "put it there yourself")


def test_a_whole_file_lies_in_the_cache_whatever_the_server_calls_it(server, tmp_path):
    assert fetch(server, "whole", tmp_path).read_bytes() == BODY
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["cache", "cache/tiny.csv"]


@pytest.mark.parametrize(
    ("name", "words", "limits"),
    [
        ("other", "SHA-256 differs", {}),
        ("half", r"could not be fetched .*IncompleteRead\(800 bytes read, 800 more expected\)", {}),
        ("silent", "could not be fetched .*timed out", {"TIMEOUT": 0.2}),
        ("slow", "could not be fetched .*not whole after 0.3 s", {"LONGEST": 0.3}),
        ("endless", "could not be fetched .*more than 1,000,000 bytes", {"LARGEST": 1_000_000}),
        ("missing", "could not be fetched .*404", {}),
    ],
)
def test_what_is_not_whole_is_a_sentence_and_leaves_no_file(server, tmp_path, monkeypatch, name, words, limits):
    for limit, value in limits.items():  # the others are as they are: a busy machine is slow, too
        monkeypatch.setattr(benchmarks, limit, value)
    with pytest.raises(UserError, match=f"{words}.*put it there yourself"):
        fetch(server, name, tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_processes_of_the_same_number_do_not_write_into_each_others_file(server, tmp_path, monkeypatch):
    """As in two containers that share a cache: what the slower one still writes is not what the faster one moved."""
    real, late = os.replace, []

    def replace(source, target):
        if not late:
            late.append(source)
            fetch(server, "whole", tmp_path)  # the other one, from beginning to end
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    assert fetch(server, "whole", tmp_path).read_bytes() == BODY
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.csv"]
