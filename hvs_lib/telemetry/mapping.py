"""Exports as they come: a map in YAML says which of a file's columns is which of ours.

docs/own-data.md shows one from start to end.
"""

import datetime
import difflib
import math
import re
import zoneinfo
from collections import Counter
from collections.abc import Callable, Collection, Iterator
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
_LABEL_KEYS = ("runaway", "label_from_min", "label_until_s")
_OPTIONS = ("missing", "repeated", *_LABEL_KEYS, "cells_in_series")
_KEYS = {col.TIMESTAMP: _CLOCK_KEYS, col.PNR: ("column",)}  # of the others: _SOURCE_KEYS
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
    label_from_min: float = col.LABEL_FROM_MIN  # before the runaway
    label_until_s: float = col.LABEL_UNTIL_S  # before the point of no return
    cells_in_series: int | None = None


def named(wanted: str, names: Collection[str]) -> list[re.Match]:
    """Find the columns that an entry names; the groups of a match are what `*` stands for."""
    if wanted in names:
        return [re.fullmatch(re.escape(wanted), wanted)]
    pattern = re.compile("(.+)".join(map(re.escape, wanted.split("*"))))
    return [match for name in names if (match := pattern.fullmatch(name))]


# ---- reading the map -------------------------------------------------------------------------


def load_map(path: str | Path) -> ColumnMap:
    """Load a map and refuse it, with a DataError, with every problem named."""
    path, problems = Path(path), []
    title = f"The map {path} cannot be used"
    try:
        text = path.read_text(encoding="utf-8")
        written = yaml.safe_load(text)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        problem = f"The map must be a readable YAML file, got: {reason}; `hvs map FILE` writes one."
        raise DataError(title, [problem]) from error
    if not isinstance(written, dict):
        problem = "The map must have lines such as `Module_Voltage_V: COLUMN`, got none; add them."
        raise DataError(title, [problem])
    written = {str(key): value for key, value in written.items()}
    twice = [key for key, n in Counter(re.findall(r"^(\w+):", text, re.MULTILINE)).items() if n > 1]
    problems += [f"{key} must stand once in the map, got it twice; drop one." for key in twice]
    options = {key: written.pop(key) for key in _OPTIONS if key in written}
    options = _checked(options, "The map", _OPTIONS, problems)
    clock, sources = Clock((col.TIMESTAMP,)), {}
    for key, entry in written.items():
        if key not in col.TELEMETRY:
            problems.append(_unknown("The map", key, (*col.TELEMETRY, *_OPTIONS)))
            continue
        entry = {str(k): v for k, v in entry.items()} if isinstance(entry, dict) else entry
        entry = entry if isinstance(entry, dict) else {"column": entry}
        hows = ("column",) if key in _KEYS else HOW
        known = _KEYS.get(key, _SOURCE_KEYS)
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
        elif key in TEXTS and how[0] not in ("column", "constant"):
            problems.append(f"{key} is text, got {how[0]}; write a column or a constant.")
        elif how[0] == "constant" and len(columns) > 1:
            problems.append(f"{key} must be one constant, got {columns}; keep one.")
        else:
            sources[key] = Source(how[0], tuple(map(str, columns)), **fields)
    if isinstance(options.get("runaway"), float) and not clock.elapsed:
        problems.append("runaway must be a time or a column, got a number; or add `elapsed`.")
    for name in (col.LABEL, col.PNR):
        if "runaway" in options and name in sources:
            problems.append(f"{name} must not stand beside `runaway`, which makes it; drop one.")
    if "label_from_min" in options and "runaway" not in options:
        problems.append("label_from_min must stand beside `runaway`, got none; drop it.")
    made = ColumnMap(clock, sources, **options)
    if made.runaway is not None and made.label_until_s >= made.label_from_min * 60:
        found = f"{made.label_until_s:g} s and {made.label_from_min:g} min"
        problems.append(f"label_until_s must be shorter than label_from_min, got {found}.")
    if problems:
        raise DataError(title, problems)
    return made


def _clock_problems(clock: Clock) -> Iterator[str]:
    said = [key for key in ("format", "elapsed", "epoch") if getattr(clock, key)]
    if len(said) > 1:
        yield f"Timestamp must have one of format, elapsed, epoch, got {', '.join(said)}; keep one."
    if len(clock.columns) > 1 and (clock.elapsed or clock.epoch):
        yield f"Timestamp must be one column of numbers, got {', '.join(clock.columns)}; name one."
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
    number = float(value)  # YAML takes 1e-3 for text
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(value: object) -> float:
    if not _number(value) > 0:
        raise ValueError
    return float(value)


def _not_negative(value: object) -> float:
    if _number(value) < 0:
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


def _count(value: object) -> int:
    if not isinstance(value, int) or not _positive(value):
        raise ValueError
    return value


def _format(value: object) -> str:
    pd.to_datetime(pd.Series(["tried"]), format=value, errors="coerce")  # refuses a bad one
    return value


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
    "format": (_format, "text such as '%d.%m.%Y %H:%M:%S'"),
    "zone": (_zone, "a time zone such as Europe/Berlin"),
    "elapsed": _one_of(*SECONDS),
    "epoch": _one_of("s", "ms", "us", "ns"),
    "start": (pd.Timestamp, "a time such as 2025-06-01T12:00:00"),
    "repeated": _one_of("first", "last", "mean"),
    "runaway": (_runaway, "a column, a time or a number"),
    "label_from_min": (_positive, "a number of minutes above 0"),
    "label_until_s": (_not_negative, "a number of seconds, 0 or more"),
    "cells_in_series": (_count, "a whole number above 0"),
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
