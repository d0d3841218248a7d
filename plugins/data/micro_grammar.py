"""A small grammar of restaurant and film reviews, written as a Markov chain over word classes.

Each state of the chain emits one word, drawn uniformly from its class. The chain is the whole language: which bigrams
are grammatical can be read off its edges, exactly, and sampling is a loop of array operations. Three cycles let a
sentence go on without end inside the grammar: "very very", "good and kind and fresh", "! !".

A review is an opening (the prompt) and one or more clauses (the response); each clause draws its own sentiment.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

PAD, BOS, EOS, UNK = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def words(text: str) -> list[str]:
    return text.split()


TIMES = words("yesterday tonight recently today once")
VISIT = {"restaurant": "visited", "film": "watched"}
PLACES = {
    "restaurant": words("cafe bistro pizzeria diner tavern bakery canteen steakhouse"),
    "film": words("drama western musical documentary sequel cartoon opera epic"),
}
COMPANIONS = words("family colleagues neighbours students")
NOUNS = {
    "restaurant": words("""soup bread pasta salad sauce menu waiter table coffee kitchen dessert rice fish cheese service chef
        breakfast wine portion cake"""),
    "film": words("""plot acting script ending music camera cast dialogue story scene director costumes title editing pace
        trailer lighting finale soundtrack actor"""),
}
ADVERBS = words("very really quite rather fairly extremely utterly somewhat totally remarkably entirely slightly unusually")
ADJECTIVES = {
    "positive": words("""great good nice lovely superb excellent amazing fantastic brilliant charming fun friendly fresh
        beautiful perfect awesome impressive enjoyable pleasant warm elegant generous exciting clever sweet kind fine solid
        smart delightful magnificent terrific splendid outstanding inspiring wonderful"""),
    "negative": words("""terrible awful bad horrible boring dull poor nasty disgusting dreadful rude ugly weak annoying
        disappointing sad painful stupid messy lousy pathetic gross noisy dirty tired rotten miserable useless unpleasant
        hopeless inferior ridiculous gloomy tragic crude vile"""),
    "neutral": words("""long short small large round green red italian french local quiet loud dark early late hot new old
        modern usual typical simple plain thin thick dry mild heavy light narrow wide familiar foreign cold brown average"""),
}
VERBS = {
    "positive": words("loved enjoyed adored praised admired liked appreciated applauded trusted welcomed"),
    "negative": words("hated disliked despised regretted resented criticized mocked dreaded rejected avoided"),
    "neutral": words("noticed discussed remembered expected reviewed mentioned described photographed followed examined"),
}
THINGS = {
    "positive": words("pleasure success triumph delight joy treat blessing masterpiece"),
    "negative": words("failure disaster mess shame disappointment embarrassment fiasco waste"),
    "neutral": words("evening night hour visit occasion experience moment choice"),
}
LINKS = [",", "but"]

SENTIMENTS = {"positive": 0.20, "negative": 0.27, "neutral": 0.53}
STARTS = {"the": 0.55, "we": 0.25, "that": 0.20}
END = "end"
MAX_WORDS = 27


@cache
def openings() -> tuple[tuple[str, str], ...]:
    """(domain, prompt) of all 320 review openings, in a fixed order."""
    rows = itertools.product(PLACES, TIMES, range(8), COMPANIONS)
    return tuple((d, f"{time} we {VISIT[d]} the {PLACES[d][i]} with {friends} :") for d, time, i, friends in rows)


def clause_classes(domain: str, sentiment: str) -> dict[str, list[str]]:
    """State of a clause → the words it may emit."""
    adjectives, nouns = ADJECTIVES[sentiment], NOUNS[domain]
    return {
        "the": ["the"], "noun": nouns, "was": ["was"], "adverb": ADVERBS, "adjective": adjectives, "and": ["and"],
        "we": ["we"], "verb": VERBS[sentiment], "its": ["the"], "object": nouns,
        "that": ["that"], "is": ["was"], "one": ["one"], "degree": ADVERBS, "kind": adjectives, "thing": THINGS[sentiment],
        "stop": ["."], "bang": ["!"], "link": LINKS,
    }  # fmt: skip


def clause_edges() -> dict[str, dict[str, float]]:
    """State of a clause → probabilities of the next state; "next" stands for the start of another clause."""
    close = {"stop": 0.72, "bang": 0.10, "link": 0.18}
    after_adjective = {"and": 0.18} | {state: 0.82 * p for state, p in close.items()}
    return {
        "the": {"noun": 1.0}, "noun": {"was": 1.0}, "was": {"adverb": 0.3, "adjective": 0.7},
        "adverb": {"adverb": 0.15, "adjective": 0.85}, "adjective": after_adjective,
        "and": {"adverb": 0.1, "adjective": 0.9},
        "we": {"verb": 1.0}, "verb": {"its": 1.0}, "its": {"object": 1.0}, "object": close,
        "that": {"is": 1.0}, "is": {"one": 1.0}, "one": {"degree": 0.3, "kind": 0.7},
        "degree": {"degree": 0.15, "kind": 0.85}, "kind": {"thing": 1.0}, "thing": close,
        "stop": {END: 0.30, "next": 0.70}, "bang": {"bang": 0.08, END: 0.31, "next": 0.61}, "link": {"next": 1.0},
    }  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """States S emit words; state 0 is the end and emits nothing."""

    transitions_SS: np.ndarray
    words_S: tuple[tuple[str, ...], ...]
    starts: Mapping[str, np.ndarray]

    def sample(self, rng: np.random.Generator, domains: Sequence[str]) -> list[list[str]]:
        """One response for each domain, as words; those longer than MAX_WORDS are drawn again."""
        responses: list[list[str]] = [[] for _ in domains]
        pending = np.arange(len(domains))
        while len(pending):
            for i, response in zip(pending, self._walk(rng, [domains[i] for i in pending]), strict=True):
                responses[i] = response
            pending = np.array([i for i in pending if len(responses[i]) > MAX_WORDS], dtype=np.int64)
        return responses

    def _walk(self, rng: np.random.Generator, domains: Sequence[str]) -> list[list[str]]:
        """Paths of the chain, cut after MAX_WORDS + 1 words."""
        rows_RS = np.vstack([self.transitions_SS, *self.starts.values()])
        n_states, first_rows = rows_RS.shape[1], {d: len(self.transitions_SS) + i for i, d in enumerate(self.starts)}
        row = np.array([first_rows[d] for d in domains])
        # Row r of the table holds r + cumulative probabilities, so that one sorted search serves all walkers at once.
        table = (np.cumsum(rows_RS, axis=1).clip(max=1 - 1e-12) + np.arange(len(rows_RS))[:, None]).ravel()
        responses: list[list[str]] = [[] for _ in domains]
        for to_state, to_word in rng.random((MAX_WORDS + 1, 2, len(domains))):
            found = np.searchsorted(table, row + to_state.clip(max=1 - 1e-9), side="right")
            row = found - row * n_states
            for response, s, u in zip(responses, row.tolist(), to_word.tolist(), strict=True):
                if s:
                    response.append(self.words_S[s][int(u * len(self.words_S[s]))])
        return responses


@cache
def chain() -> Chain:
    """The chain over the clauses of both domains and three sentiments."""
    clauses = list(itertools.product(PLACES, SENTIMENTS))
    names = [END] + [(*clause, state) for clause in clauses for state in clause_edges()]
    index = {name: i for i, name in enumerate(names)}
    starts = {domain: _start(domain, index) for domain in PLACES}
    transitions_SS = np.zeros((len(names), len(names)))
    transitions_SS[0, 0] = 1.0
    for clause, (state, edges) in itertools.product(clauses, clause_edges().items()):
        row = transitions_SS[index[*clause, state]]
        for target, p in edges.items():
            if target == "next":
                row += p * starts[clause[0]]
            else:
                row[index[END] if target == END else index[*clause, target]] += p
    words_S = [()] + [tuple(clause_classes(d, sentiment)[state]) for d, sentiment, state in names[1:]]
    return Chain(transitions_SS, tuple(words_S), starts)


def _start(domain: str, index: Mapping) -> np.ndarray:
    """Probabilities of the first state of a clause: its sentiment, then its shape."""
    start_S = np.zeros(len(index))
    for (sentiment, p), (state, q) in itertools.product(SENTIMENTS.items(), STARTS.items()):
        start_S[index[domain, sentiment, state]] = p * q
    return start_S


@cache
def vocabulary() -> tuple[str, ...]:
    """The special tokens, then every word of the world once, in order of appearance."""
    prompted = [word for _, opening in openings() for word in opening.split()]
    emitted = [word for class_ in chain().words_S for word in class_]
    return (*SPECIAL_TOKENS, *dict.fromkeys(prompted + emitted))


@cache
def grammatical_bigrams() -> frozenset[tuple[str, str]]:
    """All pairs of neighbouring words that the chain can emit, from the last word of an opening to EOS."""
    world = chain()
    emits = [(EOS,), *world.words_S[1:]]
    pairs = {pair for s, t in np.argwhere(world.transitions_SS > 0) if s for pair in itertools.product(emits[s], emits[t])}
    firsts = {word for start_S in world.starts.values() for s in np.flatnonzero(start_S) for word in emits[s]}
    return frozenset(pairs | {(":", word) for word in firsts})
