"""Comparing a hook implementation's annotations with the specification's.

pluggy checks the names of arguments alone. Types are compared here after both sides are resolved, names that stand under
``if TYPE_CHECKING`` included.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin


class _Names(dict[str, Any]):
    """The names that annotations of one module may use: its own, and those it imports for type checkers."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(vars(module))
        self.lazy = _type_checking_imports(module)

    def __missing__(self, name: str) -> Any:
        if name not in self.lazy:
            raise KeyError(name)
        source, attribute = self.lazy[name]
        try:
            found = importlib.import_module(source)
            self[name] = getattr(found, attribute) if attribute else found
        except (ImportError, AttributeError):
            # What is not installed here cannot be compared.
            self[name] = Any
        return self[name]


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument name (and ``return``) to its resolved type. What is not annotated, or cannot be resolved, is absent."""
    function = inspect.unwrap(function)
    module = sys.modules[function.__module__]
    names = _Names(module)
    found = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            value = eval(annotation, {}, names) if isinstance(annotation, str) else annotation
            found[name] = eval(value, {}, names) if isinstance(value, str) else value
        except Exception:
            continue
    return found


def fits(own: Any, spec: Any) -> bool:
    """Whether an implementation's type can stand where the specification has ``spec``: equal, narrower or wider."""
    own, spec = _plain(own), _plain(spec)
    if own in (Any, object) or spec in (Any, object) or isinstance(own, typing.TypeVar) or own == spec:
        return True
    if _is_union(own) or _is_union(spec):
        left = get_args(own) if _is_union(own) else (own,)
        right = get_args(spec) if _is_union(spec) else (spec,)
        return any(fits(a, b) for a in left for b in right if not (a is type(None) and b is type(None))) or left == right
    a, b = get_origin(own) or own, get_origin(spec) or spec
    if a is typing.Literal or b is typing.Literal:
        return _literal(own, b, spec) if a is typing.Literal else _literal(spec, a, own)
    if not (isinstance(a, type) and isinstance(b, type)):
        return bool(a == b)
    # A text is a sequence to Python, never to a hook.
    if not (issubclass(a, b) or issubclass(b, a)) or (a is not b and {a, b} & {str, bytes}):
        return False
    mine, theirs = get_args(own), get_args(spec)
    if len(mine) != len(theirs) or not mine:
        return True
    return all(fits(x, y) for x, y in zip(mine, theirs, strict=True) if x is not Ellipsis and y is not Ellipsis)


def text(annotation: Any) -> str:
    """An annotation as an author writes it."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _literal(literal: Any, other: Any, whole: Any) -> bool:
    if get_origin(whole) is typing.Literal:
        return bool(set(get_args(literal)) & set(get_args(whole)))
    return all(isinstance(value, other) for value in get_args(literal)) if isinstance(other, type) else False


def _plain(annotation: Any) -> Any:
    if isinstance(annotation, (str, typing.ForwardRef)):
        # A name in quotes inside another type; what stands unquoted is compared.
        return Any
    if annotation is None:
        return type(None)
    return get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _type_checking_imports(module: types.ModuleType) -> dict[str, tuple[str, str]]:
    """Name to (module, attribute) of the imports in ``if TYPE_CHECKING`` blocks."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.module:
                    found.update({(a.asname or a.name): (statement.module, a.name) for a in statement.names})
                elif isinstance(statement, ast.Import):
                    found.update({(a.asname or a.name.partition(".")[0]): (a.name if a.asname else a.name.partition(".")[0], "") for a in statement.names})
    return found
