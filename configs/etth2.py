"""ETTh2: 7 channels, hourly; lookback 504, patch of a day.

    python -m ptt_jax.main --config=configs/etth2.py

One core of an AMD EPYC: 4.4 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2, with tune.epochs=4.0 and
tune.validations=8 (experiments/results/etth.csv):
prompts .281 .343 .369 .397, mean .348; mask token alone, mean .351.
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "ETTh2"
    return cfg
