"""From text to rewards: one formatter for training, scoring and serving."""
