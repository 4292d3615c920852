"""Exports as they come: a map in YAML says which of a file's columns is which of ours.

docs/own-data.md shows one from start to end.
"""

import datetime
import difflib
import re
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from hvs_lib import columns as col
from hvs_lib.telemetry.conversion import TEXTS
from hvs_lib.telemetry.files import DataError

HOW = ("column", "each", "mean", "max", "sum", "constant")
_SOURCE_KEYS = (*HOW, "factor", "offset", "missing", "time", "within")
_CLOCK_KEYS = ("column", "format", "zone", "elapsed", "epoch", "start")
_OPTIONS = ("missing", "repeated", "runaway", "cells_in_series")
SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Source:
    """What one of our columns is made of: theirs, where `*` is any text, or a constant."""

    how: str
    columns: tuple[str, ...]
    factor: float = 1.0
    offset: float = 0.0
    missing: tuple = ()
    time: str = ""  # their column with the clock of these readings
    within: float = 60.0  # oldest reading of another clock to take [s]


@dataclass(frozen=True)
class Clock:
    """How the times are written; `columns` are joined by a space."""

    columns: tuple[str, ...]
    format: str = ""
    zone: str = ""
    elapsed: str = ""  # unit of numbers since `start`
    epoch: str = ""  # unit of numbers since 1970, UTC
    start: pd.Timestamp | None = None


@dataclass(frozen=True)
class ColumnMap:
    """A map as read from its file."""

    clock: Clock
    sources: dict[str, Source]
    missing: tuple = ()
    repeated: str = ""  # which of the rows of one module and time to keep
    runaway: object = None  # elapsed time, time, or column that is true from then on
    cells_in_series: int | None = None


def named(wanted: str, names: Iterable[str]) -> list[re.Match]:
    """Find the columns that an entry names; the groups of a match are what `*` stands for."""
    pattern = re.compile("(.+)".join(map(re.escape, wanted.split("*"))))
    return [match for name in names if (match := pattern.fullmatch(name))]


# ---- reading the map -------------------------------------------------------------------------


def load_map(path: str | Path) -> ColumnMap:
    """Load a map and refuse it, with a DataError, with every problem named."""
    path, problems = Path(path), []
    title = f"The map {path} cannot be used"
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        problem = f"The map must be a readable YAML file, got: {reason}; `hvs map FILE` writes one."
        raise DataError(title, [problem]) from error
    if not isinstance(written, dict):
        problem = "The map must have lines such as `Module_Voltage_V: COLUMN`, got none; add them."
        raise DataError(title, [problem])
    written = {str(key): value for key, value in written.items()}
    options = {key: written.pop(key) for key in _OPTIONS if key in written}
    options = _checked(options, "The map", _OPTIONS, problems)
    clock, sources = Clock((col.TIMESTAMP,)), {}
    for key, entry in written.items():
        if key not in col.TELEMETRY:
            problems.append(_unknown("The map", key, (*col.TELEMETRY, *_OPTIONS)))
            continue
        entry = {str(k): v for k, v in entry.items()} if isinstance(entry, dict) else entry
        entry = entry if isinstance(entry, dict) else {"column": entry}
        hows = ("column",) if key == col.TIMESTAMP else HOW
        known = _CLOCK_KEYS if key == col.TIMESTAMP else _SOURCE_KEYS
        fields = _checked({k: v for k, v in entry.items() if k not in hows}, key, known, problems)
        how = [each for each in hows if each in entry]
        columns = entry[how[0]] if len(how) == 1 else None
        columns = columns if isinstance(columns, list) else [columns]
        if not columns or any(isinstance(each, dict | list | None) for each in columns):
            cure = f"write `{key}: COLUMN`" + (" or {sum: [A, B]}" if hows is HOW else "")
            problems.append(f"{key} must say one of {', '.join(hows)}, got {entry}; {cure}.")
        elif key == col.TIMESTAMP:
            clock = Clock(tuple(map(str, columns)), **fields)
            problems += _clock_problems(clock)
        elif how[0] != "column" and key in TEXTS and how[0] != "constant":
            problems.append(f"{key} is text, got {how[0]}; write a column or a constant.")
        else:
            sources[key] = Source(how[0], tuple(map(str, columns)), **fields)
    if isinstance(options.get("runaway"), float) and not clock.elapsed:
        problems.append("runaway must be a time or a column, got a number; or add `elapsed`.")
    if "runaway" in options and col.LABEL in sources:
        problems.append(f"{col.LABEL} must not stand beside `runaway`, which makes it; drop one.")
    if problems:
        raise DataError(title, problems)
    return ColumnMap(clock, sources, **options)


def _clock_problems(clock: Clock) -> Iterator[str]:
    said = [key for key in ("format", "elapsed", "epoch") if getattr(clock, key)]
    if len(said) > 1:
        yield f"Timestamp must have one of format, elapsed, epoch, got {', '.join(said)}; keep one."
    if clock.elapsed and clock.start is None:
        yield (
            "Timestamp must have a `start` beside `elapsed`, got none; add the time at 0, such as"
            " `start: 2025-06-01T12:00:00`, any day if it is unknown."
        )
    if clock.start is not None and not clock.elapsed:
        yield "Timestamp must have `elapsed` beside `start`, got none; add its unit, `elapsed: s`."


def _number(value: object) -> float:
    if isinstance(value, bool | None):
        raise ValueError
    return float(value)  # YAML takes 1e-3 for text


def _positive(value: object) -> float:
    if not _number(value) > 0:
        raise ValueError
    return float(value)


def _factor(value: object) -> float:
    if _number(value) == 0:
        raise ValueError
    return float(value)


def _scalars(value: object) -> tuple:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict | list | None) for each in values):
        raise ValueError
    return tuple(values)


def _zone(value: object) -> str:
    return zoneinfo.ZoneInfo(value).key


def _one_of(*words: str) -> tuple[Callable, str]:
    return lambda value: {word: word for word in words}[value], f"one of {', '.join(words)}"


def _runaway(value: object) -> object:
    if isinstance(value, datetime.date):
        return pd.Timestamp(value)
    return value if isinstance(value, str) else _number(value)


_RULES = {
    "factor": (_factor, "a number other than 0"),
    "offset": (_number, "a number"),
    "missing": (_scalars, "a value or a list of values"),
    "time": (str, "a column"),
    "within": (_positive, "a number of seconds above 0"),
    "format": (str, "text such as '%d.%m.%Y %H:%M:%S'"),
    "zone": (_zone, "a time zone such as Europe/Berlin"),
    "elapsed": _one_of(*SECONDS),
    "epoch": _one_of("s", "ms", "us", "ns"),
    "start": (pd.Timestamp, "a time such as 2025-06-01T12:00:00"),
    "repeated": _one_of("first", "last", "mean"),
    "runaway": (_runaway, "a column, a time or a number"),
    "cells_in_series": (lambda value: int(_positive(value)), "a number above 0"),
}


def _checked(entry: dict, place: str, known: tuple[str, ...], problems: list[str]) -> dict:
    """Return the entries read by their rules; note the others as problems."""
    fields = {}
    for key, value in entry.items():
        if key not in known:
            problems.append(_unknown(place, key, known))
            continue
        read, rule = _RULES[key]
        try:
            fields[key] = read(value)
        except (ValueError, KeyError, TypeError, OSError):
            problems.append(f"{key} of {place} must be {rule}, got {value!r}; correct it.")
    return fields


def _unknown(place: str, key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}."
    return f"{place} has an unknown entry {key!r}: {cure}"
