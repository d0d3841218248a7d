"""Reinforcement learning from a reward: the loop, the update, and one function for each equation."""
