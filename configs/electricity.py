"""Electricity: 321 channels, hourly; lookback 504, patch of a day. Not run here: its file has no plain public home.

python -m ptt_jax.main --config=configs/electricity.py --config.data.dir=DIR   # DIR holds electricity.csv
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "Electricity"
    cfg.pretrain.steps = 6000
    cfg.tune.steps = 2000
    return cfg
