"""ETTm2: 7 channels, every 15 minutes; the shared recipe (`config.benchmark`), patch of half a day.

python -m ptt_jax.main --config=configs/ettm2.py

By validation (experiments/results/levers.csv) hidden patches enter the encoder as zeros here.

One core of an AMD EPYC, shared with other jobs: 8 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2:
prompts .158 .215 .268 .356, mean .249; mask token alone, mean .253; linear, mean .248.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTm2")
    cfg.model.update(patch=48, hiding="value")
    cfg.pretrain.steps = 3000
    cfg.tune.steps = 300
    return cfg
