"""The page of a run: what its files say, in any browser, from nowhere else, and harmless whatever data is called."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from test_report import MSE, toy

from ptt_jax import page
from ptt_jax.errors import UserError

CHANNELS = ("<script>alert(1)</script>", '</svg>"><img src=x onerror=alert(1)>', "气温")
VOID = {"meta", "path", "rect", "circle", "line", "img", "link"}


@pytest.fixture
def run(tmp_path):
    """The run of the report's tests with all that a page shows besides, and channels that are called like markup."""
    toy(tmp_path)
    rng = np.random.default_rng(1)
    rows = [("Toy", h, m, "test", c, k + 0.25, k + 0.5) for m in MSE for h in (8, 16) for k, c in enumerate(CHANNELS)]
    columns = ["data", "horizon", "model", "split", "channel", "mse", "mae"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "channels.csv", index=False)
    with np.load(tmp_path / "samples.npz") as f:
        samples = {**f, "channel_S": np.array([*CHANNELS[:2]] * 2)}
    np.savez(tmp_path / "samples.npz", **samples)
    y_SH = samples["forecast_prompt_SH"]
    np.savez(
        tmp_path / "exhibits.npz", model="prompt", levels=(80, 95), windows=50, apart=3, patch=8,
        low_ZSH=np.stack([y_SH - 1, y_SH - 2]), high_ZSH=np.stack([y_SH + 1, y_SH + 2]), rows=1000, channels=3,
        coverage_ZH=np.full((2, 16), 0.75), attention_IKMN=rng.dirichlet(np.ones(4), (1, 2, 2)), missing=0.01,
        first="2024-01-01", last="2024-02-01",
    )  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"backbone": "runs/<b>bold</b>", "model": {"width": 128}, "tune": {"mode": "prompt"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


class Tree(HTMLParser):
    """Every element with its attributes and its text, and whether all that opened was closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.wrong = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop()[0] != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        for _, _, words in self.open:
            words.append(data)

    def all(self, tag):
        return [(attrs, "".join(words)) for name, attrs, words in self.found if name == tag]


def tree(run, command=""):
    return Tree(page.write(run, command).read_text(encoding="utf-8"))


def rows(seen, caption):
    """The cells of a table by the heading of their row."""
    words = next(words for _, words in seen.all("table") if words.startswith(caption))
    assert words
    at = next(i for i, (tag, _, w) in enumerate(seen.found) if tag == "table" and "".join(w).startswith(caption))
    out, name = {}, None
    for tag, attrs, w in seen.found[at + 1 :]:
        if tag == "table":
            break
        if tag == "th" and attrs.get("scope") == "row":
            name = "".join(w).strip()
            out[name] = []
        elif tag == "td":
            out[name].append("".join(w))
    return out


def test_the_page_is_whole_and_comes_from_nowhere_else(run):
    seen, text = tree(run, "python --config=<x>"), (run / "report.html").read_text(encoding="utf-8")
    assert not seen.wrong
    assert not seen.open
    assert "://" not in text
    assert not re.search(r"@import|url\(", text)
    for tag, attrs, _ in seen.found:
        assert not {"src", "srcset", "style", "action", "xlink:href"} & {*attrs}, tag
        assert not [name for name in attrs if name.startswith("on")], tag
        assert attrs.get("href", "#").startswith("#")
    anchors = {attrs["href"][1:] for attrs, _ in seen.all("a")}
    assert anchors <= {attrs.get("id") for _, attrs, _ in seen.found}
    assert len(anchors) == 7
    assert len(text) < 300_000


def test_the_policy_knows_the_style_and_the_script_and_nothing_else(run):
    seen = tree(run)
    (policy,) = (a["content"] for a, _ in seen.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        ((_, text),) = seen.all(tag)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_names_that_look_like_markup_are_text(run):
    seen = tree(run)
    assert not seen.all("img")
    assert not seen.all("b")
    assert len(seen.all("script")) == 1
    words = [words for _, words in seen.all("text")]
    assert any(w.startswith(f"{CHANNELS[0]}, from 2024-01-01") for w in words)
    titles = [words for _, words in seen.all("title")]
    assert any(w.startswith(f"{CHANNELS[1]}: prompt 1.25") for w in titles)
    assert {*CHANNELS} <= {*rows(seen, "MSE by channel")}


def test_figures_and_tables_say_what_they_are(run):
    seen = tree(run)
    charts = [attrs for attrs, _ in seen.all("svg") if attrs["class"] == "chart"]
    assert len(charts) == len(seen.all("figure"))
    # windows; coverage; two of horizons, of steps, of channels, of attention and of learning; horizon 8; a head each
    assert len(charts) == 4 + 1 + 2 * 5 + 1 + 2
    for attrs in charts:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"]) > 20
        for name, value in attrs.items():
            assert name != "data-plot" or json.loads(value)["lines"]
    assert len(seen.all("caption")) == len(seen.all("table"))
    assert all(attrs.get("scope") in ("row", "col") for attrs, _ in seen.all("th"))


def test_the_tables_say_what_the_files_say_and_mark_the_best(run):
    seen = tree(run)
    found = rows(seen, "MSE / MAE on test")
    assert found["linear"] == ["0.500 / 0.600", "0.700 / 0.800", "0.600 / 0.700"]
    assert found["windows"] == ["1,226", "1,218", ""]
    best = ["".join(w) for tag, attrs, w in seen.found if tag == "td" and attrs.get("class") == "best"]
    assert best[:3] == ["0.400 / 0.500", "0.600 / 0.700", "0.525 / 0.625"]
    assert rows(seen, "MSE / MAE on validation")["linear"][0] == "1.500 / 1.600"
    assert rows(seen, "Settings that are not")["model.width"][:2] == ["128", "64"]
    assert rows(seen, "Data")["missing"] == ["1.00 %"]
    ((_, lead),) = [(a, w) for a, w in seen.all("p") if a.get("class") == "lead"]
    assert lead.startswith("Prompt: mean test MSE 0.525, 30.0 % below seasonal naive's, 12.5 % below linear's")
    assert "75.0 % lie within those of 80 %" in "".join(w for _, w in seen.all("small"))


def test_other_columns_of_the_results_have_tables_of_their_own(run):
    results = pd.read_csv(run / "results.csv")
    results.assign(coverage_80=0.79).to_csv(run / "results.csv", index=False)
    assert rows(tree(run), "80 % cover on test")["prompt"] == ["0.790"] * 3


def test_a_run_that_kept_nothing_to_look_at_says_so(run):
    for path in [*run.iterdir()]:
        if path.name != "results.csv":
            path.unlink()
    seen = tree(run)
    assert not seen.wrong
    said = [words for attrs, words in seen.all("p") if attrs.get("class") == "missing"]
    assert len(said) == 5
    for name, words in zip(
        ("samples.npz", "steps.csv", "channels.csv", "exhibits.npz", "metrics.jsonl"), said, strict=True
    ):
        assert f"there is no {name}" in words
    assert rows(seen, "MSE / MAE on test")["linear"][0] == "0.500 / 0.600"
    (run / "results.csv").unlink()
    with pytest.raises(UserError, match=r"^There is no .*results\.csv: a report needs [^.]*\.$"):
        page.write(run)


def test_of_many_channels_the_worst_and_the_spread_are_shown(run):
    errors = np.random.default_rng(0).permutation(862) + 1.0
    frame = pd.DataFrame({"channel": [f"c{e:.0f}" for e in errors], "mse": errors, "mae": errors})
    frame.assign(data="Toy", horizon=16, model="prompt", split="test").to_csv(run / "channels.csv", index=False)
    seen = tree(run)
    assert [*rows(seen, "MSE by channel")][:2] == ["c862", "c861"]
    (chart,) = (
        a["aria-label"] for a, _ in seen.all("svg") if a.get("aria-label", "").startswith("MSE, horizon 16. The 24 w")
    )
    assert "c862 862, c861 861" in chart
    bars = [words for _, words in seen.all("title") if re.match(r"\d+ from ", words)]
    assert sum(int(words.split()[0]) for words in bars) == 862
    assert (run / "report.html").stat().st_size < 500_000


def test_writing_twice_changes_nothing_and_leaves_nothing_behind(run):
    first, names = page.write(run, "a").read_bytes(), sorted(path.name for path in run.iterdir())
    assert page.write(run, "a").read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == names


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(not browser(), reason="there is no chromium or chrome to open a page with")
def test_a_browser_shows_all_of_it_and_has_nothing_to_complain_of(run):
    pytest.importorskip("matplotlib")  # which reads the picture
    from matplotlib.image import imread

    path = page.write(run, "a command")
    flags = "--headless --no-sandbox --disable-gpu --disable-extensions --no-first-run --hide-scrollbars "
    flags += "--window-size=390,2400 --virtual-time-budget=2000 --enable-logging=stderr --v=0"
    command = [browser(), *flags.split(), f"--user-data-dir={run / 'profile'}", f"--screenshot={run / 'page.png'}"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    seen, written = Tree(done.stdout), Tree(path.read_text(encoding="utf-8"))
    assert not seen.wrong
    for tag in ("table", "figure", "svg", "section", "script", "details"):
        assert len(seen.all(tag)) == len(written.all(tag)) > 0, tag
    assert not seen.all("img")
    tips = [attrs for attrs, _ in seen.all("div") if attrs.get("class") == "tip"]  # the script has run, to its end
    assert len(tips) == sum("data-plot" in attrs for attrs, _ in written.all("svg"))
    picture = imread(run / "page.png")[..., :3]
    assert picture.shape[1] == 390
    inked = (np.abs(picture - picture[0, 0]).max(-1) > 0.1).mean()
    assert 0.02 < inked < 0.6
    orange = (picture[..., 0] > 0.7) & (picture[..., 1] < 0.5) & (picture[..., 2] < 0.3)
    assert orange.sum() > 300  # the prompt's forecasts
