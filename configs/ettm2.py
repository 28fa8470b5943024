"""ETTm2: 7 channels, every 15 minutes; lookback 504, patches of 24 steps.

python -m ptt_jax.main --config=configs/ettm2.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "ETTm2"
    cfg.pretrain.steps = 2800
    cfg.tune.steps = 1000
    return cfg
