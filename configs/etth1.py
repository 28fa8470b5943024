"""ETTh1: 7 channels, hourly; the shared recipe (`config.benchmark`), patch of a day.

python -m ptt_jax.main --config=configs/etth1.py

By validation (experiments/results/levers.csv) pre-training normalises by the whole window here.

One core of an AMD EPYC, shared with other jobs: 10 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2:
prompts .360 .400 .424 .438, mean .406; mask token alone, mean .409; linear, mean .403.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh1")
    cfg.pretrain.norm = "window"
    return cfg
