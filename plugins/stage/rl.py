"""The reinforcement learning stage; the loop is `rlhf_lab/rl/loop.py`, its parameters are `rlhf_lab/rl/parameters.py`."""

from rlhf_lab.contracts import hookimpl
from rlhf_lab.rl.loop import train
from rlhf_lab.rl.parameters import RLParameters


class RL(RLParameters):
    """Maximises E[score] − β·KL(π‖ref) on the prompts of the data (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2).

    Steps rows: `train` describes the rollouts that were trained on, `validation` held-out prompts; KL in nats per sequence.
    """

    kind, name = "stage", "rl"

    def run(self, ctx):
        train(self, ctx)


@hookimpl
def register_components(register):
    register(RL)
