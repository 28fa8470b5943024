"""Own data: any wide csv (.gz too) or parquet file; the time column is found by itself.

The sizes suit hourly data with a daily season.

python -m ptt_jax.main --config=configs/csv.py --config.data.path=mine.csv --config.horizons=48,
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "csv"
    cfg.lookback = 336
    cfg.horizons = (48,)
    cfg.pretrain.steps = 1200
    cfg.pretrain.batch = 256
    cfg.tune.steps = 300
    cfg.tune.batch = 256
    return cfg
