"""Scores over HTTP, against a real server that does its worst; what it should have answered is counted by hand."""

import json
import logging
import re
import time
from types import SimpleNamespace

import pytest
import torch
from hostile_server import (
    endless,
    gigabyte,
    hang_up,
    lengths,
    reply,
    serving,
    silence,
    slow_drip,
    slow_head,
    slow_stream,
)
from pydantic import ValidationError

from rlhf_lab.errors import RewardError
from rlhf_lab.store.checkpoint import keep_only_resumable
from rlhf_lab.store.journal import PREFIX
from rlhf_lab_plugins.reward.http import HTTP

TEXTS = ("one", "three", "eleven", "one")
LETTERS = [3.0, 5.0, 6.0, 3.0]
KEY = "sk-very-secret-0123456789"


def rollout(*responses):
    return SimpleNamespace(
        prompts=("say a number",) * len(responses), responses=responses, mask_BT=torch.ones(len(responses), 3)
    )


def source(server, **parameters):
    return HTTP(url=server.url, **{"timeout": 0.3, "pause": 0.01, **parameters})


def scorer(component, folder):
    return component.open(SimpleNamespace(folder=folder))


def test_scores_come_in_batches_and_each_response_is_asked_for_once(tmp_path):
    with serving() as server:
        score = scorer(source(server, batch_size=2), tmp_path)
        assert score(rollout(*TEXTS)).scores_B.tolist() == LETTERS
        assert score(rollout("eleven", "seven")).scores_B.tolist() == [6.0, 5.0]
    assert [asked["responses"] for asked in server.asked] == [["one", "three"], ["eleven"], ["seven"]]
    assert server.asked[0]["prompts"] == ["say a number"] * 2


FAULTS = {
    "timeout": silence,
    "500": reply("oops", "500 Internal Server Error"),
    "429": reply("later", "429 Too Many Requests", Retry_After="0"),
    "wrong length": reply('{"scores": [1, 2]}'),
    "NaN": reply('{"scores": [1, 2, NaN]}'),
    "infinite in fp32": reply('{"scores": [1, 2, 1e300]}'),
    "no number": reply('{"scores": [1, 2, true]}'),
    "no JSON": reply("<html>"),
    "other JSON": reply('{"score": [1, 2, 3]}'),
    "deep JSON": reply("[" * 100_000),
    "no HTTP": lambda server, connection, responses: connection.sendall(b"\x00\xff\r\n\r\n"),
    "compressed": reply("x", Content_Encoding="gzip"),
    "1 GB": gigabyte,
    "1 GB unannounced": endless,
    "hang up": hang_up,
    "slow drip": slow_drip,
    "slow headers": slow_head,
    "slow stream": slow_stream,
}


def test_every_fault_in_turn_then_recovery(tmp_path):
    """Fault 21. The flood is cut off after what the sockets buffer, the drip at the timeout."""
    with serving(*FAULTS.values()) as server, serving() as elsewhere:
        server.behaviours.append(reply("", "302 Found", Location=elsewhere.url))
        started = time.monotonic()
        scores = scorer(source(server, retries=len(FAULTS) + 1, longest_pause=0.01), tmp_path)(rollout(*TEXTS))
        assert time.monotonic() - started < 5 * 0.3 + 4
    assert scores.scores_B.tolist() == LETTERS
    assert len(server.asked) == len(FAULTS) + 2 and elsewhere.asked == [], "asked again each time, a redirect is not followed"
    assert server.sent < 2**26


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_ends_in_one_sentence(tmp_path, name):
    with serving(otherwise=FAULTS[name]) as server:
        score = scorer(source(server, retries=1), tmp_path)
        with pytest.raises(RewardError) as caught:
            score(rollout(*TEXTS))
    assert str(caught.value).startswith(f"reward 'http' got no scores from {server.url} after 2 tries: ")
    assert len(server.asked) == 2 and len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing of it is kept"


def test_the_pauses_grow_and_are_drawn(tmp_path, monkeypatch):
    """Uniform in [0, pause·2^k] up to the longest; the server may ask for more."""
    slept = []
    monkeypatch.setattr("rlhf_lab_plugins.reward.http.time", SimpleNamespace(sleep=slept.append))
    busy, asked_to_wait = reply("", "503 Service Unavailable"), reply("", "429 Too Many Requests", Retry_After="3")
    for n in range(20):
        with serving(*[busy] * 5, asked_to_wait) as server:
            scorer(source(server, pause=1.0, longest_pause=9.0), tmp_path)(rollout(f"response {n}"))
    pauses = [slept[i::6] for i in range(6)]
    assert [len(column) for column in pauses] == [20] * 6
    for k, column in enumerate(pauses[:5]):
        assert min(column) >= 0 and max(column) <= min(9.0, 2.0**k) and len(set(column)) > 1
    assert min(pauses[5]) >= 3 and max(pauses[4]) > max(pauses[0])


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "404 Not Found", "422 Unprocessable Content"])
def test_a_wrong_request_is_not_repeated(tmp_path, status):
    said = rf"after 1 try: status {status[:3]}: no such thing$"
    with serving(otherwise=reply("no\x1b[31m such thing", status)) as server, pytest.raises(RewardError, match=said):
        scorer(source(server), tmp_path)(rollout("x"))
    assert len(server.asked) == 1


def test_a_server_that_is_not_there(tmp_path):
    with serving() as server:
        pass
    with pytest.raises(RewardError, match="after 3 tries: ConnectionRefusedError"):
        scorer(source(server, retries=2), tmp_path)(rollout("x"))


# Journal


def test_a_resume_replays_what_was_answered(tmp_path):
    """The server has changed its mind since; what is known of this stage stays, also when it starts from nothing."""
    with serving() as server:
        first = scorer(source(server), tmp_path)(rollout(*TEXTS)).scores_B.tolist()
    (tmp_path / "steps.jsonl").write_text("{}\n")
    keep_only_resumable(tmp_path)
    assert [path.name[: len(PREFIX)] for path in tmp_path.iterdir()] == [PREFIX]
    with serving(otherwise=reply('{"scores": [-1]}')) as changed:
        assert scorer(source(server), tmp_path)(rollout(*TEXTS)).scores_B.tolist() == first == LETTERS
        other = scorer(source(changed), tmp_path)(rollout("one"))
    assert other.scores_B.tolist() == [-1.0] and len(changed.asked) == 1, "another server has a journal of its own"


def test_the_journal_outlives_a_kill_in_the_middle_of_a_line(tmp_path):
    with serving() as server:
        scorer(source(server, batch_size=1), tmp_path)(rollout("one", "three"))
        (journal,) = tmp_path.iterdir()
        content = journal.read_bytes()
        assert len(content.splitlines()) == 2
        journal.write_bytes(content[:-5])
        assert scorer(source(server), tmp_path)(rollout("one", "three")).scores_B.tolist() == [3.0, 5.0]
    assert [asked["responses"] for asked in server.asked] == [["one"], ["three"], ["three"]]
    assert journal.read_bytes() == content


def test_what_was_answered_before_a_failure_is_kept(tmp_path):
    with serving(lengths, reply("", "500 Oops")) as server:
        score = scorer(source(server, batch_size=2, retries=0), tmp_path)
        with pytest.raises(RewardError):
            score(rollout("one", "three", "eleven"))
        assert scorer(source(server), tmp_path)(rollout("one", "three", "eleven")).scores_B.tolist() == [3.0, 5.0, 6.0]
    assert [asked["responses"] for asked in server.asked] == [["one", "three"], ["eleven"], ["eleven"]]


def test_proxy_and_gold_from_one_server_agree(tmp_path):
    """Two sources with one journal: the second hears what the first was told, in this process and in the next."""
    noisy = iter(range(100))

    def drawn(server, connection, responses):
        reply(json.dumps({"scores": [next(noisy) for _ in responses]}))(server, connection, responses)

    with serving(otherwise=drawn) as server:
        proxy, gold = scorer(source(server), tmp_path), scorer(source(server), tmp_path)
        assert proxy(rollout("a", "b")).scores_B.tolist() == [0, 1]
        assert gold(rollout("b", "c")).scores_B.tolist() == [1, 2] and proxy(rollout("c")).scores_B.tolist() == [2]
    assert len(server.asked) == 2


# Keys


def test_the_key_is_sent_and_never_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RLHF_LAB_KEY_JUDGE", KEY)
    echo = reply(f"you said Bearer {KEY}, and {KEY}", "500 Oops")
    caplog.set_level(logging.WARNING)
    with serving(echo, otherwise=reply(f"no: {KEY}", "403 Forbidden")) as server, pytest.raises(RewardError) as caught:
        scorer(source(server, key_variable="RLHF_LAB_KEY_JUDGE"), tmp_path)(rollout("x"))
    assert f"Authorization: Bearer {KEY}" in server.heads[0]
    assert str(caught.value).endswith("status 403: no: [key]")
    assert "you said Bearer [key], and [key]" in caplog.text and KEY not in caplog.text + repr(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert not any(KEY in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("key", [None, "", "two words", "line\r\nX-Evil: 1", "ключ"])
def test_a_key_that_is_none_is_said_without_it(tmp_path, monkeypatch, key):
    monkeypatch.delenv("RLHF_LAB_KEY_JUDGE", raising=False)
    if key is not None:
        monkeypatch.setenv("RLHF_LAB_KEY_JUDGE", key)
    with pytest.raises(RewardError, match="RLHF_LAB_KEY_JUDGE") as caught:
        scorer(HTTP(url="https://example.org", key_variable="RLHF_LAB_KEY_JUDGE"), tmp_path)
    assert not key or key not in str(caught.value)


def test_no_proxy_and_no_netrc_get_in_between(tmp_path, monkeypatch):
    with serving() as server, serving(otherwise=reply('{"scores": [666]}')) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert scorer(source(server), tmp_path)(rollout("one")).scores_B.tolist() == [3.0]
    assert proxy.asked == [] and "Authorization" not in server.heads[0]


def test_https_is_https(tmp_path):
    with serving() as server, pytest.raises(RewardError, match="after 1 try: "):
        scorer(source(server, retries=0).model_copy(update={"url": server.url.replace("http:", "https:")}), tmp_path)(
            rollout("x")
        )
    assert server.asked == []


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"url": "http://rewards.example.org/score"}, "https://"),
        ({"url": "http://127.0.0.1.evil.org/"}, "https://"),
        ({"url": "http://localhost.evil.org/"}, "https://"),
        ({"url": "ftp://rewards.example.org"}, "https://"),
        ({"url": "file:///etc/passwd"}, "no URL"),
        ({"url": "https://me:secret@rewards.example.org"}, "must hold no user"),
        ({"url": "https://rewards.example.org/?key=secret"}, "must hold no user"),
        ({"url": "https://rewards.example.org:99999"}, "no URL"),
        ({"url": "https://rewards.example.org/\r\nX: 1"}, "no URL"),
        ({"url": "https:///score"}, "no URL"),
        ({"url": "https://a.org", "key_variable": "AWS_SECRET_ACCESS_KEY"}, "must start with RLHF_LAB_KEY_"),
        ({"url": "https://a.org", "timeout": 0}, "greater than 0"),
        ({"url": "https://a.org", "retries": 1000}, "less than or equal to 100"),
    ],
)
def test_parameters_that_are_refused(parameters, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        HTTP(**parameters)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Rewards.example.org/score", "rewards.example.org"),
        ("https://rewards.example.org:443", "rewards.example.org"),
        ("https://rewards.example.org:8443/a", "rewards.example.org:8443"),
        ("http://localhost:80", "localhost"),
        ("http://127.0.0.2:8000", "127.0.0.2:8000"),
        ("http://[::1]:8000/", "[::1]:8000"),
    ],
)
def test_which_host_has_to_be_allowed(url, host):
    assert HTTP(url=url).asks(".") == [("--allow-host", host)]
