"""A foreign result file, opened and read strictly: whatever is wrong with it is one `Refused` line, exit code 2.

A `Document` is the file's bytes, its text and the JSON values in it: one value, or several one after another (JSON
lines, appended results). A `Record` is one JSON object with its place in the file; its getters answer None for what
is absent, null, NaN or infinite (missing is blank) and refuse a value of another type, naming file, key and
expectation. Nothing that any of the formats measures is negative, so no number is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import ConfigError

LONGEST = 1000  # characters of a name; more is no name
_SPACE = re.compile(r"\s*")


class Refused(ConfigError):
    """A file that cannot be imported: one line naming file, key and expectation."""


@dataclass(frozen=True)
class Record:
    """One JSON object; `where` names it: "file: [3].metrics"."""

    where: str
    fields: Mapping[str, Any]

    def refused(self, name: str, expected: str) -> Refused:
        """The error that `name` is not `expected`."""
        shown = repr(self.fields[name]) if name in self.fields else "nothing"
        return Refused(f"{self._at(name)}: expected {expected}, got {shown if len(shown) < 60 else shown[:57] + '...'}")

    def _at(self, name: str) -> str:
        return f"{self.where}{'' if self.where.endswith(': ') else '.'}{name}"

    def number(self, name: str, scale: float = 1.0) -> float | None:
        """`scale` times the number."""
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refused(name, "a number")
        try:
            made = float(value) * scale
        except OverflowError:
            raise self.refused(name, "a number of this world") from None
        if not math.isfinite(made):
            return None
        if made < 0:
            raise self.refused(name, "a number of at least 0")
        return made

    def positive(self, name: str, scale: float = 1.0) -> float:
        """The same, where there must be one above 0."""
        made = self.number(name, scale)
        if not made:
            raise self.refused(name, "a positive number")
        return made

    def count(self, name: str) -> int | None:
        """A whole number."""
        made = self.number(name)
        if made is not None and made != int(made):
            raise self.refused(name, "a whole number")
        return None if made is None else int(made)

    def text(self, name: str) -> str | None:
        """Words; "" is None."""
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > LONGEST:
            raise self.refused(name, f"text of at most {LONGEST} characters")
        return value.encode("utf-8", "replace").decode().replace("\x00", " ")  # a lone surrogate is no text

    def truth(self, name: str) -> bool | None:
        """true or false, or these words."""
        value = self.fields.get(name)
        value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, "true or false")
        return value

    def part(self, name: str) -> Record:
        """An object inside; an empty one where it is absent or null."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refused(name, "an object")
        return Record(self._at(name), value or {})

    def parts(self, name: str) -> list[Record]:
        """A list of objects inside, which must be there."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refused(name, "a list of objects")
        return [Record(f"{self._at(name)}[{number}]", item) for number, item in enumerate(value)]


@dataclass(frozen=True)
class Document:
    """A file: its path, SHA-256, text, and the JSON values in it (none: it is no JSON)."""

    path: Path
    sha256: str
    text: str
    values: tuple[Any, ...]

    @classmethod
    def of(cls, path: Path) -> Document:
        """Read a file, compressed with gzip or not. Raises Refused."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Refused(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            text = plain.decode("utf-8-sig")
        except (OSError, EOFError, zlib.error) as error:
            raise Refused(f"{path}: not a whole gzip file: {error}") from None
        except UnicodeDecodeError as error:
            raise Refused(f"{path}: byte {error.start}: not UTF-8: expected a text or JSON file") from None
        if not text.strip():
            raise Refused(f"{path}: empty; expected a result file")
        values = _values(path, text) if text.lstrip()[0] in "{[" else ()
        return cls(path, hashlib.sha256(data).hexdigest(), text, values)

    @property
    def object(self) -> dict[str, Any]:
        """The one JSON object the file is; an empty one where it is something else."""
        value = self.values[0] if len(self.values) == 1 else None
        return value if isinstance(value, dict) else {}

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects the file lists, in one array or one after another; none where it holds anything else."""
        value = self.values[0] if len(self.values) == 1 else None
        found = value if isinstance(value, list) else list(self.values)
        return found if all(isinstance(item, dict) for item in found) else []

    @property
    def record(self) -> Record:
        """`object` with its place."""
        return Record(f"{self.path}: ", self.object)

    @property
    def records(self) -> list[Record]:
        """`objects` with their places."""
        single = len(self.objects) == 1 and bool(self.object)
        return [
            Record(f"{self.path}: " if single else f"{self.path}: [{number}]", item)
            for number, item in enumerate(self.objects)
        ]


def _values(path: Path, text: str) -> tuple[Any, ...]:
    """Every JSON value of the text, one after another."""
    decoder, values, at = json.JSONDecoder(), [], _SPACE.match(text)
    place = at.end() if at else 0
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            after = _SPACE.match(text, place)
            place = after.end() if after else place
    except json.JSONDecodeError as error:
        hint = "cut off? " if len(text) - error.pos < 200 or "Unterminated" in error.msg else ""
        at_line = f"line {error.lineno} column {error.colno}"
        raise Refused(f"{path}: {at_line}: not valid JSON ({error.msg}); {hint}expected a whole file") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: not valid JSON: {error}") from None
    return tuple(values)
