"""ETTh1: 7 channels, hourly; the shared recipe (`config.benchmark`), patch of a day.

python -m ptt_jax.main --config=configs/etth1.py

By validation (experiments/results/levers.csv) pre-training normalises by the whole window here.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh1")
    cfg.pretrain.norm = "window"
    return cfg
