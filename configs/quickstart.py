"""The main job in minutes: a generated hourly series of 4 channels, horizons 24 and 48.

python -m ptt_jax.main --config=configs/quickstart.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.lookback = 336
    cfg.horizons = (24, 48)
    cfg.model.patch = 12
    cfg.model.width = 32
    cfg.model.mlp = 64
    cfg.model.encoder_layers = 2
    cfg.pretrain.steps = 800
    cfg.pretrain.batch = 128
    cfg.pretrain.learning_rate = 3e-3
    cfg.pretrain.validations = 6
    cfg.pretrain.validation_rows = 1024
    cfg.tune.steps = 200
    cfg.tune.batch = 256
    cfg.tune.validations = 5
    return cfg
