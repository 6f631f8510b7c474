"""Lists as files: which form a request asks for, and how a row looks in it. Bytes in and out, no HTTP.

In CSV (RFC 4180) a cell that a spreadsheet would take for a formula has a `'` before it; what is no text is JSON.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

Form = Literal["text/csv", "application/x-ndjson"]
FORMS: Final[Mapping[Form, str]] = {"text/csv": "csv", "application/x-ndjson": "jsonl"}
"""Each with the suffix of its files."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def wanted(accept: str) -> Form | None:
    """The form that an Accept header likes better than JSON; None for JSON, also where it names nothing that we know.
    A form counts only by its own name: `*/*` is what everyone sends."""
    best, form = _quality(accept, "application/json"), None
    for name in FORMS:
        quality = _quality(accept, name)
        if quality > best:
            best, form = quality, name
    return form


def _quality(accept: str, wanted: str) -> float:
    """RFC 9110, 12.5.1; 0 where the type is not named."""
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if name == wanted:
            q = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            try:
                return float(q)
            except ValueError:
                return 0.0
    return 0.0


def head(form: Form, kind: type[msgspec.Struct]) -> bytes:
    """What stands before the first row: the names of the columns."""
    return _line(msgspec.structs.fields(kind), lambda field: field.name) if form == "text/csv" else b""


def rows(form: Form, items: Sequence[msgspec.Struct]) -> bytes:
    """These rows, in their order."""
    if form == "text/csv":
        return b"".join(_line(msgspec.structs.astuple(item), _cell) for item in items)
    return b"".join(msgspec.json.encode(item) + b"\n" for item in items)


def _line(values: Sequence[Any], text: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow([text(value) for value in values])
    return out.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return msgspec.json.encode(value).decode()
