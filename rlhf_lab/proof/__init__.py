"""Worlds whose answers are known: by enumeration, in closed form, and the bias of every gradient estimator against them."""
