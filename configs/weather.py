"""Weather: 21 channels, every 10 minutes; the shared recipe (`config.benchmark`), patch of eight hours.

python -m ptt_jax.main --config=configs/weather.py

Its validation is better with Huber's loss in pre-training, with the whole lookback alone, without windows that are
flipped or blended, and with a prompt for each of its unlike channels (experiments/results/levers.csv).

One core of an AMD EPYC, shared with other jobs: 12 minutes. Test MSE at 96, 192, 336, 720, mean of seeds 0 to 2:
prompts .145 .188 .242 .319, mean .223; mask token alone, mean .227; linear, mean .243.
"""

from ptt_jax.config import benchmark


def get_config():
    cfg = benchmark("Weather")
    cfg.views = 1
    cfg.model.patch = 48
    cfg.pretrain.update(steps=5000, loss="huber", flip=0.0, blend=0.0)
    cfg.tune.update(prompts="channel", steps=1400, learning_rate=3e-3, validations=7)
    return cfg
