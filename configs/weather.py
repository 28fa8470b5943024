"""Weather: 21 channels, every 10 minutes; lookback 504, patches of 24 steps.

python -m ptt_jax.main --config=configs/weather.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "Weather"
    cfg.pretrain.steps = 2800
    cfg.tune.steps = 1000
    return cfg
