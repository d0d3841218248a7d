"""The ratio of new to old probability, and what is logged of it."""


def measures(log_ratio_BT, batch):
    """`ratio` = E[ρ] and `approx_kl` = ½E[(log ρ)²] in nats, means over tokens (lm-human-preferences `train_policy.py`)."""
    return {"ratio": batch.token_mean(log_ratio_BT.exp()), "approx_kl": batch.token_mean(log_ratio_BT.square() / 2)}
