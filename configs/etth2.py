"""ETTh2: 7 channels, hourly; the shared recipe (`config.benchmark`), patch of a day.

python -m ptt_jax.main --config=configs/etth2.py

By validation (experiments/results/levers.csv) pre-training has Huber's loss here.

One core of an AMD EPYC, shared with other jobs: 10 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2:
prompts .280 .340 .368 .386, mean .343; mask token alone, mean .358; linear, mean .330.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh2")
    cfg.pretrain.loss = "huber"
    return cfg
