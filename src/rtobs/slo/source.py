"""Reads a declaration from a YAML, TOML or JSON file, with the line of every value.

Knows files and formats; must not know what a declaration may say.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Final

from rtobs.errors import ConfigError
from rtobs.slo import locate
from rtobs.slo.mistakes import DeclarationError, Mistake, Path, Source

if TYPE_CHECKING:
    import yaml

INSTALL: Final = 'pip install "rtobs[slo]"'
_MOST_VALUES: Final = 20_000
_DEEPEST: Final = 100
_ENDINGS: Final = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".json": "JSON"}


def read(path: str | File) -> Source:
    """Return what the file at *path* says.

    Raises:
        DeclarationError: it cannot be read, or is not valid YAML, TOML or JSON.
        ConfigError: it is YAML and pyyaml is not installed.
    """
    file = File(path)
    form = _ENDINGS.get(file.suffix.lower())
    if form is None:
        raise _mistake(
            str(file), f"saw a name that ends in {file.suffix or 'nothing'}", "end it in .yaml, .toml or .json"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise _mistake(str(file), f"it cannot be read ({reason})", "give the path of a declaration") from None
    except UnicodeDecodeError:
        raise _mistake(str(file), "saw bytes that are not UTF-8", "save it as UTF-8") from None
    return parse(text, form, str(file))


def parse(text: str, form: str, file: str) -> Source:
    """Return what *text* says, which is YAML, TOML or JSON by *form* and came from *file*."""
    try:
        if form == "YAML":
            return _yaml(text, file)
        if form == "TOML":
            return Source(file, tomllib.loads(text), *locate.in_toml(text))
        return Source(file, json.loads(text), *locate.in_json(text))
    except json.JSONDecodeError as error:
        raise _mistake(f"{file}:{error.lineno}", f"this is not JSON ({error.msg})", "correct it there") from None
    except tomllib.TOMLDecodeError as error:  # its message says the line
        raise _mistake(file, f"this is not TOML ({error})", "correct it there") from None
    except RecursionError:
        raise _mistake(file, "saw tables inside tables without end", "write each value once") from None
    except DeclarationError:
        raise
    except ValueError as error:  # a day that does not exist, a number of thousands of digits
        why = str(error).partition(";")[0]
        raise _mistake(file, f"saw a value that is none ({why})", "correct it, or put it in quotes") from None


def _mistake(place: str, saw: str, do: str) -> DeclarationError:
    return DeclarationError((Mistake(place, saw, do),))


def _yaml(text: str, file: str) -> Source:
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"{file} is YAML, and pyyaml, which reads it, is not installed. Run: {INSTALL}, or write TOML or JSON."
        ) from None
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        source = Source(file, None)
        if node is not None:
            source.lines, source.repeated = _lines(node, file)
            source.data = loader.construct_document(node)  # pyright: ignore[reportUnknownMemberType]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _mistake(f"{file}:{line}", f"this is not YAML ({error.problem})", "correct it there") from None
    except yaml.YAMLError as error:
        raise _mistake(file, f"this is not YAML ({' '.join(str(error).split())})", "correct it there") from None
    finally:
        if loader is not None:
            loader.dispose()
    return source


def _lines(root: yaml.Node, file: str) -> tuple[dict[Path, int], tuple[Path, ...]]:
    """Return where values stand and which keys are repeated; an alias counts as what it stands for."""
    import yaml

    lines: dict[Path, int] = {(): root.start_mark.line + 1}
    repeated: list[Path] = []
    waiting: list[tuple[Path, Any]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if len(lines) > _MOST_VALUES:
            raise _mistake(file, f"saw more than {_MOST_VALUES} values", "write each value once, without aliases")
        if len(path) > _DEEPEST:
            raise RecursionError
        inner: list[tuple[Any, Any, Any]] = []
        if isinstance(node, yaml.MappingNode):
            inner = [(key, str(key.value), value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
        elif isinstance(node, yaml.SequenceNode):
            inner = [(value, index, value) for index, value in enumerate(node.value)]
        for marked, part, value in inner:
            if (*path, part) in lines:
                repeated.append((*path, part))
            lines[*path, part] = marked.start_mark.line + 1
            waiting.append(((*path, part), value))
    return lines, tuple(repeated)
