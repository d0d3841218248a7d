"""Pairs of responses of which one was preferred, and how far apart the policy has moved them."""

import itertools

from rlhf_lab.contracts import Ranking


def untied_pairs(rankings):
    """Every pair of a prompt's completions whose ratings differ, the preferred one first; ties are dropped.

    Ratings become 1 and 0: by how much one was preferred is not read.
    """
    return [
        Ranking(r.prompt, (r.completions[w], r.completions[n]), (1.0, 0.0), r.ended and (r.ended[w], r.ended[n]))
        for r in rankings
        for w, n in itertools.permutations(range(len(r.completions)), 2)
        if r.ratings[w] > r.ratings[n]
    ]


def margin(x_BK):
    """x of the preferred response minus x of the other, for each pair."""
    preferred_B, other_B = x_BK.unbind(1)
    return preferred_B - other_B
