"""ETTm1: 7 channels, every 15 minutes; the shared recipe (`config.benchmark`), patch of half a day.

python -m ptt_jax.main --config=configs/ettm1.py

One core of an AMD EPYC, shared with other jobs: 12 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2:
prompts .283 .321 .351 .406, mean .340; mask token alone, mean .345; linear, mean .356.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTm1")
    cfg.model.patch = 48
    cfg.pretrain.steps = 3000
    cfg.tune.steps = 300
    return cfg
