"""ETTh2: 7 channels, hourly; the shared recipe (`config.benchmark`), patch of a day.

python -m ptt_jax.main --config=configs/etth2.py

By validation (experiments/results/levers.csv) pre-training has Huber's loss here.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh2")
    cfg.pretrain.loss = "huber"
    return cfg
