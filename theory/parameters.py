"""Parameters from text: ``key=value`` by the type of the dataclass field, and back from a manifest."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from theory.experiment import parameters_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from theory.experiment import Experiment

__all__ = ["defaults_of", "parse_changes", "restored"]

_SEPARATORS = ",:"
"""Between the items of a tuple, and between tuples of a tuple."""


def parse_changes(experiment: Experiment, changes: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` texts as values of the types that the experiment's parameters have.

    Raises
    ------
    ValueError
        If a text has no ``=``, a key is given twice, or a value is not of its field's type. What the keys mean is
        left to `parameters_of`.
    """
    hints = get_type_hints(experiment.parameters)
    parsed: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is not of the form key=value")
        if key in parsed:
            raise ValueError(f"{key!r} is set twice")
        try:
            parsed[key] = _parse(text, hints.get(key, str))
        except ValueError as error:
            raise ValueError(f"{change}: expected {error}") from None
    return parsed


def _parse(text: str, kind: Any) -> Any:
    """Return a text as a value of a type; the ValueError says what was expected."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _parse_union(text, inner)
    if origin is Literal:
        choices = {str(choice): choice for choice in inner}
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return choices[text]
    if origin is tuple:
        return _parse_tuple(text, inner)
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in known:
            raise ValueError("true or false")
        return known[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError("an integer" if kind is int else "a number") from None
    return text


def _parse_union(text: str, kinds: tuple[Any, ...]) -> Any:
    if NoneType in kinds and text.lower() == "none":
        return None
    expected = []
    for kind in kinds:
        if kind is not NoneType:
            try:
                return _parse(text, kind)
            except ValueError as error:
                expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _parse_tuple(text: str, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a list with commas as a tuple, and one of tuples with colons between them."""
    separator = _SEPARATORS[any(get_origin(kind) is tuple for kind in inner)]
    items = [item.strip() for item in text.strip("()[] ").split(separator) if item.strip()]
    kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(items):
        raise ValueError(f"{len(kinds)} values with {separator!r} between them")
    try:
        return tuple(_parse(item, kind) for item, kind in zip(items, kinds, strict=True))
    except ValueError as error:
        raise ValueError(f"{error} in each place, with {separator!r} between them") from None


def restored(experiment: Experiment, mapping: Mapping[str, Any]) -> Any:
    """Return parameters from the mapping that a manifest holds, lists as tuples."""
    return parameters_of(experiment, {name: _tuples(value) for name, value in mapping.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def defaults_of(experiment: Experiment) -> dict[str, str]:
    """Return each parameter's default as it would be written after ``--set key=``."""
    defaults = experiment.parameters()
    return {field.name: _written(getattr(defaults, field.name)) for field in fields(experiment.parameters)}


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return _SEPARATORS[any(isinstance(item, tuple) for item in value)].join(map(_written, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
