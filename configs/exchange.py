"""Exchange: 8 exchange rates, daily; lookback 96, patches of 8 days. A random walk is hard to beat here.

python -m ptt_jax.main --config=configs/exchange.py
"""

from ptt_jax.config import default


def get_config():
    cfg = default()
    cfg.data.name = "Exchange"
    cfg.lookback = 96
    cfg.model.patch = 8
    return cfg
