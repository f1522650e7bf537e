"""The constants at the top of an experiment.py: read from its parsed code, and set to other values there."""

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

UNKNOWN = object()  # the value of an expression that is more than arithmetic
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def assigned(source: str) -> dict[str, ast.expr]:
    """Return the expressions that a program assigns at its top level to names in upper case, each as it stands last."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
    return {name: value for name, value in found.items() if name.isupper()}


def values(source: str) -> dict[str, Any]:
    """Return the constants of a program by name; UNKNOWN for those that are more than literals and arithmetic."""
    known: dict[str, Any] = {}
    for name, expression in assigned(source).items():
        known[name] = _value(expression, known)
    return known


def literal(expression: ast.expr) -> Any:
    """Return the value of a literal, with lists for tuples, or UNKNOWN for any other expression."""
    return _value(expression, {}) if not _has_operator(expression) else UNKNOWN


def same(value: Any, other: Any) -> bool:
    """Return True if a value equals another and is of its kind; a whole number may stand for a number."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other and (type(value) is type(other) or (type(value) is int and isinstance(other, float)))


def parse(text: str, like: Any) -> Any:
    """Return the value of a literal that is to stand for a value like this. Raise ValueError with what is expected."""
    try:
        value = literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        value = UNKNOWN
    if value is UNKNOWN and isinstance(like, str):
        value = text
    return fitting(value, like)


def fitting(value: Any, like: Any) -> Any:
    """Return a value in the kind of that which it replaces. Raise ValueError with what is expected, if it is not one.

    A whole number may stand for a number, and None for anything or anything for None.
    """
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if value is UNKNOWN or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"expected {KINDS.get(type(like), 'a literal of Python')}")
    if value is None or like is None or like is UNKNOWN or type(value) is type(like):
        return value
    raise ValueError(f"expected {KINDS[type(like)]}")


def replaced(source: str, constants: Mapping[str, Any]) -> str:
    """Return a program with these values in the place of what it assigns to those of the names that it has.

    The rest of each line, such as its comment, stays.
    """
    places = [(node, constants[name]) for name, node in assigned(source).items() if name in constants]
    lines = source.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node, value in sorted(places, key=lambda place: place[0].lineno, reverse=True):
        assert node.end_lineno
        first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
        kind = tuple if isinstance(node, ast.Tuple) else type(value)
        written = repr(kind(value) if isinstance(value, list) else value).encode()
        lines[node.lineno - 1 : node.end_lineno] = [first[: node.col_offset] + written + last[node.end_col_offset :]]
    return b"".join(lines).decode()


def _has_operator(expression: ast.expr) -> bool:
    return any(isinstance(node, ast.BinOp | ast.Name) for node in ast.walk(expression))


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return the value of an expression of literals, constants before it and arithmetic; UNKNOWN for any other."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name):
            return known.get(name, UNKNOWN)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            values = [_value(part, known) for part in parts]
            return UNKNOWN if UNKNOWN in values else values
        case ast.UnaryOp(op=ast.USub(), operand=operand) if _is_number(value := _value(operand, known)):
            return -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            pair = _value(left, known), _value(right, known)
            if all(map(_is_number, pair)) and (pair[1] or type(op) not in (ast.Div, ast.FloorDiv)):
                return OPERATORS[type(op)](*pair)
    return UNKNOWN


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
