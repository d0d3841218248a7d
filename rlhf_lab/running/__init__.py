"""From validated runs to finished ones: the plan, the driver, its workers and their limits."""
