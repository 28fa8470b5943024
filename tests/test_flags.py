"""What is typed becomes a config and a place, or one sentence about what is mistyped."""

from pathlib import Path

import pytest

from ptt_jax import flags
from ptt_jax.errors import UserError
from ptt_jax.knobs import KNOBS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    """Relative paths as a user types them."""
    monkeypatch.chdir(ROOT)


def test_a_knob_that_decides_nothing_gives_no_directory_of_its_own():
    assert flags.parse(["--config=configs/quickstart.py", "--config.devices=1"])[1] == Path("runs/quickstart")


def test_overrides_give_a_run_directory_of_its_own():
    plain = flags.parse(["--config=configs/quickstart.py"])[1]
    wide, wide_again = (flags.parse(["--config=configs/quickstart.py", "--config.model.width=64"])[1] for _ in range(2))
    seed = flags.parse(["--config=configs/quickstart.py", "--config.seed=1"])[1]
    assert plain == Path("runs/quickstart")
    assert wide == wide_again
    assert len({plain, wide, seed}) == 3
    assert flags.parse(["--config=configs/quickstart.py", "--workdir=here"])[1] == Path("here")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "no --config=FILE given"),
        (["--config=configs/none.py"], "accepted: configs/csv.py, configs/electricity.py"),
        (["--config=configs/csv.py", "--config.tune.lr=1"], "config key tune.lr does not exist"),
        (["--config=configs/csv.py", "--config.learning_rate=1"], "pretrain.learning_rate, tune.learning_rate"),
        (["--config=configs/csv.py", "--config.model.widht=32"], "nearest: model.width"),
        (["--config=configs/csv.py", "--config.model=32"], "config key model does not exist"),
        (["--config=configs/csv.py", "--config.model.width"], "accepted: --config.model.width=VALUE"),
        (["--config=configs/csv.py", "--config.model.width=1e2"], "config.model.width = 1e2 is no int"),
        (["--config=configs/csv.py", "--config.model.width=wide"], "config.model.width = wide is no int"),
        (["--config=configs/csv.py", "--config.model.width=-4"], "config.model.width = -4 is out of range"),
        (["--config=configs/csv.py", "--config.horizons=a,b"], "96,192 or 48,"),
        (["--config=configs/csv.py", "--config.data.download=maybe"], "config.data.download = maybe is no bool"),
        (["--config=configs/csv.py", "--workdri=x"], "argument --workdri=x is unknown"),
        (["--config=configs/csv.py", "stray"], "argument stray is unknown"),
        (["--config=configs/csv.py", "--config.tune.learning_rates=1e-3,0"], "numbers above 0 like"),
        (["--config=configs/csv.py", "--config.tune.learning_rates=fast"], "numbers above 0 like"),
        (["--config=configs/csv.py", "--config.tune.weight_decays=0.1,0.1"], "numbers of at least 0 like"),
    ],
)  # fmt: skip
def test_what_is_mistyped_is_named_with_what_would_be_accepted(argv, sentence):
    with pytest.raises(UserError) as e:
        flags.parse(argv)
    assert sentence in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--profile"], "accepted: --profile=DIR"),
        (["--profile=README.md/x"], "--profile=README.md/x: Not a directory"),
    ],
)
def test_a_folder_that_is_none_is_named(argv, sentence):
    with pytest.raises(UserError, match=sentence):
        flags.profile_folder(argv)
    assert flags.profile_folder([]) == ""


@pytest.mark.parametrize("text", ["{", "[1]", "def get_config(): return 1", "x = 1", "def get_config(:", "1 / 0"])
@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_a_broken_config_file_is_one_sentence(text, suffix, tmp_path):
    (tmp_path / f"mine{suffix}").write_text(text)
    with pytest.raises(UserError, match=r"^--config=(.|\n)*accepted: ") as e:
        flags.parse([f"--config={tmp_path / f'mine{suffix}'}"])
    assert "\n" not in " ".join(str(e.value).split())


def test_a_stage_knows_which_knobs_were_said(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ptt_jax import config\ndef get_config():\n    cfg = config.default()\n    cfg.seed = 3\n    return cfg\n"
    )
    cfg, said = flags.parse_stage([f"--config={tmp_path / 'mine.py'}", "--config.model.patch=7", "--workdir=kept"])
    assert said == {"seed", "model.patch"}
    assert (cfg.seed, cfg.model.patch) == (3, 7)
    with pytest.raises(UserError, match="argument now is unknown"):
        flags.parse_stage(["now"])


def test_help_lists_every_knob():
    text = flags.legend("how to use it")
    assert text.startswith("how to use it\n")
    assert all(f"--config.{key}=" in text for key, *_ in KNOBS)
