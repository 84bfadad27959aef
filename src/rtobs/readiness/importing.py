"""Imports a user's module as ``python -m`` would find it, and notes the operations that are made meanwhile.

Nothing is exported: rtobs and OpenTelemetry are switched off meanwhile. A package's ``__main__`` is read, not run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rtobs.readiness.code import KINDS, Code, Operation, Place, merged
from rtobs.readiness.reading import read


class NotFoundError(Exception):
    """There is no such module."""


class BrokenError(Exception):
    """A module cannot be imported, or read: place, what was seen."""

    def __init__(self, place: str, saw: str) -> None:
        super().__init__(f"{place}: {saw}")
        self.place, self.saw = place, saw


def find(names: Iterable[str]) -> tuple[Code, list[BrokenError]]:
    """Import the modules *names*; return what they and their packages open, and what could not be imported or read.

    Raises:
        NotFoundError: there is no such module.
    """
    files: list[Path] = []
    broken: list[BrokenError] = []
    with recording() as made:
        for name in names:
            before = set(sys.modules)
            origin = _origin(name, broken)
            if origin is None:
                continue
            sys.argv = [str(origin)]
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001  also what ends a program ends the import only
                broken.append(_broken(name, error))
            files += sorted(_files(origin, set(sys.modules) - before))
        code = merged(_read(files, broken), made)
    return code, list({one.place: one for one in broken}.values())


def _origin(name: str, broken: list[BrokenError]) -> Path | None:
    """Return the file of the module *name*; None where a package above it cannot be imported."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotFoundError(name)
    try:
        spec = importlib.util.find_spec(name)
    except BaseException as error:  # noqa: BLE001  as above
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise NotFoundError(name) from None
        broken.append(_broken(name, error))
        return None
    if spec is None or spec.origin in {None, "built-in", "frozen"}:
        raise NotFoundError(name)
    return Path(str(spec.origin))


def _broken(name: str, error: BaseException) -> BrokenError:
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, SyntaxError) and error.filename:
        return BrokenError(f"{shown(error.filename)}:{error.lineno or 1}", _why(error))
    frames = traceback.extract_tb(error.__traceback__)
    machinery = {__file__, importlib.__file__, importlib.util.__file__}
    theirs = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename not in machinery]
    ours = [frame for frame in theirs if f"{os.sep}rtobs{os.sep}_" not in frame.filename]  # our rooms only complain
    place = f"{shown(ours[-1].filename)}:{ours[-1].lineno}" if ours else name
    return BrokenError(place, _why(error))


def _why(error: BaseException) -> str:
    return " ".join("".join(traceback.format_exception_only(error)[-1:]).split())[:300]


def _files(origin: Path, imported: set[str]) -> Iterator[Path]:
    """Yield the files of the module's package, and of what it imported from beside it."""
    yield origin
    packaged = (origin.parent / "__init__.py").exists()
    if packaged:
        yield from origin.parent.rglob("*.py")
    for name in imported:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and file.endswith(".py") and _beside(Path(file), origin, packaged=packaged):
            yield Path(file)


def _beside(file: Path, origin: Path, *, packaged: bool) -> bool:
    home = origin.parent
    while packaged and (home / "__init__.py").exists():  # up to where the outermost package lies
        home = home.parent
    return home in file.parents and not {"site-packages", "dist-packages", "node_modules"} & set(file.parts)


def _read(files: list[Path], broken: list[BrokenError]) -> Code:
    modules: dict[str, ModuleType] = {
        str(Path(file)): module
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and (file := getattr(module, "__file__", None))
    }
    known = {module.__name__: module for module in modules.values()}
    found = Code()
    for file in dict.fromkeys(files):
        namespace: dict[str, Any] = vars(modules[str(file)]) if str(file) in modules else {}
        try:
            code = read(file.read_text(encoding="utf-8"), shown(str(file)), namespace, known)
        except (SyntaxError, ValueError, OSError) as error:
            broken.append(BrokenError(f"{shown(str(file))}:{getattr(error, 'lineno', None) or 1}", _why(error)))
            continue
        found = Code(found.files + code.files, found.operations + code.operations, found.uses | code.uses)
    return found


def shown(file: str) -> str:
    """Return *file* as people say it: from here, if it is below."""
    try:
        return str(Path(file).resolve().relative_to(Path.cwd()))
    except ValueError:
        return file


@contextlib.contextmanager
def recording() -> Generator[list[Operation]]:
    """Note each operation that is made, by its public arguments; meanwhile telemetry is switched off.

    The functions are replaced rather than asked to report: a report would cost every message of every program.
    """
    import rtobs
    from rtobs._hop import kinds

    made: list[Operation] = []
    originals = {kind: getattr(kinds, kind) for kind in KINDS}
    path, arguments = list(sys.path), sys.argv
    environment = os.environ.get("OTEL_SDK_DISABLED")
    os.environ["OTEL_SDK_DISABLED"] = "true"
    sys.path.insert(0, str(Path.cwd()))
    for kind, original in originals.items():
        noting = _noting(kind, original, made)
        setattr(kinds, kind, noting)
        setattr(rtobs, kind, noting)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a module prints is not what was asked for
            yield made
    finally:
        for kind, original in originals.items():
            setattr(kinds, kind, original)
            setattr(rtobs, kind, original)
        sys.path[:], sys.argv = path, arguments
        if environment is None:
            del os.environ["OTEL_SDK_DISABLED"]
        else:
            os.environ["OTEL_SDK_DISABLED"] = environment


def _noting(kind: str, original: Callable[..., Any], made: list[Operation]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    def note(*args: Any, **kwargs: Any) -> Any:
        operation = original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        frame = sys._getframe(1)  # noqa: SLF001  the only way to the caller's line
        place = Place(shown(frame.f_code.co_filename), frame.f_lineno, frame.f_lineno)
        words = {name: value for name, value in given.items() if isinstance(value, str)}
        first = next(iter(signature.parameters))
        made.append(
            Operation(
                kind,
                words.get(first, ""),
                place,
                words.get("channel", "") if kind == "publish" else "",
                words.get("provider", ""),
            )
        )
        return operation

    return note
