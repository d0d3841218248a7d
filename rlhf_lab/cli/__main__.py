"""`python -m rlhf_lab.cli`."""

from rlhf_lab.cli import main

main()
