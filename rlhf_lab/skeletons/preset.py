"""TODO: one line on which publication this repeats."""

from rlhf_lab import hookimpl
from rlhf_lab.contracts import Preset

SOURCE = "TODO: author, year, section"

SKELETON = Preset(
    "skeleton",
    """A preset that sets two values. TODO: which experiment of which paper, and what is left to the user.

    Each value stands at its dotted path in a spec and names its source; what a spec says goes over it.
    """,
    {
        "rl.kl.beta": (0.05, SOURCE),
        "rl.inner_epochs": (4, SOURCE),
    },
)


@hookimpl
def register_components(register):
    register(SKELETON)
