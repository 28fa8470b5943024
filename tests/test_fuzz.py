"""What hypothesis makes up is taken as it must be, or refused in one sentence; `experiments/fuzz.py` at length."""

import pytest
from hypothesis import HealthCheck, given, settings
from test_experiments import script

fuzz = script("fuzz")
EXAMPLES = {"csv": 100, "frames": 100, "config": 150, "json": 100, "windows": 60}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_made_up_is_taken_or_refused_in_a_sentence(name, tmp_path):
    check, strategies = fuzz.properties(tmp_path)[name]

    @settings(
        max_examples=EXAMPLES[name], derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(**strategies)
    def holds(**drawn):
        check(**drawn)

    holds()
