"""Declares settings: dataclass fields with a default value and, beside it, the rule that every value must satisfy.

A section of settings is a frozen dataclass whose fields are made by :func:`setting`. A rule that involves several
settings is a :class:`Relation`, which the section returns from a method called ``relations``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deepatlas.errors import DeepAtlasError


@dataclass(frozen=True)
class Rule:
    """A condition on one value. ``words`` complete the message "setting … must be <words>, got …"."""

    accepts: Callable[[Any], bool]
    words: str | Callable[[], str]

    def __str__(self) -> str:
        return self.words if isinstance(self.words, str) else self.words()


@dataclass(frozen=True)
class Relation:
    """A condition on several settings. ``key`` names the one to change, relative to the section of the relation."""

    key: str
    holds: bool
    words: str


def setting(default: Any, rule: Rule, *, resume: bool = False) -> Any:
    """A dataclass field with a default value and the rule for all its values.

    ``resume`` tells whether a run that is resumed may have another value: it decides how long the run is or how it is
    computed, and not what the steps that are done have meant.
    """
    return dataclasses.field(default=default, metadata={"rule": rule, "resume": resume})


# -- rules -----------------------------------------------------------------------------------------------------


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float; booleans, NaN and infinities are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(low: float, reason: str = "") -> Rule:
    """A number that is not smaller than ``low``; ``reason`` is appended to the message in parentheses."""
    return Rule(lambda v: is_number(v) and v >= low, f"at least {low}{f' ({reason})' if reason else ''}")


def above(low: float) -> Rule:
    """A number that is larger than ``low``."""
    return Rule(lambda v: is_number(v) and v > low, f"above {low}")


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    """A number of an interval that contains its ends, except those that are declared open."""

    def accepts(value: Any) -> bool:
        return (
            is_number(value)
            and (value > low if open_low else value >= low)
            and (value < high if open_high else value <= high)
        )

    return Rule(accepts, f"in {'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}")


def one_of(*choices: Any) -> Rule:
    """One of the listed values, compared together with their types, so that 1 is not True."""
    names = ["null" if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in choices]
    words = f"{', '.join(names[:-1])} or {names[-1]}"
    return Rule(lambda v: any(type(v) is type(c) and v == c for c in choices), words)


def one_of_named(names: Callable[[], Sequence[str]]) -> Rule:
    """One of several names that another module defines; ``names`` imports it when a value is checked."""
    return Rule(lambda v: isinstance(v, str) and v in names(), lambda: f"one of {', '.join(names())}")


def each(rule: Rule, *, empty: bool = True) -> Rule:
    """A tuple whose entries all satisfy ``rule``; with ``empty=False`` it has at least one entry."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and (empty or bool(value)) and all(rule.accepts(v) for v in value)

    return Rule(accepts, f"numbers that are {rule}{'' if empty else ', one or more of them'}")


def optional(rule: Rule) -> Rule:
    """None (``null`` in JSON), or a value that satisfies ``rule``."""
    return Rule(lambda v: v is None or rule.accepts(v), f"null or {rule}")


def _is_range(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(map(is_number, value))
        and 0 < value[0] <= value[1]
    )


SCALE_RANGE = Rule(_is_range, "two numbers above 0, the lower first")
ODD = Rule(lambda v: type(v) is int and v > 0 and v % 2 == 1, "odd")
LIMIT = Rule(
    lambda v: is_number(v) and (v >= 1 if isinstance(v, int) else 0 < v <= 1),
    "a fraction in (0, 1] or a whole number, 1 or more",
)
BOOLEAN = Rule(lambda v: isinstance(v, bool), "true or false")
NAME = Rule(lambda v: isinstance(v, str) and bool(v), "a name")
SEED = Rule(lambda v: type(v) is int and 0 <= v < 2**63, "an integer from 0 to 2**63 - 1")


# -- checks, conversion and overrides --------------------------------------------------------------------------


def leaves(settings: Any, path: str = "") -> Iterator[tuple[str, Any, Rule]]:
    """The dotted key, the value and the rule of every single setting of a dataclass and its sections."""
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, field.metadata["rule"]


def resumable(settings: Any, path: str = "") -> list[str]:
    """The dotted keys of the settings that may change when a run is resumed."""
    found = []
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            found += resumable(value, f"{key}.")
        elif field.metadata["resume"]:
            found.append(key)
    return found


def changed(before: Any, after: Any) -> list[str]:
    """The dotted keys of the settings in which two dataclasses of one type differ."""
    pairs = zip(leaves(before), leaves(after), strict=True)
    return [key for (key, old, _), (_, new, _) in pairs if old != new]


def check(settings: Any) -> None:
    """Raise DeepAtlasError for the first setting that breaks its rule, then for the first relation that fails."""
    for key, value, rule in leaves(settings):
        if not rule.accepts(value):
            raise _refusal(key, str(rule), value)
    for key, value, relation in _relations(settings):
        if not relation.holds:
            raise _refusal(key, relation.words, value)


def _relations(settings: Any, path: str = "") -> Iterator[tuple[str, Any, Relation]]:
    # Sections come before what contains them, so that an outer relation may rely on the inner ones.
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _relations(value, f"{path}{field.name}.")
    for relation in settings.relations() if hasattr(settings, "relations") else ():
        value = settings
        for name in relation.key.split("."):
            value = getattr(value, name)
        yield f"{path}{relation.key}", value, relation


def _refusal(key: str, words: str, value: Any) -> DeepAtlasError:
    return DeepAtlasError(
        f"setting {key} must be {words}, got {list(value) if isinstance(value, tuple) else value}"
    )


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON types: nested dicts, lists, numbers, strings, booleans and None."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def from_dict(kind: type, values: object, where: str = "config") -> Any:
    """Inverse of :func:`to_dict` for the dataclass ``kind``; keys that are missing keep their default values.

    Raises:
        DeepAtlasError: an unknown key or a value of another type; the message names it.
    """
    if not isinstance(values, dict):
        raise DeepAtlasError(f"{where} must be a table of settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise DeepAtlasError(f"{where}: unknown setting {sorted(unknown)[0]!r}; known are {', '.join(hints)}")
    return kind(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if isinstance(hint, types.UnionType):
        if type(value) in hint.__args__:
            return value
        hint = next(h for h in hint.__args__ if h is not type(None))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if isinstance(value, list | tuple) and (items[-1] is Ellipsis or len(value) == len(items)):
            return tuple(_convert(items[0], v, where) for v in value)
        length = "" if items[-1] is Ellipsis else f" of {len(items)}"
        raise DeepAtlasError(
            f"setting {where.removeprefix('config.')} must be a list{length} in brackets, such as "
            f"'{where.removeprefix('config.')}=[{','.join('123'[: len(items)])}]' on a command line, "
            f"got {value!r}"
        )
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    name = getattr(hint, "__name__", None) or str(hint)
    raise DeepAtlasError(f"setting {where.removeprefix('config.')} must be of type {name}, got {value!r}")


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Nested settings with ``section.key=value`` changes, values in JSON; a bare word is a string.

    Changes and returns ``values``, which is as :func:`to_dict` returns it.

    Raises:
        DeepAtlasError: a text that is no assignment, or whose key does not exist.
    """
    for text in assignments:
        path, separator, raw = text.partition("=")
        keys = path.strip().split(".")
        node: Any = values
        for key in keys[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if not separator or not isinstance(node, dict) or keys[-1] not in node:
            sections = ", ".join(key for key, value in values.items() if isinstance(value, dict))
            raise DeepAtlasError(
                f"setting {text!r} is not known: write section.key=value, for example train.batch=4; "
                f"sections are {sections}"
            )
        try:
            node[keys[-1]] = json.loads(raw)
        except json.JSONDecodeError:
            node[keys[-1]] = raw
    return values
