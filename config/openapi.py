"""The API description, made from the same `Route`s and request types that serve and validate.

Nothing is described by hand: a route that is not mounted is not in it, and a field that a type lacks is neither taken
nor described.
"""

import re
from collections.abc import Iterable
from types import UnionType
from typing import Any, get_args

import msgspec

from config.exports import FORMS
from config.http import PROBLEMS, Nothing, ProblemDetails, Route

_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"{(\w+)}")
_SECURITY: dict[str, tuple[str, ...]] = {
    "public": (),
    "session": ("bearer", "cookie"),
    "admin": ("bearer", "cookie", "apiKey"),
    "key": ("apiKey",),
}
"""What may speak for who asks; the scope of an admin route stands beside each of them."""


_RATE_LIMIT = {
    name: {
        "description": f"draft-ietf-httpapi-ratelimit-headers; of the caller's address: {what}",
        "schema": {"type": "string"},
    }
    for name, what in (("RateLimit", "what is left"), ("RateLimit-Policy", "the limit"))
}


def describe(routes: Iterable[Route], *, title: str, version: str, cookie: str) -> dict[str, Any]:
    """An OpenAPI 3.1 document of `routes`; `cookie` is the session cookie's name."""
    routes = sorted(routes, key=lambda r: (r.path, r.method))
    types: list[Any] = [ProblemDetails]
    for route in routes:
        types += [t for t in (route.body, route.query, *_alternatives(route.result)) if t is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    for route in routes:
        if route.access == "key" and route.body is not None:
            _take_null(_resolve(schema_of[_key(route.body)], components))
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": cookie},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _alternatives(result: Any) -> tuple[Any, ...]:
    """The structs of a union, which a decoder could not tell apart but a reader can."""
    return get_args(result) if isinstance(result, UnionType) else (result,)


def _key(kind: Any) -> Any:
    return kind if isinstance(kind, type) else repr(kind)


def _operation(route: Route, schema_of: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _operation_id(route),
        "tags": [route.tag or route.path.split("/")[1]],
        "security": [{name: [route.scope] if route.scope else []} for name in _SECURITY[route.access]],
        "responses": _responses(route, schema_of),
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(route.path)
    ]
    parameters += _query_parameters(route, schema_of, components)
    parameters += [{"name": name, "in": "header", "schema": {"type": "string"}} for name in route.headers]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        required = bool(_resolve(schema_of[_key(route.body)], components).get("required"))
        operation["requestBody"] = {
            "required": required,
            "content": {"application/json": {"schema": schema_of[_key(route.body)]}},
        }
    return operation


def _operation_id(route: Route) -> str:
    return re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_")


def _resolve(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return components[reference.rsplit("/", 1)[1]] if reference else schema


def _take_null(schema: dict[str, Any]) -> None:
    """In the server API null counts as absent, for every field."""
    for name, field in schema.get("properties", {}).items():
        if {"type": "null"} not in field.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


def _query_parameters(route: Route, schema_of: dict[Any, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = _resolve(schema_of[_key(route.query)], components)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]


# The server API says these in plain text, or not at all.
_PLAIN_REFUSALS = {
    "400": "Not JSON, or of other types than these",
    "401": "No API key, or one that is not good",
    "413": "The body is too large",
    "415": "The body is compressed",
}


def _responses(route: Route, schema_of: dict[Any, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.result is None:
        responses["204" if route.status == 200 else str(route.status)] = {"description": "Done"}
    else:
        shapes = [schema_of[_key(kind)] for kind in _alternatives(route.result)]
        form = "text/plain" if route.result is str else "application/json"
        content: dict[str, Any] = {form: {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}}
        if route.export is not None:
            content |= {form: {"schema": {"type": "string"}} for form in FORMS}
        for status in (route.status, *route.also):
            responses[str(status)] = {"description": "Done", "content": content}
    if route.access == "key":
        responses |= {status: {"description": why} for status, why in _PLAIN_REFUSALS.items()}
    problem = {"application/problem+json": {"schema": schema_of[ProblemDetails]}}
    for code in problem_codes(route):
        status, title = PROBLEMS[code]
        if code == "second_factor_required" and route.access == "admin":
            status = 403  # of the role, not of this login
        known = responses.setdefault(str(status), {"description": "", "content": problem})
        known["description"] = "; ".join(filter(None, [known["description"], f"`{code}`: {title}"]))
    if "too_many_attempts" in route.errors:
        for response in responses.values():
            response["headers"] = {**_RATE_LIMIT}
    for busy in {"429", "503"} & set(responses):
        responses[busy].setdefault("headers", {})["Retry-After"] = {"schema": {"type": "integer"}}
    return responses


def problem_codes(route: Route) -> list[str]:
    """Every code that this route can answer with: its own, and those that follow from its body and access."""
    if route.access == "key":
        return ["frozen"]  # the rest goes in the answer's own `error`
    codes = set(route.errors) | {"unavailable", "internal"}
    if route.body is not None:
        codes |= {"malformed", "too_large", "unsupported_media_type", "invalid"}
    if route.query is not Nothing:
        codes.add("invalid")
    if route.needs_current:
        codes.add("frozen")
    if route.access == "admin":
        codes.add("second_factor_required")
    if route.in_person:
        codes.add("impersonated")
    if route.access != "public":
        codes |= {"unauthenticated", "token_expired", "session_ended", "forbidden"}
        if route.in_person or route.method not in ("GET", "HEAD"):
            codes.add("cross_site")
    return sorted(codes, key=lambda c: (PROBLEMS[c][0], c))
