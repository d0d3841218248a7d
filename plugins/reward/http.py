"""A reward that is computed elsewhere and asked for over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import random
import socket
import ssl
import threading
import time
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import torch
from pydantic import field_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param
from rlhf_lab.errors import RewardError
from rlhf_lab.store.files import digest
from rlhf_lab.store.journal import Journal, question
from rlhf_lab.terminal import one_line

KEY_PREFIX = "RLHF_LAB_KEY_"
LARGEST = torch.finfo(torch.float32).max
log = logging.getLogger("rlhf_lab.reward.http")


class HTTP(Component):
    """Scores from a server: POST {"prompts": [...], "responses": [...]} is answered by {"scores": [...]}.

    Only a host that `--allow-host` names is asked, over https unless it is this machine; no redirect is followed and no
    proxy used. Whatever is no complete answer (a timeout, 5xx, the wrong number of scores, NaN, more bytes than
    `max_bytes`) is asked for again, with growing random pauses; 4xx but 408, 425 and 429 is final. Each answer is
    journaled in the stage's folder, so a response is scored once per stage and a resume replays the same numbers.
    """

    kind, name = "reward", "http"
    url: str = param(..., "where to ask; it holds no key, user or query", max_length=2000)
    serves: str = param(
        "", "what the server scores with, such as a commit; part of a result's identity: change it with the server"
    )
    key_variable: str | None = param(
        None, f"environment variable that holds the key, sent as `Authorization: Bearer`; its name starts with {KEY_PREFIX}"
    )
    batch_size: int = param(32, "responses per request", ge=1)
    timeout: float = param(30.0, "for one request, from connecting to the last byte", gt=0, le=3600, unit="seconds")
    retries: int = param(6, "further tries of a request", ge=0, le=100)
    pause: float = param(0.5, "before try k + 1 at most pause · 2^k, drawn uniformly", ge=0, le=60, unit="seconds")
    longest_pause: float = param(30.0, "no pause is longer", ge=0, le=3600, unit="seconds")
    max_bytes: int = param(1_048_576, "a longer answer is refused unread", ge=64, le=2**30, unit="bytes")

    @field_validator("url")
    @classmethod
    def _plain_and_private(cls, url: str) -> str:
        parts = split(url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("must hold no user, password, query or fragment; put a key into the variable `key_variable` names")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
            raise ValueError(f"must start with https:// (http:// only for this machine), not {url!r}")
        return url

    @field_validator("key_variable")
    @classmethod
    def _no_other_secret(cls, name: str | None) -> str | None:
        if name is not None and not name.startswith(KEY_PREFIX):
            raise ValueError(f"must start with {KEY_PREFIX}, so that a spec can ask for no other secret, not {name!r}")
        return name

    def asks(self, spec_folder: Any) -> list[tuple[str, str]]:
        """The host has to be allowed by the person at the command line."""
        return [("--allow-host", host(split(self.url)))]

    def open(self, ctx: Any) -> Any:
        journal = Journal(ctx.folder, digest(self.model_dump(mode="json", include={"url", "serves"})))
        key = api_key(self.key_variable)

        def score(rollout: Any) -> Scores:
            pairs = list(zip(rollout.prompts, rollout.responses, strict=True))
            answer_unknown(self, journal, key, pairs)
            scores = [journal.answers[question(x, y)] for x, y in pairs]
            return Scores(torch.tensor(scores, dtype=torch.float32, device=rollout.mask_BT.device))

        return score


def split(url: str) -> SplitResult:
    """The parts of a URL; ValueError where it is none."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(not " " < character < "\x7f" for character in url):
        raise ValueError(f"is no URL: {url!r}")
    return parts


def host(parts: SplitResult) -> str:
    """`name`, or `name:port` where the port is not that of the scheme."""
    usual = {"https": 443, "http": 80}[parts.scheme]
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return name if parts.port in (None, usual) else f"{name}:{parts.port}"


def is_loopback(name: str | None) -> bool:
    try:
        return name == "localhost" or ip_address(name or "").is_loopback
    except ValueError:
        return False


def api_key(variable: str | None) -> str | None:
    """From the environment only. Raises RewardError, which does not show it, where it is missing or no header can hold it."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or any(not "!" <= character <= "~" for character in key):
        state = "holds blanks or characters that no HTTP header can hold" if key else "is not set"
        raise RewardError(f"the environment variable {variable}, in which reward 'http' looks for its key, {state}")
    return key


def answer_unknown(cfg: HTTP, journal: Journal, key: str | None, pairs: list[tuple[str, str]]) -> None:
    """Asks for every pair that the journal does not know, each once, in batches."""
    journal.refresh()
    unknown = list({question(*pair): pair for pair in pairs if question(*pair) not in journal.answers}.items())
    for start in range(0, len(unknown), cfg.batch_size):
        part = unknown[start : start + cfg.batch_size]
        scores = ask_patiently(cfg, key, [pair for _, pair in part])
        journal.append(zip([name for name, _ in part], scores, strict=True))


class Bad(Exception):
    """No usable answer; `final` if asking again cannot help, `wait` is what the server asks for in seconds."""

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.final, self.wait = final, wait


def ask_patiently(cfg: HTTP, key: str | None, pairs: list[tuple[str, str]]) -> list[float]:
    """The scores, after as many tries as it takes. Raises RewardError, without the key in it."""
    for attempt in range(cfg.retries + 1):
        try:
            return parsed(request(cfg, key, pairs), len(pairs))
        except Bad as bad:
            reason = redacted(one_line(bad), key)[:300]
            if bad.final or attempt == cfg.retries:
                tries = f"{attempt + 1} tries" if attempt else "1 try"
                raise RewardError(f"reward 'http' got no scores from {cfg.url} after {tries}: {reason}") from None
            log.warning("%s: %s; asking again (%d of %d)", cfg.url, reason, attempt + 1, cfg.retries)
            time.sleep(min(cfg.longest_pause, max(bad.wait, random.SystemRandom().uniform(0, cfg.pause * 2**attempt))))
    raise AssertionError("unreachable")


def request(cfg: HTTP, key: str | None, pairs: list[tuple[str, str]]) -> bytes:
    """The body of a 200 answer, within `timeout` seconds and `max_bytes` bytes. Raises Bad.

    http.client follows no redirect and reads no proxy, netrc or cookie. Its own timeout is for one packet, so a deadline
    hangs up on a server that sends a byte now and then.
    """
    parts = urlsplit(cfg.url)
    prompts, responses = zip(*pairs, strict=True)
    body = json.dumps({"prompts": prompts, "responses": responses}).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    with Deadline(connection(parts, cfg.timeout), cfg.timeout) as deadline:
        try:
            deadline.connection.connect()
            deadline.socket = deadline.connection.sock
            authorization = {"Authorization": f"Bearer {key}"} if key else {}
            deadline.connection.request("POST", parts.path or "/", body, headers | authorization)
            with deadline.connection.getresponse() as response:
                answer = body_of(response, cfg.max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = deadline.passed.is_set() or isinstance(error, TimeoutError)
            raise Bad(f"no answer within {cfg.timeout:g} s" if late else f"{type(error).__name__}: {error}") from None
    if deadline.passed.is_set():
        raise Bad(f"no answer within {cfg.timeout:g} s")
    return answer


def connection(parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=ssl.create_default_context())


class Deadline:
    """Shuts the connection `seconds` after it was entered, and closes it when left."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self.connection, self.socket, self.passed = connection, None, threading.Event()
        self.timer = threading.Timer(seconds, self._hang_up)
        self.timer.daemon = True

    def __enter__(self) -> Deadline:
        self.timer.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.timer.cancel()
        self.connection.close()

    def _hang_up(self) -> None:
        self.passed.set()
        with contextlib.suppress(OSError):  # it has ended by itself
            if (sock := self.socket or self.connection.sock) is not None:
                sock.shutdown(socket.SHUT_RDWR)


def body_of(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """At most `max_bytes` of a 200 answer. Raises Bad for any other."""
    if response.status != 200:
        raise refusal(response, max_bytes)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Bad("the answer is compressed, which was not asked for")
    if (response.length or 0) > max_bytes or len(body := response.read(max_bytes + 1)) > max_bytes:
        raise Bad(f"the answer is longer than max_bytes: {max_bytes}")
    if response.length:
        raise Bad("the answer was cut off")
    return body


def refusal(response: http.client.HTTPResponse, max_bytes: int) -> Bad:
    """What another status than 200 means, with the beginning of what the server says about it."""
    status = response.status
    if 300 <= status < 400:
        return Bad(f"it redirects (status {status}), which is not followed: give the final url")
    said = response.read(min(max_bytes, 4096)).decode("utf-8", "replace")
    wait = response.headers.get("Retry-After", "")
    return Bad(
        f"status {status}{': ' + said if said else ''}",
        final=400 <= status < 500 and status not in (408, 425, 429),
        wait=float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0,
    )


def parsed(body: bytes, n: int) -> list[float]:
    """The scores in {"scores": [...]}: n finite numbers. Raises Bad."""
    try:
        answer = json.loads(body, parse_constant=float)
        scores = answer["scores"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Bad('the answer is not JSON of the form {"scores": [...]}') from None
    if not isinstance(scores, list) or len(scores) != n:
        found = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
        raise Bad(f"the answer has {found} for {n} responses")
    wrong = [score for score in scores if isinstance(score, bool) or not isinstance(score, (int, float)) or not fits(score)]
    if wrong:
        raise Bad(f"a score is {repr(wrong[0])[:80]}, not a finite number")
    return [float(score) for score in scores]


def fits(score: float) -> bool:
    """Finite, in fp32 too."""
    return not math.isnan(score) and abs(score) <= LARGEST


def redacted(text: str, key: str | None) -> str:
    """The text without the key, wherever a server or a library repeats it."""
    return text.replace(key, "[key]") if key else text


@hookimpl
def register_components(register):
    register(HTTP)
