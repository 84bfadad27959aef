"""Reads source: which operations of rtobs it opens, by its syntax tree, also inside functions that nothing has called.

A name that is written as text, or is a constant, is known; one that is computed is not. Runs nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from rtobs.readiness.code import EVENT, INTEND, KINDS, Code, Operation, Place

_PARAMETERS: Final = {
    "accept": "route", "publish": "destination", "consume": "destination", "deliver": "channel", "receipt": "step",
    "job": "connector", "stage": "name", INTEND: "channel", EVENT: "name",
}  # fmt: skip
"""Name of the argument that names the operation, where it is given by name."""
_HOPS: Final = frozenset(KINDS) - {"stage"}
_MIDDLEWARE: Final = frozenset(f"{module}.Middleware" for module in ("rtobs.integrations.asgi",))
_WATCH: Final = "rtobs.integrations.watch"


def read(
    text: str, file: str, namespace: Mapping[str, Any] | None = None, modules: Mapping[str, ModuleType] | None = None
) -> Code:
    """Return what the source *text* of *file* opens.

    Args:
        text: the source.
        file: its name, for places.
        namespace: what its module holds, where it was imported.
        modules: modules that were imported, by name: constants that the source takes from them are found there.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(text, file)
    reader = _Reader(file, namespace or {}, modules or {}, _constants(tree))
    reader.visit(tree)
    return Code((file,), tuple(reader.operations), frozenset(reader.uses))


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives a name once."""
    found: dict[str, list[Any]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, []).append(None)
    constants: dict[str, str] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as value)):
                constants[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str() as value)):
                constants[name] = value
            case _:
                pass
    return {name: value for name, value in constants.items() if len(found[name]) == 1}


class _Reader(ast.NodeVisitor):
    def __init__(
        self, file: str, namespace: Mapping[str, Any], modules: Mapping[str, ModuleType], constants: Mapping[str, str]
    ) -> None:
        self._file = file
        self._namespace = dict(namespace)
        self._modules = modules
        self._constants = constants
        self._ours: dict[str, str] = {}
        """Local names of things of rtobs, with their whole names."""
        self._around: list[tuple[str, str]] = []
        self.operations: list[Operation] = []
        self.uses: set[str] = set()

    # Names -----------------------------------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        """Note names of rtobs."""
        for alias in node.names:
            if alias.name.partition(".")[0] == "rtobs":
                self._ours[alias.asname or "rtobs"] = alias.name if alias.asname else "rtobs"

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Note names of what is in rtobs, and what is taken from modules that are known."""
        if node.module and not node.level and node.module.partition(".")[0] == "rtobs":
            for alias in node.names:
                self._ours[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                self._use(f"{node.module}.{alias.name}", node)
        if node.module and not node.level and node.module in self._modules:
            for alias in node.names:
                found: Any = vars(self._modules[node.module]).get(alias.name)
                self._namespace.setdefault(
                    alias.asname or alias.name, self._modules.get(f"{node.module}.{alias.name}", found)
                )

    def _whole(self, node: ast.expr) -> str:
        """Return the whole name of something of rtobs; empty if it is not."""
        match node:
            case ast.Name(id=name):
                return self._ours.get(name, "")
            case ast.Attribute(value=value, attr=name):
                inner = self._whole(value)
                return f"{inner}.{name}" if inner else ""
            case _:
                return ""

    def _use(self, whole: str, node: ast.AST) -> None:
        if whole in _MIDDLEWARE:  # its routes are the framework's
            self.operations.append(Operation("accept", "", self._place(node)))

    def _place(self, node: ast.AST) -> Place:
        line = getattr(node, "lineno", 1)
        return Place(self._file, line, getattr(node, "end_lineno", None) or line)

    def _text(self, node: ast.expr | None) -> str:
        """Return the text that *node* stands for; empty if it is computed."""
        match node:
            case ast.Constant(value=str() as value):
                return value
            case ast.Name(id=name):
                return self._constants.get(name, "") or _string(self._namespace.get(name))
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                found = self._namespace.get(module)
                return _string(vars(found).get(name)) if isinstance(found, ModuleType) else ""
            case _:
                return ""

    # Operations ------------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note a middleware that is named."""
        self._use(self._whole(node), node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note an operation, or something else that is called."""
        self._operation(node)
        self.generic_visit(node)

    def _operation(self, node: ast.Call) -> tuple[str, str] | None:
        """Note what *node* opens; return kind and name of a hop."""
        whole = self._whole(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        kind = whole.removeprefix("rtobs.") if whole.startswith("rtobs.") else ""
        if kind == "configure" and "slos" in given:
            self.uses.add("configure(slos)")
        if whole == _WATCH:
            self.uses.add("watch")
        if not whole and self._ours and isinstance(node.func, ast.Attribute):
            kind = node.func.attr if node.func.attr in (INTEND, EVENT) else ""
            if node.func.attr == "segment" and "tenant" in given:
                self.uses.add("segment(tenant)")
        if kind not in _PARAMETERS:
            return None
        name = self._text(node.args[0] if node.args else given.get(_PARAMETERS[kind]))
        provider = (
            self._text(node.args[1] if len(node.args) > 1 else given.get("provider")) if kind == "deliver" else ""
        )
        channel = self._text(given.get("channel")) if kind == "publish" else ""
        inside = self._around[-1] if kind == "stage" and self._around else None
        operation = Operation(kind, name, self._place(node), channel, provider, inside)
        if operation not in self.operations:
            self.operations.append(operation)
        return (kind, name) if kind in _HOPS else None

    @contextmanager
    def _inside(self) -> Generator[None]:
        """Leave all hops that are entered meanwhile."""
        around = list(self._around)
        try:
            yield
        finally:
            self._around = around

    def _enter(self, node: ast.expr) -> None:
        """Read what is inside of the hop that *node* opens, if it opens one."""
        self.visit(node)
        hop = self._operation(node) if isinstance(node, ast.Call) else None
        self._around += [hop] if hop is not None else []

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        """Read what is inside of a hop."""
        with self._inside():
            for item in node.items:
                self._enter(item.context_expr)
            for inner in node.body:
                self.visit(inner)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        """Read what is inside of a hop."""
        self.visit_With(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Read a function: what decorates it is round it, and nothing else is."""
        with self._inside():
            self._around = []
            for inner in (*node.decorator_list, node.args, *node.body):
                self._enter(inner) if isinstance(inner, ast.Call) else self.visit(inner)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Read a function."""
        self.visit_FunctionDef(node)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
