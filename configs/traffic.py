"""Traffic: 862 channels, hourly; lookback 504, patch of a day. Not run here: its file has no plain public home.

python -m ptt_jax.main --config=configs/traffic.py --config.data.dir=DIR   # DIR holds traffic.csv
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "Traffic"
    cfg.pretrain.steps = 6000
    cfg.tune.steps = 2000
    return cfg
