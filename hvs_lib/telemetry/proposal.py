"""Propose a map for a file from its header and its values; every guess says what it rests on."""

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
from hvs_lib.telemetry.conversion import as_numbers, as_times, codes_and_words, is_number
from hvs_lib.telemetry.files import MISSING_NUMBERS, DataError, TelemetryFile, readable
from hvs_lib.telemetry.mapping import named
from hvs_lib.telemetry.quality import FILL_VALUES
from hvs_lib.telemetry.read import load_telemetry

_TEMPERATURE = "temperature"
_WORDS = {
    col.AMBIENT: {"ambient", "room", "air"},
    col.SOC: {"soc"},
    _TEMPERATURE: {"temp", "temps", "temperature", "probe", "ntc", "t"},
    col.VOLTAGE: {"voltage", "volt", "volts", "u", "v"},
    col.CURRENT: {"current", "amps", "i"},
    col.CO: {"co"},
    col.H2: {"h2", "hydrogen"},
    col.VOC: {"voc", "tvoc", "thc", "hydrocarbons"},
}
_GASES = (col.CO, col.H2, col.VOC)
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
_UNITS_OF_TIME = {"ms": "ms", "s": "s", "sec": "s", "seconds": "s", "min": "min", "h": "h"}
_EPOCHS = [(1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s")]
_FORMATS = [
    f"{day}{space}%H:%M{seconds}"
    for day in ("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d")
    for space in (" ", "T")
    for seconds in (":%S", "", ":%S.%f")
]
_FILLS = np.array(sorted({0.0, *(value for values in FILL_VALUES.values() for value in values)}))
_MANY = 3  # columns that differ in a number alone make a group
_ROWS = 200_000  # to look at
_ATTEMPTS = 4


class _Column:
    """A column of numbers or words, or a group of columns that differ in a number, with `*`."""

    def __init__(self, name: str, members: list[str], numbers: np.ndarray, words: pd.Series):
        self.name, self.members, self.numbers, self.words = name, members, numbers, words
        self.source: str | list[str] = name  # as a map names it
        unit = re.search(r"\s*[\[(]\s*([^\])]+?)\s*[\])]\s*$|_([A-Za-z]{1,4})$", name)
        known = unit and (unit[1] or unit[2].lower() in _KNOWN_UNITS) and unit.start() > 0
        self.unit = (unit[1] or unit[2]).lower() if known else ""
        bare = (name[: unit.start()] if known else name).replace("SoC", "SOC")
        words_of_name = re.findall(r"[A-Z]+\d*(?![a-z])|[A-Z]?[a-z]+\d*", bare)
        self.tokens = {word.lower() for word in words_of_name}


def propose_map(path: str | Path) -> str:
    """Return the text of a map for a file, tried on the file itself.

    Parameters
    ----------
    path : str or Path
        As for `load_telemetry`.

    Raises
    ------
    DataError
        If the path leads to no telemetry file.
    """
    path = Path(path)
    columns = _columns(path)
    entries: dict[str, tuple[object, str]] = {}  # ours, or an option: what stands there, and why
    notes: list[str] = []
    _propose_time(columns, entries)
    _propose_ids(columns, entries)
    _propose_sensors(columns, entries, notes)
    _propose_label(columns, entries)
    problems = _try(path, entries)
    lines = ["# Proposed by `hvs map` from names and values: read every line before you trust it."]
    lines += [f"# to mend: {problem}" for problem in problems]
    places = {name: place for place, name in enumerate(col.TELEMETRY)}
    keys = sorted(entries, key=lambda key: places.get(key, len(places)))
    lines += [_line(key, *entries[key]) for key in keys]
    return "\n".join([*lines, *(f"# {note}" for note in notes)]) + "\n"


def _columns(path: Path) -> list[_Column]:
    file = TelemetryFile(path)
    file.select(list(dict.fromkeys(file.names)), {})
    batches, rows = [], 0
    with readable(path):
        for batch in file.batches():
            batches.append(batch)
            rows += len(batch)
            if rows >= _ROWS:
                break
        table = arrow.concat_tables(batches).slice(0, _ROWS)
    single = {name: _Column(name, [name], *_values(table[name])) for name in table.column_names}
    groups = defaultdict(list)
    for name in single:
        for number in re.finditer(r"\d+", name):
            groups[f"{name[: number.start()]}*{name[number.end() :]}"].append(name)
    columns = []
    for pattern, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        left = [name for name in names if name in single and len(single[name].numbers)]
        if len(left) >= _MANY:
            numbers = np.concatenate([single.pop(name).numbers for name in left])
            columns.append(_Column(pattern, left, numbers, pd.Series(dtype="str")))
            if len(named(pattern, table.column_names)) > len(left):  # the pattern is too wide
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


def _propose_time(columns: list[_Column], entries: dict) -> None:
    words = {"time", "timestamp", "date", "datetime"}
    for each in sorted(columns, key=lambda each: not each.tokens & words):
        if entry := _clock(each, likely=bool(each.tokens & words)):
            entries[col.TIMESTAMP] = entry
            columns.remove(each)
            return
    entries[col.TIMESTAMP] = ("?", "no column looks like a time: name it")


def _clock(column: _Column, *, likely: bool) -> tuple[object, str] | None:
    entry, why = {"column": column.name}, ""
    if len(column.numbers) and likely:
        middle = np.nanmedian(column.numbers)
        unit = next((unit for above, unit in _EPOCHS if middle > above), None)
        if unit:
            return {**entry, "epoch": unit}, f"numbers near {middle:.4g}: {unit} since 1970"
        unit = _UNITS_OF_TIME.get(column.unit, "s")
        why = f"elapsed {unit}; choose the day, the file does not say it"
        return {**entry, "elapsed": unit, "start": "2025-01-01T00:00:00"}, why
    if column.words.empty:
        return None
    words = column.words[:10_000]
    if as_times(words).notna().all():
        zoned = words.str.contains(r"\d[Zz]$|[+-]\d\d:?\d\d$").all()
        why = "" if zoned else "no zone in the file; choose the site's, such as Europe/Berlin"
        return (column.name if zoned else {**entry, "zone": "UTC"}), why
    fits = [
        each for each in _FORMATS
        if pd.to_datetime(words, format=each, errors="coerce").notna().all()
    ]  # fmt: skip
    if not fits:
        return None
    why = "choose the site's zone, such as Europe/Berlin"
    if len(fits) > 1:
        why += f"; the format may be {fits[1]}"
    return {**entry, "format": fits[0], "zone": "UTC"}, why


def _propose_ids(columns: list[_Column], entries: dict) -> None:
    for name, words in _IDS.items():
        exact = [each for each in columns if each.name == name]
        found = [
            each
            for each in columns
            if each.tokens & words and each.tokens <= words | _ID_WORDS and len(each.members) == 1
        ]
        if found and not exact:
            entries[name] = (found[0].name, "")
        if not (found or exact) and name != col.SITE:
            constant = {"constant": "Rack1" if name == col.RACK else "Module1"}
            entries[name] = (constant, "no column looks like it")


# ---- sensors ---------------------------------------------------------------------------------


def _kind(column: _Column) -> str | None:
    """Return which of our sensors a column may be."""
    near = difflib.get_close_matches(column.name, col.SENSORS, n=1, cutoff=0.8)
    if near:
        return near[0]
    for kind, words in _WORDS.items():
        if column.tokens & words:
            return kind
    return {"c": _TEMPERATURE, "degc": _TEMPERATURE, "mv": col.VOLTAGE}.get(column.unit)


def _propose_sensors(columns: list[_Column], entries: dict, notes: list[str]) -> None:
    of_kind = defaultdict(list)
    present = {each.name for each in columns}
    for each in columns:
        kind = _kind(each) if len(each.numbers) else None
        if kind and each.name not in col.TELEMETRY and np.isfinite(each.numbers).any():
            of_kind[kind].append(each)
    for kind, found in of_kind.items():
        if kind in present:  # it has our name already
            continue
        groups = [each for each in found if len(each.members) > 1]
        group = max(groups, key=lambda each: len(each.members), default=None)
        single = [each for each in found if len(each.members) == 1 and "min" not in each.tokens]
        modules = group is not None and bool(group.tokens & {"module", "mod"})
        if kind == _TEMPERATURE:
            _propose_temperatures(group, single, entries, modules)
        elif modules:
            entries[kind] = _scaled(kind, "each", group)
        elif kind in _GASES:
            _propose_gas(kind, single, columns, entries, notes)
        elif single and (whole := _whole(kind, single)):
            entries[kind] = _scaled(kind, "column", whole)
        elif group is not None and kind == col.VOLTAGE:
            entries[kind] = _scaled(kind, "sum", group)
    if any("each" in value for value, _ in entries.values() if isinstance(value, dict)):
        entries.pop(col.MODULE, None)


def _whole(kind: str, single: list[_Column]) -> _Column | None:
    """Return the column of the whole module or pack, not that of a cell."""
    whole = [each for each in single if not each.tokens & {"cell", "max"}]
    return max(whole, key=lambda each: np.nanmedian(np.abs(each.numbers)), default=None)


def _propose_temperatures(
    group: _Column | None, single: list[_Column], entries: dict, modules: bool
) -> None:
    if modules:
        entries[col.TEMP_AVG] = _scaled(col.TEMP_AVG, "each", group)
    elif group is not None:
        entries[col.TEMP_AVG] = _scaled(col.TEMP_AVG, "mean", group)
        entry, why = _scaled(col.TEMP_MAX, "max", group)
        entries[col.TEMP_MAX] = (entry, "as the mean" if why else "")
    else:
        for each in single:
            name = col.TEMP_MAX if "max" in each.tokens else col.TEMP_AVG
            entries.setdefault(name, _scaled(name, "column", each))


def _propose_gas(
    kind: str, single: list[_Column], columns: list[_Column], entries: dict, notes: list[str]
) -> None:
    fractions = [each for each in single if "/" not in each.unit and "flow" not in each.tokens]
    if fractions:
        entries[kind] = _scaled(kind, "column", fractions[0])
    elif single:
        factor, told = _per_flow(columns)
        if factor:
            entries[kind] = ({"column": single[0].name, "factor": factor}, told)
        else:
            notes.append(f"{kind}: {single[0].name} is a flow; ppm = flow / flow of the duct x 1e6")


def _per_flow(columns: list[_Column]) -> tuple[float, str]:
    """Return the ppm of a unit of flow, from a gas that the file has as both."""
    for ppm in [each for each in columns if each.unit == "ppm"]:
        for flow in [each for each in columns if "flow" in each.tokens and "/" in each.unit]:
            if ppm.tokens == flow.tokens - {"flow"}:
                pair = np.isfinite(ppm.numbers) & np.isfinite(flow.numbers)
                x, y = flow.numbers[pair], ppm.numbers[pair]
                if len(x) > 1 and np.corrcoef(x, y)[0, 1] > 0.9:
                    told = f"a flow; ppm as {ppm.name} against {flow.name}"
                    return float(f"{np.polyfit(x, y, 1)[0]:.3g}"), told
    return 0.0, ""


def _scaled(kind: str, how: str, column: _Column) -> tuple[object, str]:
    """Return the entry of a column, with what its values say of its unit."""
    values = column.numbers[np.isfinite(column.numbers)]
    entry, why = {how: column.source}, ""
    fills = [float(fill) for fill in _FILLS if _is_fill(fill, values)]
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


def _propose_label(columns: list[_Column], entries: dict) -> None:
    for each in columns:
        flag = set(each.words.str.lower()) == {"true", "false"}
        flag |= len(each.numbers) > 0 and set(np.unique(each.numbers)) == {0.0, 1.0}
        if flag and "runaway" in each.tokens:
            entries["runaway"] = (each.name, "the first true row is taken as the runaway")
        elif flag and each.tokens & {"hazard", "label"} and each.name != col.LABEL:
            entries.setdefault(col.LABEL, (each.name, ""))


# ---- text ------------------------------------------------------------------------------------


def _try(path: Path, entries: dict) -> list[str]:
    """Read the file with the proposal, mend what can be, and return what is left to mend."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "map.yaml"
        for _ in range(_ATTEMPTS):
            lines = [_line(key, value, "") for key, (value, _) in entries.items()]
            trial.write_text("\n".join(lines), encoding="utf-8")
            try:
                telemetry = load_telemetry(path, columns=trial, require_label=False)
            except DataError as error:
                again = any("must be unique within a module" in each for each in error.problems)
                if not again or "repeated" in entries:
                    return error.problems
                entries["repeated"] = ("first", "a module has some times twice")
                continue
            turned = any(name == col.CURRENT for name, *_ in telemetry.attrs["findings"])
            current, why = entries.get(col.CURRENT, ("", ""))
            if not turned or "positive" in why:
                return []
            current = current if isinstance(current, dict) else {"column": current}
            current = current | {"factor": -current.get("factor", 1.0)}
            entries[col.CURRENT] = (current, "it was positive while the charge fell")
    return []


def _line(key: str, value: object, why: str) -> str:
    options = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    text = yaml.safe_dump(value, width=10**9, **options).strip().removesuffix("...").strip()
    return f"{key}: {text}" + (f"  # {why}" if why else "")
