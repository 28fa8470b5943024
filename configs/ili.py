"""ILI: 7 channels of influenza-like illness, weekly; lookback 104 (two years), horizons 24 to 60, patches of 4 weeks.

python -m ptt_jax.main --config=configs/ili.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "ILI"
    cfg.lookback = 104
    cfg.horizons = (24, 36, 48, 60)
    cfg.model.patch = 4
    cfg.pretrain.steps = 1200
    cfg.pretrain.batch = 128
    cfg.tune.steps = 200
    cfg.tune.batch = 128
    return cfg
