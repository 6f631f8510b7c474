"""How a TOML file and the environment become one `Settings`, and how every mistake in them is told at once.

A variable is `WARDGATE_` + the option's path in upper case with single underscores; `<NAME>_FILE` reads the value from
a file; arrays and tables are JSON; `DATABASE_URL` and `REDIS_URL` have no prefix. Variables win over the file. An empty
variable counts as unset. The value of a secret is never part of a message.

    SettingsError     carries every `Mistake`
"""

import copy
import difflib
import json
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, SecretStr, ValidationError

from config import reference
from config.settings import (
    Settings,
    domain,
    ecdsa_public_key,
    from_here,
    http_url,
    link,
    network,
    origin,
    passkey_origin,
    postgres_url,
    redis_url,
    regex,
    roles,
    rsa_public_key,
    seconds,
    sender,
    unsafe,
)

PREFIX = "WARDGATE_"
# Named like ours, but no settings: where the file is, and the checkout that acceptance scripts look at.
NOT_SETTINGS = frozenset({"WARDGATE_CONFIG", "WARDGATE_MAIN"})
_UNPREFIXED = {"DATABASE_URL": "database.url", "REDIS_URL": "redis.url"}
_SHOWN = 80


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong: the option, the value that was given ("" for secrets and tables), what is accepted."""

    key: str
    value: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.key}{value}: {self.message}{hint}"


class SettingsError(Exception):
    """The settings cannot be used. `mistakes` has all there is to mend; the text has one line for each."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join(str(mistake) for mistake in mistakes))


@dataclass(frozen=True)
class Option:
    """An option as the models declare it. `table`: has options below it; `item`: stands in a table of which there may
    be many, in an array or under names that are given."""

    path: str
    annotation: Any
    validators: tuple[Any, ...]
    table: bool
    item: bool

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.path.replace(".", "_").upper()

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return self.annotation is SecretStr or SecretStr in get_args(self.annotation)

    @property
    def key(self) -> bool:
        """Whether it is a key in PEM: one that is wrong may be a private one, and is not shown."""
        return any(getattr(v, "func", None) in (rsa_public_key, ecdsa_public_key) for v in self.validators)

    @property
    def explained(self) -> bool:
        """Whether what is wrong with it is told in words."""
        return self.key or any(getattr(v, "func", None) is roles for v in self.validators)

    @property
    def accepted(self) -> str:
        """What it takes, in words."""
        return _accepted(self.annotation, self.validators)

    @property
    def accepted_item(self) -> str:
        """What one item of an array takes, in words."""
        return self.accepted.removeprefix(_ARRAY)


def load(path: str | None, environ: Mapping[str, str], *, dev: bool = False) -> Settings:
    """The settings. SettingsError with every mistake; outside `dev` an unsafe combination is one.

    `path` is the file, or None for that of WARDGATE_CONFIG, or none at all.
    """
    mistakes: list[Mistake] = []
    path = path or environ.get(PREFIX + "CONFIG") or None
    tree = _read_file(Path(path), mistakes) if path else {}
    unread = bool(mistakes)
    places = dict.fromkeys(_paths(tree), str(path))
    origins = _overlay(tree, environ, mistakes)
    settings = _validate(tree, origins, mistakes)
    told = {mistake.key for mistake in mistakes}
    mistakes += [mistake for mistake in _coerced(tree, origins) if mistake.key not in told]
    if not dev and not unread:  # of a file that was not read nobody knows what it sets
        mistakes += _unsafe(settings or _what_is_right(tree), mistakes)
    if settings is None or mistakes:
        raise SettingsError(mistakes)
    from_here(settings, places | origins)
    return settings


_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")
"""The user and password in a URL."""


def seen(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Each option with its value, as JSON can hold it and people may see it, and where that came from."""
    for path, option in options().items():
        if not option.table and not option.item:
            value: Any = settings
            for name in path.split("."):
                value = getattr(value, name)
            yield path, _masked(value), _origin(settings.origins, path)


def _masked(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    if isinstance(value, BaseModel):
        return {name: _masked(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, str):
        return _CREDENTIALS.sub("***@", value)
    return value


def _origin(origins: Mapping[str, str], path: str) -> str:
    """A variable may hold a whole table."""
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return "default"


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every option that a file has."""
    for name, value in tree.items():
        option = options().get(f"{prefix}{name}")
        if isinstance(value, dict) and option is not None and option.table:
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _unsafe(settings: Settings, others: list[Mistake]) -> list[Mistake]:
    """What must not run outside development, but for options that are wrong anyway."""
    told = tuple(mistake.key for mistake in others)
    return [
        Mistake(key, "", why, "" if why.startswith("is needed") else "unsafe outside development")
        for key, why in unsafe(settings)
        if not key.startswith(told)
    ]


def _what_is_right(tree: dict[str, Any]) -> Settings:
    """The settings without what is wrong in `tree`, so that one look finds both kinds of mistakes."""
    tree = copy.deepcopy(tree)
    while True:
        try:
            return Settings.model_validate(tree)
        except ValidationError as error:
            removed = [_remove(tree, _removable(detail["loc"])) for detail in error.errors(include_url=False)]
            if not any(removed):
                tree.clear()


def _removable(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """An array goes as a whole, so that the places of its other items stay what they are."""
    first = next((i for i, part in enumerate(location) if isinstance(part, int)), len(location))
    return location[:first]


def _remove(tree: dict[str, Any], location: Sequence[str | int]) -> bool:
    """Whether something was there. The root itself is not removed."""
    *sections, name = location or [""]
    node: Any = tree
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    return isinstance(node, dict) and node.pop(name, None) is not None


@cache
def options() -> Mapping[str, Option]:
    """Every option and table by its path; what stands in an array or under given names has the path of that."""
    return {option.path: option for option in _walk(Settings, "", item=False)}


def _walk(model: type[BaseModel], prefix: str, *, item: bool) -> Iterator[Option]:
    for name, info in model.model_fields.items():
        path, inner = f"{prefix}{name}", _model_in(info.annotation)
        table = inner is not None and inner is info.annotation
        yield Option(path, info.annotation, tuple(info.metadata), table, item)
        if inner is not None:
            yield from _walk(inner, f"{path}.", item=item or not table)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _read_file(path: Path, mistakes: list[Mistake]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        mistakes.append(Mistake(str(path), "", f"the settings file cannot be read: {reason}"))
    except tomllib.TOMLDecodeError as error:
        mistakes.append(Mistake(str(path), "", f"not TOML: {error}"))
    return {}


def _overlay(tree: dict[str, Any], environ: Mapping[str, str], mistakes: list[Mistake]) -> dict[str, str]:
    """Put the variables' values into `tree`; the variable that each path came from."""
    by_variable = {option.variable: option for option in options().values() if not option.item}
    by_variable |= {name: options()[path] for name, path in _UNPREFIXED.items()}
    origins: dict[str, str] = {}
    for variable in sorted(environ):
        name = variable
        if variable not in by_variable and variable.endswith("_FILE"):
            name = variable.removesuffix("_FILE")
        if name not in by_variable:
            if variable.startswith(PREFIX) and variable not in NOT_SETTINGS:
                mistakes.append(_unknown_variable(variable, by_variable))
            continue
        option, text = by_variable[name], environ[variable]
        if not text:
            continue
        if option.path in origins:
            mistakes.append(Mistake(option.path, "", f"given twice: by {origins[option.path]} and by {variable}"))
            continue
        origins[option.path] = variable
        if name != variable:
            content = _read_secret(Path(text), option, variable, mistakes)
            if content is None:
                continue
            text = content
        value = _from_text(option, text, variable, mistakes)
        if value is not None:
            _put(tree, option.path.split("."), value)
    return origins


def _read_secret(path: Path, option: Option, variable: str, mistakes: list[Mistake]) -> str | None:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        mistakes.append(Mistake(option.path, str(path), f"the file named by {variable} cannot be read: {reason}"))
        return None


def _from_text(option: Option, text: str, variable: str, mistakes: list[Mistake]) -> Any:
    table = option.table or get_origin(option.annotation) is dict
    if not table and get_origin(option.annotation) is not list:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict if table else list):
        mistakes.append(Mistake(option.path, "", f"must be {option.accepted}, as JSON", f"from {variable}"))
        return None
    return value


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, name = path
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            return  # a value stands where a table belongs: validation names it
        tree = below
    if isinstance(value, dict) and isinstance(tree.get(name), dict):
        for key, item in value.items():
            _put(tree[name], [key], item)
    else:
        tree[name] = value


def _unknown_variable(variable: str, known: Mapping[str, Option]) -> Mistake:
    bare = variable.removeprefix(PREFIX)
    if any(bare == name or bare.startswith(name + "_") for name in reference.variables()):
        return Mistake(variable, "", _NOT_SUPPORTED)
    settable = {name.removeprefix(PREFIX): name for name, option in known.items() if not option.table}
    return Mistake(variable, "", _NO_SUCH, _nearest(bare, settable))


def _validate(tree: dict[str, Any], origins: Mapping[str, str], mistakes: list[Mistake]) -> Settings | None:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        mistakes += [_mistake(detail, tree, origins) for detail in error.errors(include_url=False)]
        return None


def _coerced(node: Any, origins: Mapping[str, str], location: tuple[str | int, ...] = ()) -> Iterator[Mistake]:
    """What is of another type in the file than its option, and was made into it as the text of a variable is."""
    path = _path(location)
    if path in origins:
        return
    if isinstance(node, dict | list):
        for key, below in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _coerced(below, origins, (*location, key))
        return
    option = options().get(path)
    if option is not None and type(node) is not _IN_TOML.get(option.annotation, type(node)):
        yield Mistake(_spelled(location), _shown(node, option), f"must be {option.accepted}")


def _mistake(detail: Any, tree: Any, origins: Mapping[str, str]) -> Mistake:
    location: tuple[str | int, ...] = detail["loc"]
    key, path = _spelled(location), _path(location)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(key, path)
    option = options().get(path)
    source = next((f"from {v}" for p, v in origins.items() if path == p or path.startswith(f"{p}.")), "")
    whole = option is None or _model_in(option.annotation) is not None
    if option is None or (whole and detail["type"] == "value_error"):  # options that do not go together
        return Mistake(key or "settings", "", str(detail["ctx"]["error"]), source)
    if detail["type"] == "missing":
        return Mistake(key, "", f"is needed: {option.accepted}", source)
    accepted = option.accepted_item if isinstance(location[-1], int) else option.accepted
    if option.explained and detail["type"] == "value_error":
        return Mistake(key, "", f"must be {accepted}; {detail['ctx']['error']}", source)
    return Mistake(key, _shown(_at(tree, location), option), f"must be {accepted}", source)


def _unknown_key(key: str, path: str) -> Mistake:
    if reference.known_path(path):
        return Mistake(key, "", _NOT_SUPPORTED)
    section, _, name = path.rpartition(".")
    siblings = [p.rpartition(".")[2] for p in options() if p.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.7)
    if near:
        return Mistake(key, "", _NO_SUCH, f"did you mean {key.removesuffix(name)}{near[0]}?")
    return Mistake(key, "", _NO_SUCH, _nearest(name, {p.rpartition(".")[2]: p for p in options()}))


_NO_SUCH = "there is no such setting"
_ARRAY = "an array, each item "
_NOT_SUPPORTED = "an option of Centrifugo that is not supported here: remove it"


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not near:
        return ""
    found = known[near[0]]
    return f"did you mean {found if isinstance(found, str) else near[0]}?"


def _path(location: tuple[str | int, ...]) -> str:
    """The option's, without what only says which one of many: a place in an array, a name that somebody gave."""
    path, given = "", False
    for part in location:
        if isinstance(part, int) or given:
            given = False
            continue
        path = f"{path}.{part}".removeprefix(".")
        given = path in options() and get_origin(options()[path].annotation) is dict
    return path


def _spelled(location: tuple[str | int, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _at(tree: Any, location: tuple[str | int, ...]) -> Any:
    for part in location:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _shown(value: Any, option: Option) -> str:
    """The value as the message may show it: nothing of a secret, nothing of what has parts."""
    if option.secret or option.key or _model_in(option.annotation) is not None or isinstance(value, dict | list):
        return ""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


_ESCAPED = "in a user or password / ? # @ : % are written as %2F %3F %23 %40 %3A %25"
_IN_WORDS = {
    seconds: 'a duration like "30s", "10m", "1h30m" or "14d"',
    origin: 'an exact origin like "https://example.org", or "*"',
    passkey_origin: 'an exact origin like "https://example.org", or "android:apk-key-hash:..."',
    domain: 'a domain like "example.org" (no scheme, no port, lower case)',
    network: 'an address or a network like "10.0.0.0/8"',
    regex: "a regular expression",
    roles: 'a table of roles, each with its scopes, like support = ["users:read"]',
    postgres_url: f"a URL of PostgreSQL like postgresql://user:password@host:5432/name ({_ESCAPED})",
    redis_url: "a URL of Redis: redis://, rediss://, unix:// or redis+sentinel://host/0?sentinel_master_name=... "
    f"({_ESCAPED})",
    sender: 'an address like "Example <no-reply@example.org>"',
    http_url: 'a URL like "https://example.org/siteverify"',
    link: 'a link like "https://example.org/reset#{token}"',
    rsa_public_key: "an RSA public key in PEM, its first line -----BEGIN PUBLIC KEY-----",
    ecdsa_public_key: "an ECDSA public key in PEM, its first line -----BEGIN PUBLIC KEY-----",
}
_IN_TOML = {bool: bool, int: int, float: str}  # a number with a point is no duration
_PLAIN = {bool: "true or false", str: "text", SecretStr: "text (a secret)", int: "a whole number", float: "a number"}


def _accepted(annotation: Any, metadata: tuple[Any, ...]) -> str:
    for item in metadata:
        if isinstance(item, BeforeValidator | AfterValidator) and item.func in _IN_WORDS:
            return _IN_WORDS[item.func]
    origin_of = get_origin(annotation)
    if origin_of is Literal:
        return "one of " + ", ".join(json.dumps(choice) for choice in get_args(annotation))
    if origin_of is list:
        (inner,) = get_args(annotation)
        metadata = getattr(inner, "__metadata__", ())
        return f"{_ARRAY}{_accepted(get_args(inner)[0] if metadata else inner, metadata)}"
    if origin_of in (Union, types.UnionType):
        return " or ".join(_accepted(kind, ()) for kind in get_args(annotation))
    if _model_in(annotation) is not None:
        return "a table"
    return _PLAIN.get(annotation, "something else") + _bounds(metadata)


def _bounds(metadata: tuple[Any, ...]) -> str:
    low = next((m.ge for m in metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((m.le for m in metadata if isinstance(m, annotated_types.Le)), None)
    pattern = next((m.pattern for m in metadata if getattr(m, "pattern", None)), None)
    if pattern:
        return f" of the form {pattern}"
    if high is not None:
        return f" from {low or 0} to {high}"
    return f" of at least {low}" if low is not None else ""
