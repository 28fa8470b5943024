"""Weather: 21 channels, every 10 minutes; the shared recipe, patch of eight hours.

python -m ptt_jax.main --config=configs/weather.py

Pre-training normalises by what is visible, with Huber's loss, by validation (experiments/results/levers.csv).
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("Weather")
    cfg.model.patch = 48
    cfg.pretrain.update(norm="visible", loss="huber")
    cfg.pretrain.steps = 5000
    cfg.tune.steps = 300
    return cfg
