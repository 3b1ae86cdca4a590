"""mmsegmentation's configuration text, read without running it.

Its files hold the Python text of the whole configuration: assignments of ``dict(...)`` calls and
literals. It is parsed, and whatever is neither is left out.
"""

from __future__ import annotations

import ast
from typing import Any


class Unknown:
    """The value of an expression that is neither a literal nor ``dict(...)``."""


_UNKNOWN = Unknown()


def read_config(text: str) -> dict[str, Any]:
    """The top-level names of a configuration, with dicts, lists, tuples and plain values.

    What cannot be read is left out; a text that is no Python gives an empty dict.
    """
    try:
        tree = ast.parse(text)
    # Of texts with null bytes, or nested too deeply.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = _value(statement.value, names)
    return {name: value for name, value in names.items() if value is not _UNKNOWN}


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name, _UNKNOWN)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = [(k, _value(v, names)) for k, v in zip(keys, values, strict=True)]
            found = {k.value: v for k, v in pairs if isinstance(k, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            found = {k.arg: _value(k.value, names) for k in keywords if k.arg is not None}
        case _:
            return _UNKNOWN
    return {key: value for key, value in found.items() if value is not _UNKNOWN}
