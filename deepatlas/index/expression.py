"""The language of questions: comparisons of fields with values, joined by ``and``, ``or`` and ``not``.

    heart >= 90 and phase = venous and not (hu(liver) < 50 or body_part in (chest, "whole body"))

A field is a name, or ``kind(name)`` for another property of a structure. Names and values that hold spaces or signs
are put in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from deepatlas.errors import DataError

_TOKENS = re.compile(
    r"\s+|(?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w./]))\s*(?P<percent>%)?"
    r"|(?P<quoted>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<sign><=|>=|!=|<>|==|[<>=(),])|(?P<word>[^\W\d][\w./+-]*|\d[\w./+-]*)"
)
_SIGNS = {"==": "=", "<>": "!="}
SIGNS = ("=", "!=", "<", "<=", ">", ">=")
# Deeper questions are mistakes, or attacks on the stack.
_DEEPEST = 50
_LONGEST = 10_000


class QueryError(DataError):
    """A question that cannot be understood; ``place`` is the index of the character where that shows."""

    def __init__(self, text: str, place: int, problem: str) -> None:
        self.text, self.place = text, place
        # A long question is cut to what surrounds the place.
        start, end = max(0, place - 60), place + 40
        before, after = text[start:place], text[place:end]
        shown = f"{'…' if start else ''}{before}^{after}{'…' if end < len(text) else ''}"
        super().__init__(f"query: {problem} at character {place + 1}: {shown}")


@dataclass(frozen=True)
class Field:
    """A property of an exam: ``name``, or with ``kind`` that of a structure.

    ``place`` is where the name stands, and ``start`` where the field begins.
    """

    name: str
    kind: str
    place: int
    start: int

    def __str__(self) -> str:
        return f"{self.kind}({self.name})" if self.kind else self.name


@dataclass(frozen=True)
class Value:
    """What a field is compared with: a number or a word. ``text`` is how a number was written: an id may be ``007``."""

    value: float | str
    place: int
    text: str = ""


@dataclass(frozen=True)
class Comparison:
    """``field sign values``; more than one value only with the signs ``in`` and ``not in``. No sign: is it true."""

    field: Field
    sign: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Joined:
    """``and`` or ``or`` of several parts."""

    word: str
    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Not:
    """The contrary of a part."""

    part: Expression


Expression = Comparison | Joined | Not


@dataclass(frozen=True)
class _Token:
    kind: str  # number, word, quoted, sign, end
    value: float | str
    place: int
    text: str

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and str(self.value).casefold() in words


def parse(text: str) -> Expression:
    """The expression that a question means.

    Raises :class:`QueryError` with the place for anything else.
    """
    if len(text) > _LONGEST:
        raise QueryError(text, _LONGEST, f"the question is longer than {_LONGEST} characters")
    return _Parser(text).whole()


def parse_fields(text: str) -> list[Field]:
    """The fields of a list such as ``ml(liver), slices``.

    Raises :class:`QueryError` with the place for anything else.
    """
    return _Parser(text).listed()


def comparisons(expression: Expression) -> Iterator[Comparison]:
    """The comparisons of an expression, from left to right."""
    if isinstance(expression, Comparison):
        yield expression
    elif isinstance(expression, Not):
        yield from comparisons(expression.part)
    else:
        for part in expression.parts:
            yield from comparisons(part)


def fields(expression: Expression) -> Iterator[Field]:
    """The fields of an expression, from left to right."""
    return (comparison.field for comparison in comparisons(expression))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.at, self.depth = 0, 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.next
        self.at += token.kind != "end"
        return token

    def fail(self, problem: str, token: _Token | None = None) -> QueryError:
        token = token or self.next
        found = "the end" if token.kind == "end" else token.text
        return QueryError(self.text, token.place, f"{problem}, got {found}")

    def whole(self) -> Expression:
        found = self.either()
        if self.next.kind != "end":
            raise self.fail(f"expected and, or, or the end{self.hint()}")
        return found

    def hint(self) -> str:
        """What is probably wrong where a condition goes on after its value."""
        if self.next.kind == "sign" and self.next.value in SIGNS:
            return " (two limits are two comparisons, heart > 50 and heart < 90)"
        if self.next.kind == "word" and self.tokens[self.at - 1].kind == "number":
            return " (numbers have no unit)"
        return ""

    def listed(self) -> list[Field]:
        found = [self.field()]
        while self.next.kind == "sign" and self.next.value == ",":
            self.take()
            found.append(self.field())
        if self.next.kind != "end":
            raise self.fail("expected a comma or the end")
        return found

    def either(self) -> Expression:
        return self.joined("or", lambda: self.joined("and", self.single))

    def joined(self, word: str, part) -> Expression:  # type: ignore[no-untyped-def]
        parts = [part()]
        while self.next.is_word(word):
            self.take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def single(self) -> Expression:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise QueryError(
                self.text, self.next.place, f"more than {_DEEPEST} parentheses or nots in one another"
            )
        if self.next.is_word("not"):
            self.take()
            found: Expression = Not(self.single())
        elif self.next.value == "(" and self.next.kind == "sign":
            self.take()
            found = self.either()
            self.closed()
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def closed(self) -> None:
        if not (self.next.kind == "sign" and self.next.value == ")"):
            raise self.fail("expected )")
        self.take()

    def comparison(self) -> Comparison:
        field = self.field()
        token = self.next
        if token.kind == "sign" and token.value in SIGNS:
            self.take()
            return Comparison(field, str(token.value), (self.value(),))
        negated = token.is_word("not") and self.tokens[self.at + 1].is_word("in")
        if token.is_word("in") or negated:
            self.at += 2 if negated else 1
            return Comparison(field, "not in" if negated else "in", self.values())
        return Comparison(field, "", ())

    def field(self) -> Field:
        token = self.take()
        if token.kind not in ("word", "quoted") or token.is_word("and", "or", "in"):
            first = " (it comes before the number)" if token.kind == "number" else ""
            raise self.fail(f"expected the name of a structure or field{first}", token)
        name, kind = str(token.value), ""
        if token.kind == "word" and self.next.kind == "sign" and self.next.value == "(":
            self.take()
            inner = self.take()
            if inner.kind not in ("word", "quoted"):
                raise self.fail("expected the name of a structure", inner)
            self.closed()
            name, kind = str(inner.value), name
            return Field(name, kind, inner.place, token.place)
        return Field(name, kind, token.place, token.place)

    def value(self) -> Value:
        token = self.take()
        if token.kind not in ("number", "word", "quoted") or token.is_word("and", "or", "not", "in"):
            raise self.fail("expected a number or a word", token)
        return Value(token.value, token.place, token.text)

    def values(self) -> tuple[Value, ...]:
        if not (self.next.kind == "sign" and self.next.value == "("):
            raise self.fail("expected ( and the values")
        self.take()
        found = [self.value()]
        while self.next.kind == "sign" and self.next.value == ",":
            self.take()
            found.append(self.value())
        self.closed()
        return tuple(found)


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        match = _TOKENS.match(text, place)
        if not match:
            problem = "a quote that does not end" if text[place] in "\"'" else f"unknown sign {text[place]}"
            raise QueryError(text, place, problem)
        kind, word = match.lastgroup, match[0]
        if kind == "percent" or match["number"] is not None:
            yield _Token("number", float(match["number"]), place, word.strip())
        elif kind == "quoted":
            yield _Token("quoted", re.sub(r"\\(.)", r"\1", word[1:-1]), place, word)
        elif kind == "sign":
            yield _Token("sign", _SIGNS.get(word, word), place, word)
        elif kind == "word":
            yield _Token("word", word, place, word)
        place = match.end()
    yield _Token("end", "", len(text), "")
