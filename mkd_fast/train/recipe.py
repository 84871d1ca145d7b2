"""Recipes read: TOML into dataclasses whose fields say what may stand there, and back."""

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mkd_fast.checks import recipe as checks

R = TypeVar("R")


def load_as(kind: type[R], recipe: str | Path, overrides: Mapping[str, str] | None = None) -> R:
    """Read a recipe and apply ``section.key`` overrides, whose values are TOML (or bare text).

    Args:
        kind: a dataclass with a field for each section, whose type is a dataclass too.
        recipe: a TOML file.
        overrides: ``{"section.key": value}``.

    Raises:
        OSError: no such recipe, or it cannot be read.
        ValueError: not TOML, an unknown section or key, or a value out of range.
        TypeError: a value of the wrong type.
    """
    path = Path(recipe)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise checks.recipe_not_read(path, error) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise checks.recipe_not_toml(path, error) from error
    for name, value in (overrides or {}).items():
        section, dot, key = name.partition(".")
        if not (dot and key):
            raise checks.override_without_section(name)
        if not isinstance(content.setdefault(section, {}), dict):
            raise checks.not_a_section(str(path), section)
        content[section][key] = _toml_value(value)
    read: R = built(kind, content, str(path))
    return read


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def built(kind: Any, content: Mapping[str, Any], place: str) -> Any:
    """``kind`` of nested plain values; ``place`` is named in errors, which are ``load_as``'s."""
    sections: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(kind)}
    values_of = {}
    for name, values in content.items():
        if name not in sections:
            raise checks.unknown_section(place, name, sections)
        if not isinstance(values, Mapping):
            raise checks.not_a_section(place, name)
        values_of[name] = _section(sections[name], values, f"{place}: [{name}]")
    return kind(**values_of)


def _section(section: type, values: Mapping[str, Any], place: str) -> Any:
    known: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(section)}
    for key in values:
        if key not in known:
            raise checks.unknown_key(place, key, known)
    return section(**{key: _typed(known[key], value, place, key) for key, value in values.items()})


def _typed(kind: Any, value: Any, place: str, key: str) -> Any:
    """The value as the field's type, or a TypeError / ValueError that names both."""
    if get_origin(kind) in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _typed(option, value, place, key)
            except (TypeError, ValueError):
                continue
        raise checks.wrong_type(place, key, kind, value)
    if get_origin(kind) is Literal:
        checks.one_of(place, key, value, get_args(kind))
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise checks.wrong_type(place, key, kind, value)
        kinds = get_args(kind)
        repeated = kinds[0] if kinds[-1] is Ellipsis else None
        if repeated is None and len(kinds) != len(value):
            raise checks.wrong_type(place, key, kind, value)
        of_each = [repeated] * len(value) if repeated is not None else kinds
        return tuple(_typed(k, v, place, key) for k, v in zip(of_each, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind and not (kind is type(None) and value is None):
        raise checks.wrong_type(place, key, kind, value)
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values that ``json`` can write; ``resolved.json`` of a run."""
    return dataclasses.asdict(config)


def decisive_settings(config: Any) -> dict[str, Any]:
    """The settings that decide a result, as ``to_dict``: what results are kept under.

    A setting that older versions did not have is left out where its value is what they did, as
    ``AS_BEFORE`` of its class says, so that what they have kept is found.
    """
    as_before = getattr(config, "AS_BEFORE", {})
    return {
        name: value
        for name, value in to_dict(config).items()
        if name not in as_before or as_before[name] != value
    }
