"""Propose a map for a file from its header and values; every guess states its reason."""

import difflib
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import yaml

from hvs_lib import columns as col
from hvs_lib.telemetry.addresses import local_copy
from hvs_lib.telemetry.conversion import as_numbers, as_times, codes_and_words, is_number
from hvs_lib.telemetry.files import MISSING_NUMBERS, DataError
from hvs_lib.telemetry.folders import open_files
from hvs_lib.telemetry.mapping import named
from hvs_lib.telemetry.quality import FILL_VALUES
from hvs_lib.telemetry.read import load_telemetry

_WORDS = {
    col.AMBIENT: {"ambient", "room", "air"},
    col.SOC: {"soc"},
    col.TEMP_AVG: {"temp", "temps", "temperature", "probe", "ntc", "t"},
    col.VOLTAGE: {"voltage", "volt", "volts", "u", "v"},
    col.CURRENT: {"current", "amps", "i"},
    col.CO: {"co"},
    col.H2: {"h2", "hydrogen"},
    col.VOC: {"voc", "tvoc", "thc", "hydrocarbons"},
}
_GASES = (col.CO, col.H2, col.VOC)
_TIMES = {"time", "timestamp", "date", "datetime"}
_IDS = {
    col.SITE: {"site", "plant"},
    col.RACK: {"rack", "string", "cabinet", "bank"},
    col.MODULE: {"module", "pack"},
}
_ID_WORDS = {"id", "name", "no", "nr", "number"}
# unit in the header -> factor and offset to ours
_UNITS = {
    "f": (5 / 9, -160 / 9), "degf": (5 / 9, -160 / 9), "°f": (5 / 9, -160 / 9),
    "k": (1.0, -273.15), "mv": (1e-3, 0.0), "kv": (1e3, 0.0), "ma": (1e-3, 0.0),
    "ppb": (1e-3, 0.0), "vol%": (1e4, 0.0), "vol-%": (1e4, 0.0), "%": (1e4, 0.0),
}  # fmt: skip
_KNOWN_UNITS = {*_UNITS, "c", "degc", "v", "a", "ppm"}
_EPOCHS = [(1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s")]
_FORMATS = [
    f"{day}{space}%H:%M{seconds}"
    for day in ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d")
    for space in (" ", "T")
    for seconds in (":%S", "", ":%S.%f")
]
_FILLS = sorted({0.0}.union(*FILL_VALUES.values()))
_MANY = 3  # columns that differ only in a number form a group
_ROWS = 200_000  # to inspect

Entry = tuple[object, str]  # a value in the map, and the reason for it


class _Column:
    """A column of numbers or words, or a group that differs only in a number, named with `*`."""

    def __init__(self, name: str, size: int, numbers: np.ndarray, words: pd.Series):
        self.name, self.size, self.numbers, self.words = name, size, numbers, words
        self.source: str | list[str] = name  # as a map names it
        unit = re.search(r"\s*[\[(]\s*([^\])]+?)\s*[\])]\s*$|_([A-Za-z]{1,4})$", name)
        known = unit and (unit[1] or unit[2].lower() in _KNOWN_UNITS) and unit.start() > 0
        self.unit = (unit[1] or unit[2]).lower() if known else ""
        bare = (name[: unit.start()] if known else name).replace("SoC", "SOC")
        words_of_name = re.findall(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*", bare)
        self.tokens = {word.lower() for word in words_of_name}


def propose_map(path: str | Path) -> str:
    """Return the text of a map for a file, tried on the file itself.

    Raises
    ------
    DataError
        If the path does not lead to a telemetry file.
    """
    with local_copy(path) as local:
        columns = _columns(local)
        entries = {col.TIMESTAMP: _time(columns)}
        entries |= _ids(columns) | _sensors(columns) | _label(columns)
        if any("each" in value for value, _ in entries.values() if isinstance(value, dict)):
            entries.pop(col.MODULE, None)
        problems = _try(local, entries)
    lines = ["# Proposed by `hvs map` from names and values: read every line before you trust it."]
    lines += [f"# to fix: {problem}" for problem in problems]
    keys = sorted(entries, key=[*col.TELEMETRY, *entries].index)
    lines += [_line(key, *entries[key]) for key in keys]
    for each in columns:
        if _is_flow(each) and (kind := _kind(each)) not in entries:
            lines.append(f"# {kind}: {each.name} is a flow; ppm = flow / flow of the duct x 1e6")
    return "\n".join(lines) + "\n"


def _columns(path: Path) -> list[_Column]:
    file = open_files(path)
    file.select(list(dict.fromkeys(file.names)), {})
    table = {name: array.slice(0, _ROWS) for name, array in file.columns().items()}
    single = {name: _Column(name, 1, *_values(array)) for name, array in table.items()}
    groups = defaultdict(list)
    for name in single:
        for number in re.finditer(r"\d+", name):
            groups[f"{name[: number.start()]}*{name[number.end() :]}"].append(name)
    columns = []
    for pattern, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        left = [name for name in names if name in single and len(single[name].numbers)]
        if len(left) >= _MANY:
            numbers = np.concatenate([single.pop(name).numbers for name in left])
            columns.append(_Column(pattern, len(left), numbers, pd.Series(dtype="str")))
            if len(named(pattern, table)) > len(left):  # the pattern is too wide
                columns[-1].source = left
    return [*single.values(), *columns]


def _values(array: arrow.ChunkedArray) -> tuple[np.ndarray, pd.Series]:
    """Return the numbers of a column, or its words."""
    if arrow.types.is_integer(array.type) or arrow.types.is_floating(array.type):
        return array.to_numpy().astype(np.float64), pd.Series(dtype="str")
    codes, words = codes_and_words(array)
    words = words.mask(words.isin(MISSING_NUMBERS))
    if words.notna().any() and is_number(words).all():
        return np.append(as_numbers(words), np.nan)[codes], pd.Series(dtype="str")
    return np.empty(0), words.dropna()


# ---- time and ids ----------------------------------------------------------------------------


def _time(columns: list[_Column]) -> Entry:
    """Return the entry of the first column that holds times, and remove it from `columns`."""
    for each in sorted(columns, key=lambda each: not each.tokens & _TIMES):
        if entry := _clock(each):
            columns.remove(each)
            return entry
    return "?", "no column looks like a time: name it"


def _clock(column: _Column) -> Entry | None:
    entry = {"column": column.name}
    if len(column.numbers) and column.tokens & _TIMES:
        middle = np.nanmedian(column.numbers)
        for above, unit in _EPOCHS:
            if middle > above:
                return entry | {"epoch": unit}, f"numbers near {middle:.4g}: {unit} since 1970"
        unit = column.unit if column.unit in ("ms", "min", "h") else "s"
        why = f"elapsed {unit}; choose the day, the file does not say it"
        return entry | {"elapsed": unit, "start": "2025-01-01T00:00:00"}, why
    words = column.words[:10_000]
    if words.empty:
        return None
    if as_times(words).notna().all():
        if words.str.contains(r"\d[Zz]$|[+-]\d\d:?\d\d$").all():
            return column.name, ""
        why = "no zone in the file; choose the site's, such as Europe/Berlin"
        return entry | {"zone": "UTC"}, why
    fits = [
        each for each in _FORMATS
        if pd.to_datetime(words, format=each, errors="coerce").notna().all()
    ]  # fmt: skip
    why = "choose the site's zone, such as Europe/Berlin"
    why += f"; the format may be {fits[1]}" if len(fits) > 1 else ""
    return (entry | {"format": fits[0], "zone": "UTC"}, why) if fits else None


def _ids(columns: list[_Column]) -> dict[str, Entry]:
    entries = {}
    for name, words in _IDS.items():
        if any(each.name == name for each in columns):
            continue
        single = [each for each in columns if each.size == 1 and each.tokens & words]
        if found := [each.name for each in single if each.tokens <= words | _ID_WORDS]:
            entries[name] = found[0], ""
        elif name != col.SITE:
            entries[name] = {"constant": name.replace("_ID", "1")}, "no column looks like it"
    return entries


# ---- sensors ---------------------------------------------------------------------------------


def _kind(column: _Column) -> str | None:
    """Return which of our sensors a column may be; any surface temperature is the average."""
    if not np.isfinite(column.numbers).any() or column.name in col.TELEMETRY:
        return None
    if near := difflib.get_close_matches(column.name, col.SENSORS, n=1, cutoff=0.8):
        return col.TEMP_AVG if near[0] == col.TEMP_MAX else near[0]
    units = {"c": col.TEMP_AVG, "degc": col.TEMP_AVG, "mv": col.VOLTAGE}
    kinds = (kind for kind, words in _WORDS.items() if column.tokens & words)
    return next(kinds, units.get(column.unit))


def _is_flow(column: _Column) -> bool:
    return _kind(column) in _GASES and ("/" in column.unit or "flow" in column.tokens)


def _sensors(columns: list[_Column]) -> dict[str, Entry]:
    of_kind, entries = defaultdict(list), {}
    for each in columns:
        if (kind := _kind(each)) and not _is_flow(each):
            of_kind[kind].append(each)
    for kind, found in of_kind.items():
        group = max(found, key=lambda each: each.size)
        single = [each for each in found if each.size == 1 and "min" not in each.tokens]
        whole = [each for each in single if not each.tokens & {"cell", "max"}]
        if group.size > 1 and group.tokens & {"module", "mod"}:
            entries[kind] = _scaled(kind, "each", group)
        elif kind == col.TEMP_AVG and group.size > 1:
            entries[kind] = _scaled(kind, "mean", group)
            entry, why = _scaled(kind, "max", group)
            entries[col.TEMP_MAX] = entry, "as the mean" if why else ""
        elif kind == col.TEMP_AVG:
            for each in single:
                name = col.TEMP_MAX if "max" in each.tokens else kind
                entries.setdefault(name, _scaled(name, "column", each))
        elif whole:  # of the module or pack, not of a cell
            largest = max(whole, key=lambda each: np.nanmedian(np.abs(each.numbers)))
            entries[kind] = _scaled(kind, "column", largest)
        elif kind == col.VOLTAGE and group.size > 1:
            entries[kind] = _scaled(kind, "sum", group)
        if kind == col.VOLTAGE and group.size > 1 and not group.tokens & {"module", "mod"}:
            entries["cells_in_series"] = group.size, f"as many columns are {group.name}"
    present = {each.name for each in columns}
    return {name: entry for name, entry in entries.items() if name not in present}


def _scaled(kind: str, how: str, column: _Column) -> Entry:
    """Return the entry of a column, with the unit inferred from its header or values."""
    values, why = column.numbers[np.isfinite(column.numbers)], ""
    fills = [fill for fill in _FILLS if _is_fill(fill, values)]
    values = values[~np.isin(values, fills)]
    middle = float(np.median(values))
    factor, offset = (1.0, 0.0) if kind == col.SOC else _UNITS.get(column.unit, (1.0, 0.0))
    if (factor, offset) != (1.0, 0.0):
        why = f"the header says {column.unit}"
    elif kind in (col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT) and not column.unit:
        if 250 < middle < 350:
            offset, why = -273.15, f"values near {middle:.0f}, so kelvin"
        elif values.min() > 40 and middle < 100 and (values == values.round()).all():
            offset, why = -40.0, f"whole numbers near {middle:.0f}, so with an offset of 40"
    elif kind == col.SOC and np.quantile(values, 0.99) <= 1:
        factor, why = 100.0, "a fraction"
    elif kind == col.VOLTAGE and how == "sum" and middle > 1000:
        factor, why = 1e-3, f"cells near {middle:.0f}, so mV"
    entry: dict = {how: column.source}
    if factor != 1:
        entry["factor"] = float(f"{factor:.9g}")
    if offset:
        entry["offset"] = float(f"{offset:.9g}")
    if fills:
        entry["missing"] = [int(fill) if fill == int(fill) else fill for fill in fills]
        why += ("; " if why else "") + f"{fills[0]:g} is far from all other values"
    return (column.name if entry == {"column": column.name} else entry), why


def _is_fill(fill: float, values: np.ndarray) -> bool:
    others = values[values != fill]
    if len(others) == len(values) or len(others) <= len(values) / 2:
        return False
    low, high = np.quantile(others, [0.01, 0.99])
    return bool(np.abs(others - fill).min() > max(high - low, 1.0))


def _label(columns: list[_Column]) -> dict[str, Entry]:
    for each in columns:
        flag = set(each.words.str.lower()) == {"true", "false"} or set(each.numbers) == {0.0, 1.0}
        if flag and "runaway" in each.tokens:
            return {"runaway": (each.name, "the first true row is taken as the runaway")}
        if flag and each.tokens & {"hazard", "label"} and each.name != col.LABEL:
            return {col.LABEL: (each.name, "")}
    return {}


# ---- text ------------------------------------------------------------------------------------


def _try(path: Path, entries: dict[str, Entry]) -> list[str]:
    """Read the file with the proposal, fix what can be fixed, and return the remaining problems."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "map.yaml"
        while True:  # each round fixes one of two things, each of them once
            lines = [_line(key, value, "") for key, (value, _) in entries.items()]
            trial.write_text("\n".join(lines), encoding="utf-8")
            try:
                telemetry = load_telemetry(path, columns=trial, require_label=False)
            except DataError as error:
                again = any("must be unique within a module" in each for each in error.problems)
                if not again or "repeated" in entries:
                    return error.problems
                entries["repeated"] = "first", "a module has some times twice"
                continue
            found = telemetry.attrs["findings"]
            turned = any(
                each.column == col.CURRENT and each.what.startswith("positive while")
                for each in found
            )
            entry, why = entries.get(col.CURRENT, (col.CURRENT, ""))
            if not turned or "positive" in why:
                return []
            entry = entry if isinstance(entry, dict) else {"column": entry}
            entry["factor"] = -entry.get("factor", 1.0)
            entries[col.CURRENT] = entry, "it was positive while the charge fell"


def _line(key: str, value: object, why: str) -> str:
    options = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    text = yaml.safe_dump(value, width=10**9, **options).strip().removesuffix("...").strip()
    return f"{key}: {text}" + (f"  # {why}" if why else "")
