"""Maps, in YAML, from a file's columns to ours, see docs/own-data.md."""

import datetime
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
from hvs_lib.project import did_you_mean
from hvs_lib.telemetry.conversion import TEXTS, is_time
from hvs_lib.telemetry.files import DataError

_HOWS = ("column", "each", "mean", "max", "sum", "constant")
_HOWS_OF = dict.fromkeys((col.TIMESTAMP, col.PNR), _HOWS[:1]) | dict.fromkeys(
    TEXTS, ("column", "constant")
)
_OF_SOURCE = ("factor", "offset", "missing", "time", "within")
_OF_CLOCK = ("format", "zone", "elapsed", "epoch", "start")
_OPTIONS = ("missing", "repeated", "runaway", "label_from_min", "label_until_s", "cells_in_series")


@dataclass(frozen=True)
class Source:
    """What one of our columns is made of: the file's, where `*` is any text, or a constant."""

    how: str
    columns: tuple[str, ...]
    factor: float = 1.0
    offset: float = 0.0
    missing: tuple = ()
    time: str = ""  # the file's column with the clock of these readings
    within: float = 60.0  # maximum age of a reading from another clock [s]


@dataclass(frozen=True)
class Clock:
    """How the times are written; `columns` are joined by a space."""

    columns: tuple[str, ...]
    format: str = ""
    zone: str = ""
    elapsed: str = ""  # unit of numbers since `start`
    epoch: str = ""  # unit of numbers since 1970, UTC
    start: pd.Timestamp | None = None

    @property
    def zero(self) -> pd.Timestamp:
        """Return the time that numbers count from, in UTC."""
        return self.utc(self.start) if self.elapsed else pd.Timestamp(0)

    def utc(self, time: pd.Timestamp) -> pd.Timestamp:
        """Return a time of the map in UTC, without a zone."""
        zoned = time if time.tz else time.tz_localize(self.zone or "UTC")
        return zoned.tz_convert(None).as_unit("us")


@dataclass(frozen=True)
class ColumnMap:
    """A map as read from its file."""

    clock: Clock
    sources: dict[str, Source]
    missing: tuple = ()
    repeated: str = ""  # which row of the same module and time to keep
    runaway: pd.Timestamp | str = ""  # UTC, or a column that is true from then on
    label_from_min: float = col.LABEL_FROM_MIN  # before the runaway
    label_until_s: float = col.LABEL_UNTIL_S  # before the point of no return
    cells_in_series: float = 0.0  # that the voltage spans; 0: those of a module


def named(wanted: str, names: Collection[str]) -> list[re.Match]:
    """Find the columns that an entry names; the groups of a match are what `*` stands for."""
    if wanted in names:
        return [re.fullmatch(re.escape(wanted), wanted)]
    pattern = re.compile("(.+)".join(map(re.escape, wanted.split("*"))))
    return [match for name in names if (match := pattern.fullmatch(name))]


def load_map(path: str | Path) -> ColumnMap:
    """Load a map; if it is invalid, raise a DataError that names every problem."""
    title = f"The map {path} cannot be used"
    try:
        text = Path(path).read_text(encoding="utf-8")
        written = yaml.safe_load(text)
        if not isinstance(written, dict):
            raise ValueError("no lines such as `Module_Voltage_V: COLUMN`")
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        problem = f"The map must be a readable YAML file, got: {reason}; `hvs map FILE` writes one."
        raise DataError(title, [problem]) from error
    twice = [key for key, n in Counter(re.findall(r"^(\w+):", text, re.MULTILINE)).items() if n > 1]
    problems = [f"{key} must appear once in the map, got it twice; drop one." for key in twice]
    options, clock, sources, has_elapsed = {}, Clock((col.TIMESTAMP,)), {}, False
    for key, entry in written.items():
        if key in col.TELEMETRY:
            entry = entry if isinstance(entry, dict) else {"column": entry}
            how, columns, fields = _entry(key, entry, problems)
            if key == col.TIMESTAMP:
                clock, has_elapsed = Clock(columns, **fields), "elapsed" in entry
                problems += _clock_problems(entry)
            else:
                sources[key] = Source(how, columns, **fields)
        else:
            options |= _checked({key: entry}, "The map", _OPTIONS, problems)
    runaway = options.get("runaway")
    if isinstance(runaway, float) and not has_elapsed:
        problems.append("runaway must be a time or a column, got a number; or add `elapsed`.")
    if runaway is not None:
        for name in [name for name in (col.LABEL, col.PNR) if name in sources]:
            problems.append(f"{name} must not be given with `runaway`, which makes it; drop one.")
        until_s = options.get("label_until_s", col.LABEL_UNTIL_S)
        from_min = options.get("label_from_min", col.LABEL_FROM_MIN)
        if until_s >= from_min * 60:
            found = f"{until_s:g} s and {from_min:g} min"
            problems.append(f"label_until_s must be shorter than label_from_min, got {found}.")
    elif "label_from_min" in options:
        problems.append("label_from_min must be given with `runaway`, got none; drop it.")
    if problems:
        raise DataError(title, problems)
    if isinstance(runaway, float):
        options["runaway"] = clock.zero + pd.Timedelta(runaway, clock.elapsed)
    elif isinstance(runaway, pd.Timestamp):
        options["runaway"] = clock.utc(runaway)
    return ColumnMap(clock, sources, **options)


def _entry(key: str, entry: dict, problems: list[str]) -> tuple[str, tuple[str, ...], dict]:
    """Return how one of our columns is made, from which of the file's, and its other fields."""
    allowed = _HOWS_OF.get(key, _HOWS)
    try:
        (how,) = (each for each in _HOWS if each in entry)
        columns = _scalars(entry[how])
        if not columns or how not in allowed or (how == "constant" and len(columns) > 1):
            raise ValueError
    except ValueError:
        how, columns = "column", ()
        cure = f"write `{key}: COLUMN`" + " or {constant: VALUE}" * ("constant" in allowed)
        problems.append(f"{key} must say one of {', '.join(allowed)}, got {entry}; {cure}.")
    known = {col.TIMESTAMP: _OF_CLOCK, col.PNR: ()}.get(key, _OF_SOURCE)
    rest = {name: value for name, value in entry.items() if name not in _HOWS}
    fields = _checked(rest, key, known, problems)
    if how == "constant" and key not in TEXTS:
        _checked({how: columns[0]}, key, _HOWS, problems)
    return how, tuple(map(str, columns)), fields


def _clock_problems(entry: dict) -> Iterator[str]:
    said = [key for key in ("format", "elapsed", "epoch") if key in entry]
    if len(said) > 1:
        yield f"Timestamp must have one of format, elapsed, epoch, got {', '.join(said)}; keep one."
    if "elapsed" in entry and "start" not in entry:
        yield (
            "Timestamp must have a `start` beside `elapsed`, got none; add the time at 0, such as"
            " `start: 2025-06-01T12:00:00`, any day if it is unknown."
        )
    if "start" in entry and "elapsed" not in entry:
        yield "Timestamp must have `elapsed` beside `start`, got none; add its unit, `elapsed: s`."


def _number(value: object, is_allowed: Callable[[float], bool] = math.isfinite) -> float:
    number = float(value)  # YAML reads 1e-3 as text
    if isinstance(value, bool) or not (math.isfinite(number) and is_allowed(number)):
        raise ValueError
    return number


def _scalars(value: object) -> tuple:
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict | list | None) for each in values):
        raise ValueError
    return tuple(values)


def _format(value: object) -> str:
    pd.to_datetime(pd.Series(["tried"]), format=value, errors="coerce")  # refuses a bad one
    return value


def _time(value: object) -> pd.Timestamp:
    is_text = isinstance(value, str) and is_time(pd.Series([value])).all()
    if not (is_text or isinstance(value, datetime.date)):  # pandas also takes 2025, "now" and None
        raise ValueError
    return pd.Timestamp(value)


def _runaway(value: object) -> pd.Timestamp | str | float:
    if isinstance(value, datetime.date):
        return pd.Timestamp(value)
    return value if isinstance(value, str) else _number(value)


def _one_of(*words: str) -> tuple[Callable, str]:
    return lambda value: words[words.index(value)], f"one of {', '.join(words)}"


# entry -> how its value is read, and what it must be
_RULES = {
    "constant": (_number, "a number"),
    "factor": (lambda value: _number(value, bool), "a number other than 0"),
    "offset": (_number, "a number"),
    "missing": (_scalars, "a value or a list of values"),
    "time": (str, "a column"),
    "within": (lambda value: _number(value, lambda n: n > 0), "a number of seconds above 0"),
    "format": (_format, "text such as '%d.%m.%Y %H:%M:%S'"),
    "zone": (lambda value: zoneinfo.ZoneInfo(value).key, "a time zone such as Europe/Berlin"),
    "elapsed": _one_of("ms", "s", "min", "h"),
    "epoch": _one_of("s", "ms", "us", "ns"),
    "start": (_time, "a time such as 2025-06-01T12:00:00"),
    "repeated": _one_of("first", "last", "mean"),
    "runaway": (_runaway, "a column, a time or a number"),
    "label_from_min": (lambda v: _number(v, lambda n: n > 0), "a number of minutes above 0"),
    "cells_in_series": (lambda v: _number(v, lambda n: n >= 1), "a number, at least 1"),
    "label_until_s": (lambda v: _number(v, lambda n: n >= 0), "a number of seconds, 0 or more"),
}


def _checked(entry: dict, place: str, known: Collection[str], problems: list[str]) -> dict:
    """Return the valid entries, converted; note the others as problems."""
    fields = {}
    for key, value in entry.items():
        if key not in known:
            names = (*col.TELEMETRY, *known) if known is _OPTIONS else known
            cure = did_you_mean(key, names, f"it may have {', '.join(names)}.")
            problems.append(f"{place} has an unknown entry {key!r}: {cure}")
            continue
        read, rule = _RULES[key]
        try:
            fields[key] = read(value)
        except (ValueError, KeyError, TypeError, OSError):
            problems.append(f"{key} of {place} must be {rule}, got {value!r}; correct it.")
    return fields
