"""Traffic: 862 channels, hourly; the shared recipe (`config.benchmark`), patch of a day.

Not run here: its file has no plain public home.

python -m ptt_jax.main --config=configs/traffic.py --config.data.dir=DIR   # DIR holds traffic.csv
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("Traffic")
    cfg.pretrain.steps = 12000
    cfg.tune.steps = 1000
    return cfg
