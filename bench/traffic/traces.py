"""The original trace files, read as requests, so that the real thing can be replayed.

`read(paths)` tells the format from the first line: Azure LLM inference 2023 (CSV), requests drawn from ServeGen (CSV),
Vidur's length files (CSV, no times), Mooncake (JSONL) and WEKA coding-agent sessions (JSON); the last two, which know
shared prefixes, stand in `trace_blocks.py`. Files may be compressed (.gz, .xz). Times count from the first request. A
length of 0 counts as 1: an engine always reads and writes one token.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from bench.config import ConfigError
from bench.traffic.records import Planned
from bench.traffic.trace_blocks import mooncake, weka

FORMATS = "Azure 2023, ServeGen or Vidur CSV, Mooncake JSONL, or WEKA session JSON"
Row = tuple[float | None, int, int, int]  # seconds, input and output tokens, client


def read(paths: Sequence[Path], seed: int = 0) -> list[Planned]:
    """The requests of one trace, numbered in the order of the file; several files only of WEKA sessions.

    A folder stands for the JSON files in it. `seed`: of where requests fall inside Mooncake's rounded stamps.
    Raises ConfigError, one line naming file, line and what was expected.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"{', '.join(map(str, paths))}: no trace file; expected {FORMATS}")
    with opened(files[0]) as stream:
        head = _first_line(files[0], stream)
    if head.startswith("{"):
        sessions = '"requests"' in head[:4096] or '"hash_ids"' not in head
        if sessions:
            return weka(value for file in files for value in _documents(file))
        _single(files)
        return mooncake(_documents(files[0]), seed)
    for columns, parse in TABLES.items():
        if head.strip().split(",")[: len(columns)] == list(columns):
            _single(files)
            return _table(files[0], columns, parse)
    raise ConfigError(f"{files[0]}: line 1: expected {FORMATS}, got {head[:60]!r}")


def opened(path: Path) -> TextIO:
    """The file as text, decompressed by its ending."""
    opener: Callable[..., TextIO] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)  # type: ignore[assignment]
    try:
        return opener(path, "rt", encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _first_line(path: Path, stream: TextIO) -> str:
    try:
        return stream.readline().lstrip("\ufeff").rstrip("\r\n")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: line 1: expected {FORMATS}; {error}") from None


def _single(files: Sequence[Path]) -> None:
    if len(files) > 1:
        raise ConfigError(f"{files[1]}: expected one file of this format; only WEKA sessions come in several")


def _documents(path: Path) -> Iterator[tuple[str, object]]:
    """(where, value) of each JSON document: one a line, or one that fills the file."""
    number = 0
    try:
        with opened(path) as stream:
            for number, line in enumerate(stream, 1):
                if number == 1 and line.strip() == "{":
                    yield f"{path}: line 1", json.loads(line + stream.read())
                    return
                if line.strip():
                    yield f"{path}: line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {number + error.lineno - 1}: expected JSON: {error.msg}") from None
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: line {number + 1}: cannot be read: {error}") from None


# ---------------------------------------------------------------- tables


def _azure(cells: list[str]) -> Row:
    # the stamps have seven decimals, which Python reads six of
    at = datetime.fromisoformat(cells[0][:26] + "+00:00").timestamp()
    return at, int(cells[1]), int(cells[2]), 0


def _servegen(cells: list[str]) -> Row:
    return float(cells[0]), int(cells[2]), int(cells[3]), int(cells[1])


def _vidur(cells: list[str]) -> Row:
    return None, int(float(cells[0])), int(float(cells[1])), 0


TABLES: dict[tuple[str, ...], Callable[[list[str]], Row]] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
    ("t_s", "client_id", "input_tokens", "output_tokens"): _servegen,
    ("num_prefill_tokens", "num_decode_tokens"): _vidur,
}


def _table(path: Path, columns: tuple[str, ...], parse: Callable[[list[str]], Row]) -> list[Planned]:
    rows: list[Row] = []
    number = 1
    try:
        with opened(path) as stream:
            lines = csv.reader(stream)
            next(lines)
            for cells in lines:
                number = lines.line_num
                rows.append(_checked(parse(cells), rows))
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{path}: line {number}: expected {', '.join(columns)}: {error}") from None
    except (OSError, EOFError, lzma.LZMAError, csv.Error) as error:
        raise ConfigError(f"{path}: line {number + 1}: cannot be read: {error}") from None
    if not rows:
        raise ConfigError(f"{path}: line 2: expected a request, got the end of the file")
    begin = rows[0][0] or 0.0
    return [
        Planned(
            number=number,
            input_tokens=max(1, inputs),
            output_tokens=max(1, outputs),
            arrival_s=None if at is None else at - begin,
            session=number,
        )
        for number, (at, inputs, outputs, _) in enumerate(rows)
    ]


def _checked(row: Row, before: list[Row]) -> Row:
    at, inputs, outputs, _ = row
    if inputs < 0 or outputs < 0:
        raise ValueError(f"token counts of 0 or more, got {inputs} and {outputs}")
    if at is not None and before and at < (before[-1][0] or 0.0):
        raise ValueError("times that rise, got an earlier one than the line before")
    return row
