"""Generated text: YAML that people can read, the same to the byte each time."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  nobody should have to look up what an alias stands for
        """Write every value where it is used."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    node: yaml.ScalarNode = dumper.represent_scalar(  # pyright: ignore[reportUnknownMemberType]
        "tag:yaml.org,2002:str", value, style=style
    )
    return node


_Dumper.add_representer(str, _text)


def to_yaml(data: Any, *comment: str) -> str:
    """Return *data* as YAML below the lines of *comment*."""
    body: str = yaml.dump(  # pyright: ignore[reportUnknownMemberType]  a parameter of its stubs has no type
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000
    )
    return "".join(f"# {line}\n" for line in comment) + body
