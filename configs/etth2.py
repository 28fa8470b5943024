"""ETTh2: 7 channels, hourly; the shared recipe, patch of a day.

python -m ptt_jax.main --config=configs/etth2.py

Pre-training normalises by what is visible, with Huber's loss, by validation (experiments/results/levers.csv).
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("ETTh2")
    cfg.pretrain.update(norm="visible", loss="huber")
    return cfg
