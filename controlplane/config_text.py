# SPDX-License-Identifier: Apache-2.0
"""YAML as a configuration may hold it: bounded, each key once, and every refusal with its line."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml

FILE_MOST = 16 << 20
"""Bytes; ten thousand endpoints take one or two MB."""
VALUES_MOST = 1 << 20
"""With every alias written out: a few hundred bytes of aliases to aliases can stand for billions."""
SHOWN_MOST = 40

_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"


class TextError(ValueError):
    """One line, with the line's number where there is one."""


def read(path: Path) -> str:
    """The text of a regular file. Raises TextError."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe that nobody writes to never ends
            raise TextError("is no regular file")
        with path.open("rb") as file:
            data = file.read(FILE_MOST + 1)
        if len(data) > FILE_MOST:
            raise TextError(f"is larger than {FILE_MOST >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise TextError(f"can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TextError("can't be read: not UTF-8 text") from None


def parse(text: str) -> Any:
    """What YAML says. Raises TextError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TextError(f"line {line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise TextError(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise TextError("not YAML: nested too deep") from None


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _measure(node, {}, set())
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A scalar that its tag does not fit raises whatever Python's own parsers do."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, TextError, RecursionError):
            raise
        except Exception:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            shown = node.value if len(node.value) <= SHOWN_MOST else node.value[:SHOWN_MOST] + "..."
            raise TextError(f"line {_line(node)}: {shown!r} can't be read as {kind}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """YAML lets a later key replace an earlier one silently: here it is an error."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                twice = key in seen
                seen.add(key)
            except TypeError:
                continue
            if twice:
                raise TextError(f"line {_line(key_node)}: {key!r} stands twice; one of each key is allowed")
        return super().construct_mapping(node, deep)


# Nothing of ours is one of these, and pydantic would take them for texts and lists.
_Loader.yaml_constructors = {
    tag: made
    for tag, made in yaml.SafeLoader.yaml_constructors.items()
    if str(tag).rpartition(":")[2] not in ("binary", "set", "omap", "pairs")
}
# Nothing of ours is a date: 2024-01-01 is a text. Numbers are what people take for one, as in YAML 1.2:
# 1e3 is, while 0100 (octal) and 1:30 (base 60) are texts.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_TIMESTAMP, _INTEGER, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INTEGER, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _measure(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Values below a node, aliases written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise TextError(f"line {_line(node)}: an alias holds itself")
    above.add(id(node))
    pairs = isinstance(node, yaml.MappingNode)
    children = [one for pair in node.value for one in pair] if pairs else node.value
    total = 1 + sum(_measure(child, known, above) for child in children)
    if total > VALUES_MOST:
        raise TextError(f"line {_line(node)}: more than {VALUES_MOST} values with all aliases written out")
    above.remove(id(node))
    known[id(node)] = total
    return total
