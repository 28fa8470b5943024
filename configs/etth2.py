"""ETTh2: 7 channels, hourly; the shared recipe, patch of a day.

python -m ptt_jax.main --config=configs/etth2.py
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh2")
    return cfg
