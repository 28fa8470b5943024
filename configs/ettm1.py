"""ETTm1: 7 channels, every 15 minutes; lookback 576 (six days), patch of half a day.

    python -m ptt_jax.main --config=configs/ettm1.py

Pre-training normalises by what is visible: on ETTm1's validation better than by the whole window
(experiments/results/levers.csv).
One core of an AMD EPYC, beside another job: 5 minutes. Test MSE at 96, 192, 336, 720 of seed 0: prompts
.291 .326 .355 .410, mean .345; mask token alone, mean .347; linear, mean .356.
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "ETTm1"
    cfg.lookback = 576
    cfg.model.patch = 48
    cfg.pretrain.norm = "visible"
    cfg.pretrain.steps = 1200
    cfg.tune.steps = 300
    return cfg
