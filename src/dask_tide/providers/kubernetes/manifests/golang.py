"""JSON as Go's ``encoding/json`` writes it.

Helm hashes pod templates and configurations as text; the same objects must hash to the same here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

__all__ = ["compact", "digest", "plain", "pretty"]

#: Go writes them as escapes even where it leaves HTML alone.
_ALWAYS_ESCAPED = {ord(character): f"\\u{ord(character):04x}" for character in "\u2028\u2029"}
_HTML_ESCAPED = _ALWAYS_ESCAPED | {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def compact(value: Any) -> str:
    """JSON with sorted keys and without spaces, as Helm's ``toRawJson`` has it."""
    return _write(value, None, "", _ALWAYS_ESCAPED)


def pretty(value: Any) -> str:
    """JSON with sorted keys, indented by two spaces, as Helm's ``toPrettyJson`` has it."""
    return _write(value, "  ", "\n", _HTML_ESCAPED)


def digest(text: str) -> str:
    """The first ten hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def plain(value: Any) -> Any:
    """Make of YAML's values JSON's, as Helm does: whole numbers are whole, 1.0 as well, and keys are text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else compact(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _write(value: Any, indent: str | None, line: str, escapes: Mapping[int, str]) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(escapes)
    if isinstance(value, float):
        return _number(value)
    deeper = line + (indent or "")
    if isinstance(value, Mapping) and value:
        opening, closing, colon = "{", "}", ": " if indent else ":"
        items = [
            _write(key, None, "", escapes) + colon + _write(value[key], indent, deeper, escapes)
            for key in sorted(value)
        ]
    elif isinstance(value, list) and value:
        opening, closing = "[", "]"
        items = [_write(item, indent, deeper, escapes) for item in value]
    else:
        return json.dumps(value)
    if indent is None:
        return f"{opening}{','.join(items)}{closing}"
    return f"{opening}{deeper}{f',{deeper}'.join(items)}{line}{closing}"


def _number(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:  # noqa: PLR2004 - where Go changes to exponents
        return str(int(value))
    if 1e-6 <= abs(value) < 1e21:  # noqa: PLR2004 - likewise
        return f"{Decimal(repr(value)):f}"
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"
