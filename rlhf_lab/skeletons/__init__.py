"""What `rlhf-lab plugins new KIND NAME` starts from: one component per kind, which runs as it is and says what to fill in.

In the copy `skeleton` becomes the name that was asked for, `Skeleton` its class.
"""
