"""From text to tree: tomli decides what is TOML, and a statement that is not does not hide the others.

A statement that tomli refuses is noted, blanked out in place, and the rest is read again; so each fault has
tomli's own message and place, and lines and columns of all that remains do not move.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tomli

from kata_configuration.diagnostics import Code

MAX_FAULTS = 20

# Brackets within brackets, parts of a key; only a text that Python cannot read for its nesting is searched.
MAX_DEPTH = 50

# One token of TOML as far as it matters for where statements begin and what only TOML 1.1 allows. A string
# without its end takes the rest of its line, or of the file when it is a multi-line string.
_TOKEN = re.compile(
    r"""
      (?P<comment>\#[^\n]*)
    | (?P<basic>\"{3}(?:\\.|[^\\])*?(?:\"{3,5}|\Z) | "(?:\\[^\n]|[^"\\\n])*"?)
    | (?P<literal>'{3}.*?(?:'{3,5}|\Z) | '[^'\n]*'?)
    | (?P<open>[\[{])
    | (?P<close>[\]}])
    | (?P<comma>,(?=(?:[ \t\n]|\#[^\n]*\n)*\}))
    | (?P<newline>\n)
    | (?P<time>\d\d:\d\d(?P<seconds>:\d\d(?:\.\d+)?)?(?:[+-]\d\d:\d\d)?)
    """,
    re.VERBOSE | re.DOTALL,
)
_MODERN_ESCAPE = re.compile(r"\\(?:(?P<new>e|x[0-9A-Fa-f]{2})|.)", re.DOTALL)
_STATEMENT = re.compile(r"""^[ \t]*(?:\[|[\w."'-][\w."' \t-]*=)""", re.MULTILINE)
_HALF_READ = re.compile(r"(?<![\w+.-])[\w+.-]+(?<=\w)\Z")
_ENDLESS_INTEGER = re.compile(r"\d[\d_]{600,}")
_DEEP_KEY = re.compile(rf"(?:[\w-]+[ \t]*\.[ \t]*){{{MAX_DEPTH}}}")
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """A fault of the text at a character offset. key: dotted key, where it is known."""

    code: Code
    offset: int
    message: str
    hint: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What could be read: the tree, the text it stands for (faulty statements blanked), and the faults."""

    tree: dict[str, Any]
    text: str
    faults: tuple[SyntaxFault, ...]


def parse(text: str) -> Parsed:
    """Read a text with plain newlines. Never raises for its contents."""
    faults: list[SyntaxFault] = []
    while len(faults) < MAX_FAULTS:
        try:
            tree = tomli.loads(text)
        except tomli.TOMLDecodeError as error:
            position = _position(text, error)
            start, end = _statement_at(text, position)
            faults.append(_duplicate(text, start, end, error) or _refusal(text, start, position, error.msg))
            text = _blank(text, start, end)
        except RecursionError:
            offset = _too_deep(text)
            faults.append(
                SyntaxFault(Code.SYNTAX, offset or 0, "nested too deeply", "no key of this file needs that")
            )
            if offset is None:
                break
            text = _blank(text, *_statement_at(text, offset))
        except ValueError:
            # Python converts no integer of so many digits, and tomli does not say where it stands.
            offset = next(match.start() for match in _ENDLESS_INTEGER.finditer(text))
            faults.append(SyntaxFault(Code.SYNTAX, offset, "an integer of too many digits", "write fewer"))
            text = _blank(text, *_statement_at(text, offset))
        else:
            return Parsed(tree, text, _sorted([*faults, *_modern(text)]))
    return Parsed({}, _blank(text, 0, len(text)), _sorted(faults))


def _too_deep(text: str) -> int | None:
    """Return the offset of the first bracket within MAX_DEPTH others, or key of more parts; None without."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth = max(depth + bool(token["open"]) - bool(token["close"]), 0)
        if depth > MAX_DEPTH:
            return token.start()
    dotted = _DEEP_KEY.search(text)
    return dotted.start() if dotted else None


def _sorted(faults: list[SyntaxFault]) -> tuple[SyntaxFault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.offset))


def _statement_at(text: str, offset: int) -> tuple[int, int]:
    """Return where the statement around an offset begins, and where the next one that can be read does."""
    starts = list(_statements(text))
    index = bisect.bisect_right(starts, min(offset, max(len(text) - 1, 0))) - 1
    start = starts[index]
    end = starts[index + 1] if index + 1 < len(starts) else len(text)
    line_end = text.find("\n", start)
    if line_end != -1 and (following := _STATEMENT.search(text, line_end + 1, end)):
        end = following.start()
    if _HEADER.match(text, start):
        # Its keys would be read as those of the table before.
        header = _HEADER.search(text, end)
        end = header.start() if header else len(text)
    return start, end


def _blank(text: str, start: int, end: int) -> str:
    """Replace a part by spaces; lines and columns stay."""
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]


def _position(text: str, error: tomli.TOMLDecodeError) -> int:
    """Return where tomli stopped; that a literal string has no end, it notices at the end of the text."""
    if error.pos == len(text) and error.msg == """Expected "'\"""":
        for token in _TOKEN.finditer(text):
            if token["literal"] and (len(token["literal"]) == 1 or not token["literal"].endswith("'")):
                return token.start()
    return error.pos


def _refusal(text: str, start: int, position: int, refusal: str) -> SyntaxFault:
    first = start + len(text[start:]) - len(text[start:].lstrip(" \t"))
    # What never ends is noticed lines later: point at where it begins.
    runaway = "\n" in text[start:position]
    message = refusal[:1].lower() + refusal[1:]
    if "after a statement" in message and (word := _HALF_READ.search(text, start, position + 1)):
        # tomli takes the start of a word for a value: the "inf" of info, the "0" of 0512.
        position, message = word.start(), "invalid value"
    elif text[first : first + 2] == "//" or text[position : position + 2] == "//":
        message = '"//" begins no comment'
    elif "character '\\n'" in message or message == """expected "'\"""":
        message = "a string has no end"
    return SyntaxFault(Code.SYNTAX, first if runaway else position, message, _hint(message))


def _hint(message: str) -> str:
    for excerpt, hint in _HINTS:
        if excerpt in message:
            return hint
    return "correct or remove it"


_HINTS = (
    ("begins no comment", 'a comment begins with "#"'),
    ("invalid value", 'strings need quotes; others are true, false or a number, such as 512, not "0512"'),
    ("unclosed array", 'put commas between its elements, and close it with "]"'),
    ("unterminated string", "close it with the quote that began it"),
    ("a string has no end", "close it with the quote that began it"),
    ("expected '='", "write key = value"),
    ("expected ']'", 'close the table\'s name with "]"'),
    ("after a statement", "one statement per line; strings need quotes"),
    ("invalid statement", "write key = value or [table]"),
    ("cannot", "an earlier line gave this key another meaning; keep one of them"),
    ("escape", "write a backslash as two, or use single quotes"),
)


def _duplicate(text: str, start: int, end: int, error: tomli.TOMLDecodeError) -> SyntaxFault | None:
    """Say where something was first defined, when tomli refuses it for being defined twice."""
    if not error.msg.startswith(("Cannot", "Duplicate")):
        return None
    from kata_configuration.parse.spans import SpanIndex

    repeated = SpanIndex(text[:end]).repeated(start)
    if repeated is None:
        return None
    first, second, key = repeated
    line = text.count("\n", 0, first) + 1
    return SyntaxFault(
        Code.DUPLICATE, second, f"is defined twice, first on line {line}", "keep one of them", key
    )


def _statements(text: str) -> Iterator[int]:
    """Yield the offset of each line that begins outside of strings and brackets."""
    depth = 0
    yield 0
    for token in _TOKEN.finditer(text):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth = max(depth - 1, 0)
        elif token["newline"] and depth == 0:
            yield token.end()


def _modern(text: str) -> Iterator[SyntaxFault]:
    """Yield what TOML 1.1 allows and TOML 1.0 does not, in a text that tomli accepts.

    Source: the change log of TOML 1.1.0. Kata's other runtimes read TOML 1.0.
    """
    brackets: list[str] = []
    for token in _TOKEN.finditer(text):
        if token["open"]:
            brackets.append(token["open"])
        elif token["close"]:
            brackets.pop()
        elif token["newline"] and brackets[-1:] == ["{"]:
            yield _newer(
                token.start(), "a line break in an inline table", "write it on one line, or as a [table]"
            )
        elif token["comma"] and brackets[-1:] == ["{"]:
            yield _newer(token.start(), "a comma at the end of an inline table", "remove it")
        elif token["time"] and not token["seconds"]:
            yield _newer(token.start(), "a time without seconds", "write its seconds")
        elif token["basic"]:
            for escape in _MODERN_ESCAPE.finditer(token["basic"]):
                if escape["new"]:
                    offset = token.start() + escape.start()
                    yield _newer(offset, f"the escape {escape[0]}", "write it as \\u and four digits")


def _newer(offset: int, what: str, hint: str) -> SyntaxFault:
    return SyntaxFault(
        Code.TOML_1_1, offset, f"{what} is TOML 1.1, which other parsers of this file refuse", hint
    )
