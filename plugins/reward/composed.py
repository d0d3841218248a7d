"""A scorer that is made of other scorers, whose state is theirs."""

from rlhf_lab.rl.rewards import checked


class Composed:
    """Opens `sources` and hands the rollout and their checked scores to `combine`. Its state is the list of theirs."""

    def __init__(self, sources, ctx, combine):
        self.names, self.combine = [source.name for source in sources], combine
        self.scorers = [source.open(ctx) for source in sources]

    def __call__(self, rollout):
        scored = zip(self.names, self.scorers, strict=True)
        return self.combine(rollout, [checked(name, scorer(rollout), rollout) for name, scorer in scored])

    def state_dict(self):
        return {str(i): scorer.state_dict() for i, scorer in enumerate(self.scorers) if hasattr(scorer, "state_dict")}

    def load_state_dict(self, state):
        for index, inner in state.items():
            if index in map(str, range(len(self.scorers))):
                self.scorers[int(index)].load_state_dict(inner)
