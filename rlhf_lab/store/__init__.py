"""What is on disk and survives: atomic files, stage folders, checkpoints, leases, and the faults that tests plant in them."""
