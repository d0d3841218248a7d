"""The embedded world: splits, tokens, and a grammar whose witnesses are counted or solved here, not asked of the code."""

import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from rlhf_lab.errors import DataError
from rlhf_lab_plugins.data import micro_grammar as grammar
from rlhf_lab_plugins.data.micro import Micro


@pytest.fixture(scope="module")
def world():
    return Micro().open(None)


@pytest.fixture(scope="module")
def clean():
    return Micro(noise_words=0.0, seed=5, sentences=20000, pretraining_sentences=1).open(None)


def all_demonstrations(world):
    return world.demonstrations("train") + world.demonstrations("validation")


def test_sizes_are_those_asked_for(world):
    assert len(world.prompts("train")) == 256
    assert len(world.prompts("validation")) == 64
    assert len(all_demonstrations(world)) == 8000
    assert len(world.pretraining("train")) + len(world.pretraining("validation")) == 8000


def test_splits_share_no_prompt_and_no_text(world):
    train, validation = set(world.prompts("train")), set(world.prompts("validation"))
    assert len(train) + len(validation) == len(train | validation) == 320
    for split, prompts in (("train", train), ("validation", validation)):
        assert {d.prompt for d in world.demonstrations(split)} == prompts
        assert {text[: text.index(":") + 1] for text in world.pretraining(split)} == prompts
    assert not set(world.pretraining("train")) & set(world.pretraining("validation"))


def test_the_world_is_built_fast_and_always_the_same(world):
    started = time.process_time()
    again = Micro().open(None)
    assert time.process_time() - started < 2
    assert again == world
    assert Micro(seed=1).open(None).demonstrations("train") != world.demonstrations("train")


def test_another_process_with_another_hash_seed_builds_the_same_world(world):
    program = (
        "import sys; from rlhf_lab_plugins.data.micro import Micro; w = Micro().open(None);"
        "sys.stdout.write(repr([w.demonstrations('train'), w.pretraining('validation'), w.tokenizer().get_vocab()['soup']]))"
    )
    environ = os.environ | {"PYTHONHASHSEED": "4321"}
    child = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    here = [world.demonstrations("train"), world.pretraining("validation"), world.tokenizer().get_vocab()["soup"]]
    assert child.stdout == repr(here)


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    Micro(seed=3, sentences=50).open(None)
    assert np.random.get_state()[1].tolist() == before


def test_responses_fit_28_tokens_with_their_eos(world):
    lengths = [len(d.completion.split()) + 1 for d in all_demonstrations(world)]
    assert max(lengths) == 28
    assert 13 < np.mean(lengths) < 16


def test_noise_replaces_the_share_asked_for(world):
    noisy = all_demonstrations(world)
    clean = all_demonstrations(Micro(noise_words=0.0).open(None))
    texts = [(a.completion.split(), b.completion.split()) for a, b in zip(noisy, clean, strict=True)]
    pairs = [pair for a, b in texts for pair in zip(a, b, strict=True)]
    changed = np.mean([a != b for a, b in pairs])
    # A replacement is the same word once in 254 draws: expected .01 · 253/254; 5 standard errors of a share of n words.
    assert abs(changed - 0.01 * 253 / 254) < 5 * np.sqrt(0.01 / len(pairs))
    assert "<" not in "".join(d.completion for d in noisy)


def test_there_are_no_rankings_and_the_error_says_what_to_do(world):
    with pytest.raises(DataError, match="comparisons"):
        world.rankings("train")


def test_an_unknown_split_is_an_error(world):
    with pytest.raises(DataError, match="train, validation"):
        world.prompts("test")


def test_every_text_survives_the_tokenizer(world, tmp_path):
    world.tokenizer().save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    for tokenizer in (world.tokenizer(), AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == 258
        specials = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        assert len(specials) == 4
        for text in world.prompts("validation") + [d.completion for d in world.demonstrations("train")[:500]] + ["! ! , . but"]:
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert not specials & set(ids)
            assert tokenizer.decode(ids) == text
        assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_rows_of_the_chain_are_distributions():
    chain = grammar.chain()
    assert (chain.transitions_SS >= 0).all()
    np.testing.assert_allclose(chain.transitions_SS.sum(1), 1, atol=1e-12)
    for start_S in chain.starts.values():
        assert start_S.sum() == pytest.approx(1)


def test_clean_text_has_only_grammatical_bigrams_and_shows_most_of_them(clean):
    seen = {
        pair for d in all_demonstrations(clean) for pair in pairwise([d.prompt.split()[-1], *d.completion.split(), grammar.EOS])
    }
    assert seen <= grammar.grammatical_bigrams()
    assert len(seen) > 0.95 * len(grammar.grammatical_bigrams())


@pytest.mark.parametrize(
    "pair, allowed",
    [
        ((":", "the"), True), ((":", "was"), False), ((".", "<eos>"), True), (("!", "!"), True), (("!", "<eos>"), True),
        ((".", "."), False), (("but", "<eos>"), False), (("very", "really"), True), (("very", "great"), True),
        (("great", "very"), False), (("great", "great"), False), (("great", "and"), True), (("and", "great"), True),
        (("the", "the"), False), (("the", "soup"), True), (("great", "soup"), False), (("great", "joy"), True),
        (("great", "disaster"), False), (("we", "loved"), True), (("loved", "the"), True), (("was", "one"), True),
    ],
)  # fmt: skip
def test_bigrams_that_a_reader_can_judge(pair, allowed):
    assert (pair in grammar.grammatical_bigrams()) is allowed


def test_clauses_draw_their_sentiment_as_declared(clean):
    """First clauses are not thinned much by the length limit: their verbs show the three shares."""
    firsts = [d.completion.split()[1] for d in all_demonstrations(clean) if d.completion.startswith("we ")]
    for sentiment, share in (("positive", 0.20), ("negative", 0.27), ("neutral", 0.53)):
        found = np.mean([word in grammar.VERBS[sentiment] for word in firsts])
        assert abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(firsts))


def test_the_response_stays_with_the_subject_of_its_prompt(clean):
    for d in all_demonstrations(clean)[:2000]:
        other = grammar.NOUNS["film" if " visited " in d.prompt else "restaurant"]
        assert not set(other) & set(d.completion.split())


def test_valence_is_where_the_sentiment_is_and_nowhere_else():
    """Every sentiment word has been rated, with the right sign, by VADER's raters; no other word of the world has."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    rated = {}
    for sentiment, sign in (("positive", 1), ("negative", -1)):
        for classes in (grammar.ADJECTIVES, grammar.VERBS, grammar.THINGS):
            rated |= dict.fromkeys(classes[sentiment], sign)
    assert {word: np.sign(lexicon[word]) for word in grammar.vocabulary() if word in lexicon} == rated
