"""YAML 1.2 that knows lines: a spec as plain data, with the place in the file of every key, and errors that name it.

The events of the parser are composed here rather than by its own composer: so depth, size and aliases are bounded
while reading, scalars mean what the core schema of YAML 1.2.2 (section 10.3.2) says, and nothing can be constructed
but dict, list, str, int, float, bool and None.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamStartEvent,
)

from rlhf_lab.errors import SpecError

if TYPE_CHECKING:
    from pydantic import ValidationError

Loc = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 20_000  # aliases count as often as they are used
MAX_SHOWN = 12  # errors of one spec that are printed


class Mark(NamedTuple):
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Node:
    """A value and its place; entries of mappings and lists are (place of the key or item, node)."""

    mark: Mark
    content: Any
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """Fresh plain data. Depth is at most MAX_DEPTH, so recursion is safe."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, (_, node) in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for _, node in self.content]
        return self.content


@dataclass(frozen=True)
class Document:
    """A file's content as plain data, and where each key stands."""

    data: dict[str, Any]
    path: Path
    root: Node = field(repr=False)

    def where(self, loc: Loc = ()) -> str:
        """`name.yaml:12:3`, the place of the key or list item at `loc`, or of its nearest ancestor that exists.

        A dotted key stands for its path: `rl.kl.beta: 0.1` is found at ("rl", "kl", "beta").
        """
        _, mark = deepest(self.root.mark, self.root, loc)
        return f"{self.path.name}:{mark.line}:{mark.column}"

    def has(self, loc: Loc) -> bool:
        return self.matched(loc) == len(loc)

    def matched(self, loc: Loc) -> int:
        """How many segments of `loc` exist."""
        return deepest(self.root.mark, self.root, loc)[0]


def deepest(mark: Mark, node: Node, loc: Loc) -> tuple[int, Mark]:
    """The number of segments of `loc` that exist below `node`, and the place of the last of them."""
    best = (0, mark)
    for n in range(1, len(loc) + 1):
        entry = entry_at(node, loc[:n])
        if entry is not None:
            used, place = deepest(*entry, loc[n:])
            best = max(best, (used + n, place), key=lambda found: found[0])
    return best


def entry_at(node: Node, segments: Loc) -> tuple[Mark, Node] | None:
    """The entry that the segments name: one segment, or several that make up one dotted key."""
    if isinstance(node.content, dict):
        return node.content.get(".".join(map(str, segments)))
    if isinstance(node.content, list) and len(segments) == 1 and isinstance(segments[0], int):
        return node.content[segments[0]] if 0 <= segments[0] < len(node.content) else None
    return None


# ---------------------------------------------------------------------------------------------------------------
# Reading


class Problem(Exception):
    """What is wrong with a text, and where (None if that is unknown)."""

    def __init__(self, message: str, mark: Mark | None = None):
        super().__init__(message)
        self.message, self.mark = message, mark


def load(path: Path | str) -> Document:
    """Reads a spec file. Raises SpecError, one sentence that begins with the file and, where known, line and column."""
    return loads(read_text(Path(path)), path)


def loads(text: str, name: Path | str = "<text>") -> Document:
    """`load` for text that is already there; `name` is what errors call it."""
    path = Path(name)
    try:
        root = compose(text.removeprefix("\ufeff"))
        if root is None or root.content is None:
            raise Problem("the file is empty; a spec is a mapping of keys")
        if not isinstance(root.content, dict):
            raise Problem(f"a spec is a mapping of keys ('key: value'), not {describe(root.content)}", root.mark)
    except Problem as problem:
        place = "".join(f":{number}" for number in problem.mark or ())
        raise SpecError(f"{path.name}{place}: {problem.message}") from None
    return Document(root.plain(), path, root)


def parse_value(text: str) -> Any:
    """One YAML value on one line: a scalar, `[…]` or `{…}`. Raises SpecError without a place."""
    stripped = text.strip()
    if "\n" in stripped or "\r" in stripped:
        raise SpecError("a value must be on one line; write '\\n' inside double quotes for a line break")
    try:
        root = compose(stripped)
    except Problem as problem:
        raise SpecError(f"{problem.message} (in {quote(stripped)})") from None
    if root is None or re.match(r"(---|\.\.\.)(\s|$)", stripped):
        raise SpecError("a value is missing; write null, or '' for empty text")
    if stripped[0] in "|>&%" or (isinstance(root.content, dict | list) and stripped[0] not in "[{"):
        raise SpecError(f"{quote(stripped)} is not one plain value; put quotes around text, [] or {{}} around several values")
    return root.plain()


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise SpecError(f"there is no file {path}{suggest(path.name, siblings)}") from None
    except IsADirectoryError:
        raise SpecError(f"{path} is a folder; name the spec file in it") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read {quote(str(path))}: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{path.name}: the file is larger than {MAX_BYTES // 10**6} MB; keep data in files that the spec names")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path.name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


# ---------------------------------------------------------------------------------------------------------------
# From text to nodes

UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def compose(text: str) -> Node | None:
    """The one document of `text`; None if there is none. Raises Problem."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = UNPRINTABLE.search(text)
    if bad:
        mark = Mark(text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start()))
        raise Problem(f"there is a control character (U+{ord(bad.group()):04X}) here; remove it", mark)
    events = parse_events(text)
    try:
        return Composer(events).document()
    finally:
        events.close()


def parse_events(text: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        raise explain(error, text) from None
    except Exception:  # the parser's own slips on malformed text (overflowing escapes, assertions)
        raise Problem("this is not valid YAML; look for unusual escapes ('\\') and unclosed quotes") from None


@dataclass
class Composer:
    """Builds nodes from parser events, and counts."""

    events: Iterator[Any]
    anchors: dict[str, Node | None] = field(default_factory=dict)
    n_nodes: int = 0

    def document(self) -> Node | None:
        start = self.next_beyond(StreamStartEvent)
        if not isinstance(start, DocumentStartEvent):
            return None
        if start.version == (1, 1):
            raise Problem("specs are YAML 1.2; remove the line '%YAML 1.1'", Mark(1, 1))
        root = self.node(next(self.events), 0)
        next(self.events)
        following = next(self.events)
        if isinstance(following, DocumentStartEvent):
            raise Problem("a second document starts here; a spec is one document, so remove '---'", mark_of(following))
        return root

    def next_beyond(self, kind: type) -> Any:
        event = next(self.events)
        return next(self.events) if isinstance(event, kind) else event

    def node(self, event: Any, depth: int) -> Node:
        mark = mark_of(event)
        if isinstance(event, AliasEvent):
            return self.alias(event, depth)
        if event.tag is not None:
            tag = quote(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise Problem(f"the tag {tag} is not allowed; specs hold plain values only, so remove it", mark)
        if depth > MAX_DEPTH:
            raise Problem(f"more than {MAX_DEPTH} levels deep; is a bracket too many here?", mark)
        self.count(1, mark)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        made = self.build(event, mark, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = made
        return made

    def build(self, event: Any, mark: Mark, depth: int) -> Node:
        if isinstance(event, ScalarEvent):
            return Node(mark, scalar(event))
        content = self.items(depth) if isinstance(event, SequenceStartEvent) else self.entries(depth)
        inner = [node for _, node in (content if isinstance(content, list) else content.values())]
        return Node(mark, content, 1 + sum(n.size for n in inner), 1 + max((n.height for n in inner), default=0))

    def items(self, depth: int) -> list[tuple[Mark, Node]]:
        found = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            found.append((mark_of(event), self.node(event, depth + 1)))
        return found

    def entries(self, depth: int) -> dict[str, tuple[Mark, Node]]:
        found: dict[str, tuple[Mark, Node]] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key, mark = key_of(event), mark_of(event)
            if key in found:
                raise Problem(f"the key {quote(key)} is already given in line {found[key][0].line}; keep one of the two", mark)
            value = next(self.events)
            if ":" in key and is_plain(value) and value.end_mark.index == event.end_mark.index:
                raise Problem(f"{quote(key)} lacks a space after its ':'; write 'key: value'", mark)
            found[key] = (mark, self.node(value, depth + 1))
        return found

    def alias(self, event: Any, depth: int) -> Node:
        mark, name = mark_of(event), quote("*" + event.anchor)
        if event.anchor not in self.anchors:
            raise Problem(f"{name} refers to no anchor ('&') above; put quotes around text that starts with '*'", mark)
        target = self.anchors[event.anchor]
        if target is None:
            raise Problem(f"{name} stands inside its own anchor and so refers to itself; write the value out", mark)
        if depth + target.height > MAX_DEPTH:
            raise Problem(f"with {name} the spec is more than {MAX_DEPTH} levels deep; write the value out", mark)
        self.count(target.size, mark)
        return target

    def count(self, n: int, mark: Mark) -> None:
        self.n_nodes += n
        if self.n_nodes > MAX_NODES:
            raise Problem(f"the spec has more than {MAX_NODES} values, aliases ('*name') written out; make it smaller", mark)


def mark_of(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def is_plain(event: Any) -> bool:
    return isinstance(event, ScalarEvent) and not event.style


def key_of(event: Any) -> str:
    """The key that an event stands for: text only."""
    mark = mark_of(event)
    if not isinstance(event, ScalarEvent) or event.tag is not None:
        raise Problem("a key must be plain text, not a list, mapping, alias or tag", mark)
    key = scalar(event)
    if key is None and event.value == "":
        raise Problem("there is no key before this ':'; write 'key: value'", mark)
    if not isinstance(key, str):
        raise Problem(f"the key {shorten(event.value)} must be text; put quotes around it", mark)
    if key == "<<" and is_plain(event):
        raise Problem("merge keys ('<<') are not part of YAML 1.2; write the keys out", mark)
    return key


# YAML 1.2.2, section 10.3.2: tag resolution of the core schema
NULL = frozenset({"", "~", "null", "Null", "NULL"})
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTEGERS = ((re.compile(r"[-+]?[0-9]+"), 10), (re.compile(r"0o[0-7]+"), 8), (re.compile(r"0x[0-9a-fA-F]+"), 16))
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
NOT_A_NUMBER = re.compile(r"\.(nan|NaN|NAN)")
SURROGATE = re.compile("[\ud800-\udfff]")


def scalar(event: Any) -> Any:
    """The value of a scalar: quoted and block text stays text, plain text is resolved."""
    try:
        return resolve_plain(event.value) if is_plain(event) else whole_text(event.value)
    except ValueError as error:
        raise Problem(str(error), mark_of(event)) from None


def resolve_plain(text: str) -> Any:
    if text in NULL:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    for pattern, base in INTEGERS:
        if pattern.fullmatch(text):
            return whole_number(text, base)
    if FLOAT.fullmatch(text):
        return finite_number(text)
    if INFINITE.fullmatch(text):
        return -math.inf if text[0] == "-" else math.inf
    return math.nan if NOT_A_NUMBER.fullmatch(text) else text


def whole_number(text: str, base: int) -> int:
    if len(text) > 1000:
        raise ValueError("this number has more than 1000 digits; put quotes around it if it is text")
    return int(text, base)


def finite_number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shorten(text)} is too large for a number; write .inf if infinity is meant")
    return value


def whole_text(text: str) -> str:
    """Joins the two halves of characters that were escaped as pairs (as JSON does); half a character is refused."""
    if not SURROGATE.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("this text holds half a character (an escape from \\ud800 to \\udfff without its partner)") from None


# What the parser says → (what to tell the user, whether the place is where the construct begins). First match wins.
EXPLANATIONS: tuple[tuple[str, str, bool], ...] = (
    (r"character '\\t'", "a tab cannot be used for indentation; use spaces", False),
    (r"character '(.)' that cannot start", "text cannot start with '{0}' here; put quotes around it", False),
    (
        r"mapping values are not allowed",
        "unexpected ':'; align the key with the keys above it, or put quotes around text that holds ': '",
        False,
    ),
    (r"sequence entries are not allowed", "a list cannot start here; put each '- ' on a line of its own", False),
    (r"could not find expected ':'", "this line has no ': '; write 'key: value', with a space after the colon", True),
    (r"unexpected end of stream", "the quote that opens here is never closed", True),
    (r"unexpected document separator", "the quote that opens here is never closed", True),
    (r"unknown escape character '(.)'", "'\\{0}' means nothing in double quotes; use single quotes or write '\\\\'", False),
    (r"escape sequence", "an escape in double quotes lacks hexadecimal digits; use single quotes or write '\\\\'", False),
    (r"expected ',' or '(.)'", "expected ',' or '{0}'; the bracket that opens here is not closed, or a comma is missing", True),
    (r"node content, but found '<stream end>'", "the file ends inside brackets; close them", False),
    (r"node content, but found '(.)'", "unexpected '{0}'; a value is missing before it, or text needs quotes", False),
    (r"expected <block end>, but found '([]},])'", "unexpected '{0}'; no bracket is open here", False),
    (
        r"expected <block end>, but found '<(alias|anchor|tag|scalar)>'",
        "this does not belong to the value before it; check the indentation, or put quotes around the whole value",
        False,
    ),
    (
        r"expected <block end>",
        "the indentation does not fit the lines above; keys (or '- ' items) of one block start in one column",
        False,
    ),
    (r"expected '<document start>'", "this does not belong to what stands above; a spec is one mapping of keys", False),
    (r"ing a (?:directive|tag)", "text cannot start with '%' or '!' here; put quotes around it", True),
    (r"block scalar", "after '|' or '>' the text starts on the next line; put quotes around text that starts with them", True),
    (r"scanning an (?:anchor|alias)", "text cannot start with '*' or '&' here; put quotes around it", True),
)


def explain(error: MarkedYAMLError, text: str) -> Problem:
    """The parser's complaint in words that a user can act on."""
    said = f"{error.problem or ''} {error.context or ''}"
    for pattern, sentence, at_start in EXPLANATIONS:
        match = re.search(pattern, said)
        if match:
            mark = (error.context_mark if at_start else None) or error.problem_mark
            return Problem(sentence.format(*match.groups()), within(mark, text))
    return Problem("this is not valid YAML; check quotes, brackets and indentation", within(error.problem_mark, text))


def within(mark: Any, text: str) -> Mark | None:
    """The place of a parser's mark; past the last character it becomes the end of the last line."""
    if mark is None:
        return None
    lines = text.rstrip("\n").split("\n")
    return Mark(mark.line + 1, mark.column + 1) if mark.line < len(lines) else Mark(len(lines), len(lines[-1]) + 1)


# ---------------------------------------------------------------------------------------------------------------
# Words


def suggest(word: Any, candidates: Iterable[str]) -> str:
    """ " (did you mean 'lr'?)", or "" if nothing is near; case, '-' and '_' make no difference."""
    known = {normal(candidate): candidate for candidate in candidates if isinstance(candidate, str)}
    close = difflib.get_close_matches(normal(str(word)), known, n=1)
    return f" (did you mean {quote(known[close[0]])}?)" if close else ""


def normal(word: str) -> str:
    return word.lower().replace("-", "_")


def shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quote(text: str) -> str:
    """Text in quotes, on one line, without terminal control, not longer than a line."""
    return repr(shorten(text))


def describe(value: Any) -> str:
    """A value as a message shows it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quote(value)
    return shorten(str(value)) if isinstance(value, int | float) else describe_type(value)


def describe_type(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", tuple: "a list", bool: "true or false", type(None): "null", str: "text"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def show_path(loc: Sequence[str | int]) -> str:
    """`rl.objective[0].lr`."""
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{plain_key(part)}" for part in loc)
    return shown.removeprefix(".")


def plain_key(key: str) -> str:
    return key if re.fullmatch(r"\w[\w.:/@+-]*", key) and len(key) <= 60 else quote(key)


# ---------------------------------------------------------------------------------------------------------------
# pydantic's errors, in the words of the spec


def spec_error(
    document: Document,
    loc_prefix: Loc,
    error: ValidationError,
    *,
    fields_at: Callable[[Loc], Iterable[str]] = lambda loc: (),
    unit_at: Callable[[Loc], str | None] = lambda loc: None,
    origins: Mapping[Loc, str] | None = None,
    overlays: Sequence[Loc] = (),
) -> SpecError:
    """A pydantic error as lines like `kl.yaml:12:3: unknown key 'lrr' in rl.objective[0] (did you mean 'lr'?)`.

    What was validated stands in `document` at `loc_prefix`; deltas that were merged over it stand at `overlays`, the
    last wins. Locs below are relative to these. `fields_at(loc)`: the keys that the model at `loc` accepts;
    `unit_at(loc)`: the unit of the field at `loc`. `origins` maps the loc of a value that stands in no file to what
    its line starts with instead, such as "override rl.kl.beta=abc".
    """
    origins, prefixes = origins or {}, (loc_prefix, *overlays)
    lines = []
    for loc, details in by_place(document, prefixes, origins, error).items():
        start = origin_of(document, prefixes, loc, origins) or place_of(document, prefixes, loc)
        lines += [f"{start}: {sentence}" for sentence in sentences(loc, loc_prefix, details, fields_at, unit_at)]
    hidden = len(lines) - MAX_SHOWN
    return SpecError("\n".join([*lines[:MAX_SHOWN], *([f"… and {hidden} more"] if hidden > 0 else [])]))


def by_place(document: Document, prefixes: Sequence[Loc], origins: Iterable[Loc], error: ValidationError) -> dict[Loc, list]:
    """The details by loc; the members of a union complain separately, and meet here."""
    found: dict[Loc, list] = {}
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        written = [document.matched((*prefix, *loc)) - len(prefix) for prefix in prefixes]
        overridden = [len(origin) for origin in origins if loc[: len(origin)] == origin]
        found.setdefault(without_union_members(loc, max(0, *written, *overridden)), []).append(detail)
    return found


UNION_MEMBER = re.compile(r"(int|float|str|bool|none|constrained-\w+|[\w-]*\[.*\])", re.DOTALL)


def without_union_members(loc: Loc, n_known: int) -> Loc:
    """pydantic puts the members of a union into the loc, as ("seed", "int"); the part that the user wrote stays."""
    rest = tuple(part for part in loc[n_known:] if isinstance(part, int) or not UNION_MEMBER.fullmatch(part))
    return loc[:n_known] + rest


def origin_of(document: Document, prefixes: Sequence[Loc], loc: Loc, origins: Mapping[Loc, str]) -> str | None:
    """The origin of `loc` or of its nearest ancestor that has one; of what stands in no file also that of a descendant."""
    above = next((origins[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in origins), None)
    if above or any(document.has((*prefix, *loc)) for prefix in prefixes):
        return above
    return next((text for origin, text in origins.items() if origin[: len(loc)] == loc), None)


def place_of(document: Document, prefixes: Sequence[Loc], loc: Loc) -> str:
    """The place in whichever part of the document knows most of `loc`, the last of equals."""
    return document.where(max(((*p, *loc) for p in reversed(prefixes)), key=lambda full: document.matched(full) - len(full)))


def sentences(loc: Loc, prefix: Loc, details: list, fields_at: Callable, unit_at: Callable) -> list[str]:
    """What is wrong at `loc`: one sentence for the members of a union, otherwise one for each detail."""
    wanted = list(dict.fromkeys(requirement(detail, unit_at(loc)) for detail in details))
    if None in wanted:
        return list(dict.fromkeys(sentence(loc, prefix, detail, fields_at) for detail in details))
    value = details[0]["input"]
    choices = [choice for detail in details for choice in choices_of(detail)]
    hint = suggest(value, choices) if isinstance(value, str) else ""
    return [f"{show_path(loc) or show_path(prefix) or 'the spec'} must be {' or '.join(wanted)}, not {describe(value)}{hint}"]


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "iterable": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
}
BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": ("≥", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("≤", "le"),
}


def requirement(detail: Mapping[str, Any], unit: str | None) -> str | None:
    """What a value must be, to be put after "must be"; None for errors of another form."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in BOUNDS:
        sign, limit = BOUNDS[kind]
        return f"{sign} {number(context[limit])}{f' {unit}' if unit else ''}"
    if kind in ("literal_error", "enum"):
        choices = [quote(choice) if f"'{choice}'" in context["expected"] else choice for choice in choices_of(detail)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else context["expected"]
    other = {
        "finite_number": "a finite number",
        "none_required": "null",
        "multiple_of": f"a multiple of {number(context.get('multiple_of', 1))}",
    }
    match = re.fullmatch(r"([a-z]+)_(attributes_)?(type|parsing|parsing_size|from_float)", kind)
    return other.get(kind) or (TYPES.get(match[1]) if match else None)


def choices_of(detail: Mapping[str, Any]) -> list[str]:
    """The choices that pydantic lists as `'a', 'b' or 'c'`."""
    if detail["type"] not in ("literal_error", "enum"):
        return []
    expected = detail["ctx"]["expected"]
    return re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)


def number(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def sentence(loc: Loc, prefix: Loc, detail: Mapping[str, Any], fields_at: Callable[[Loc], Iterable[str]]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    here = show_path(loc) or show_path(prefix) or "the spec"
    if kind == "extra_forbidden":
        return unknown_key(loc, prefix, list(fields_at(loc[:-1])))
    if kind == "missing":
        return missing_key(loc, prefix)
    if kind in ("value_error", "assertion_error"):
        return one_line(str(context.get("error", detail["msg"])))
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return f"{here} must have {length_limit(kind, context)}, not {len(detail['input'])}"
    if kind == "string_pattern_mismatch":
        return f"{here} must match the pattern {context['pattern']}, not {describe(detail['input'])}"
    return f"{here}: {one_line(detail['msg'])}"


def unknown_key(loc: Loc, prefix: Loc, fields: list[str]) -> str:
    key, parent = str(loc[-1]), show_path(loc[:-1]) or show_path(prefix)
    hint = suggest(key, fields) or (f"; it has {shorten(', '.join(fields), 120)}" if fields else "")
    return f"unknown key {quote(key)}{f' in {parent}' if parent else ''}{hint}"


def missing_key(loc: Loc, prefix: Loc) -> str:
    parent = show_path(loc[:-1]) or show_path(prefix) or "the spec"
    return f"{parent} needs an item [{loc[-1]}]" if isinstance(loc[-1], int) else f"{parent} needs a key {quote(loc[-1])}"


def length_limit(kind: str, context: Mapping[str, Any]) -> str:
    """ "at least 1 item"."""
    bound, n = ("at least", context["min_length"]) if kind.endswith("short") else ("at most", context["max_length"])
    unit = "character" if kind.startswith("string") else "item"
    return f"{bound} {n} {unit}{'' if n == 1 else 's'}"


def one_line(text: str) -> str:
    return " ".join(text.split())
