"""ETTm1: 7 channels, every 15 minutes; the shared recipe (`config.benchmark`), patch of half a day.

python -m ptt_jax.main --config=configs/ettm1.py
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTm1")
    cfg.model.patch = 48
    cfg.pretrain.steps = 3000
    cfg.tune.steps = 300
    return cfg
