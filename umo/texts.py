"""Text that people and other tools wrote, refused in one line where it cannot be what it will be used as.

Files are UTF-8, with or without a byte-order mark. YAML and JSON are held to what they can say without doubt: no key
twice, no number that is none, nothing nested without end, no text that cannot be printed or stored.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from umo.errors import BadInput

SHOWN = 80  # characters of a text in a message
LONGEST_NAME = 255  # bytes of a file's or a folder's name, on every file system in use
MOST_DIGITS = 4_300  # of a whole number; at more Python stops
# What no text may hold: controls but tab and line ends; halves of surrogate pairs, which no file can store.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# And what no name may hold: it would break a line, or turn the terminal's direction.
_UNFIT_IN_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_KINDS = {"int": "a number", "float": "a number", "bool": "yes or no", "timestamp": "a date", "null": "nothing"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by far the quicker on what is nested without end
_TAGS = {*_KINDS, "str", "map", "seq", "merge"}


def printable(name: str) -> str:
    """A name as one line of text: what cannot be printed (also bytes that are not UTF-8) is written out."""
    if name.isprintable():
        return name
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def one_line(text: str) -> str:
    """A message as one printable line."""
    return printable(" ".join(text.splitlines()))


def fault(text: str, *, name: bool = False) -> str | None:
    """Why a text cannot be printed and stored, or None.

    Args:
        name: it is also to stand in one line: a path, a person, a column of a table.
    """
    found = (_UNFIT_IN_NAME if name else _UNFIT).search(text)
    if found is None:
        return None
    shown, char = printable(text), printable(found[0])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    if "\ud800" <= found[0] <= "\udfff":
        return f"'{shown}' is not Unicode: {char} is half a character, or a byte that is not UTF-8"
    return f"'{shown}' holds the control character {char}"


def path_fault(path: str) -> str | None:
    """Why nothing can be opened or told of under a path, or None."""
    if bad := fault(path, name=True):
        return f"{bad} (rename the file)"
    longest = max(path.split("/"), key=lambda part: len(part.encode()))
    if len(longest.encode()) > LONGEST_NAME:
        return (
            f"a name of {len(longest.encode())} bytes ('{longest[:SHOWN]}…'), and no file has more than {LONGEST_NAME}"
        )
    return None


def read_text(path: Path) -> str:
    """A file's text without a byte-order mark, its line ends as they are.

    Raises:
        BadInput: not UTF-8; names the line.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if coding := _MARKS.get(data[:2]):
        raise BadInput(f"{path}: is {coding}, not UTF-8: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise BadInput(f"{path}:{line}: is not text in UTF-8 (byte 0x{byte:02x}): save it as UTF-8") from error


def parse_json(text: str) -> Any:
    """What a JSON text says, NaN and Infinity too.

    Raises:
        ValueError: it is not JSON, or has a key twice; the message is the reason.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not JSON ({error.msg} at {where})") from error
    except RecursionError as error:
        raise ValueError("not JSON of ours (nested without end)") from error


def read_json(path: Path) -> Any:
    """What a JSON file says, whose numbers are to be worked with.

    Raises:
        BadInput: not UTF-8, not JSON, a key is there twice, or a number is not finite.
        OSError: it cannot be read.
    """
    try:
        return _finite(parse_json(read_text(path)))
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {max(keys, key=keys.count)!r} is there twice: remove one")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too large: shorten it")
    return int(digits)


def _finite(found: Any) -> Any:
    for one in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        _finite(one)
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{found} is no number to work with: write one")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file says: mappings with keys that are texts, lists, and plain values; None for an empty file.

    Raises:
        BadInput: not UTF-8, not YAML, a key that is no text or is there twice, or a text that cannot be stored; names
            the line.
        OSError: it cannot be read.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """As `read_yaml`, of a text; `where` is named in the error."""
    try:
        loader = _LOADER(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, where, loader, (), set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}" if mark else ""
        raise BadInput(f"{where}{at}: not YAML ({error.problem or error.context}): correct the line") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(
            f"{where}:{line}: holds the control character {printable(chr(error.character))}: remove it"
        ) from error
    except RecursionError as error:
        raise BadInput(f"{where}: not YAML of ours (nested without end)") from error


def line_of(path: Path, keys: Sequence[str | int]) -> int:
    """The line of a YAML file in which the value at these keys stands, or the last of them that is there."""
    node = yaml.compose(read_text(path), _LOADER)
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key],) * 2
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _check(node: yaml.Node, where: str, loader: yaml.SafeLoader, above: tuple[yaml.Node, ...], done: set[int]) -> None:
    """Refuse what YAML allows and nobody means. What aliases repeat is looked at once."""
    at = f"{where}:{node.start_mark.line + 1}"
    if node in above:
        raise BadInput(f"{at}: an alias to what it stands in: write it out")
    if id(node) in done:
        return
    if node.tag.rpartition(":")[2] not in _TAGS:
        raise BadInput(f"{at}: the tag {node.tag} means nothing here: remove it")
    if isinstance(node, yaml.ScalarNode):
        if bad := fault(node.value):
            raise BadInput(f"{at}: {bad}: correct it")
        try:
            value = None if node.tag.endswith(":merge") else loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # the 30th of February
            raise BadInput(
                f"{at}: {node.value[:SHOWN]} cannot be read as {_said(node)}: put it in quotes, if it is text"
            ) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{at}: {node.value} is no number to work with: write one")
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
    if isinstance(node, yaml.CollectionNode):
        for one in node.value:
            for part in one if isinstance(one, tuple) else (one,):
                _check(part, where, loader, (*above, node), done)
    done.add(id(node))


def _said(node: yaml.Node) -> str:
    """What YAML takes a value for, in words."""
    return _KINDS.get(node.tag.rpartition(":")[2], "text")


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        kind = key.tag.rpartition(":")[2]
        if kind not in ("str", "merge"):
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{where}:{line}: a key is no text: write a plain name")
            said = f"the key {key.value} means {_said(key)} to YAML, and no text"
            raise BadInput(f'{where}:{line}: {said}: put it in quotes, "{key.value}"')
        if key.value in first and kind == "str":
            raise BadInput(f"{where}:{line}: the key '{key.value}' stands in line {first[key.value]} too: remove one")
        first[key.value] = line
