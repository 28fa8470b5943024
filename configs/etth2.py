"""ETTh2: 7 channels, hourly; lookback 504, patch of a day.

python -m ptt_jax.main --config=configs/etth2.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "ETTh2"
    return cfg
