"""Convert columns as written to typed columns; one with cells that do not convert stays text."""

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute

from hvs_lib import columns as col
from hvs_lib.telemetry.files import MISSING, MISSING_NUMBERS

TEXTS = [col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE]
_OFFSET = r"[+-]\d{2}(?::?\d{2})?\s*$"
# pandas alone would also accept "now", "2025" and the offset "+2"
_ISO = rf"^\s*\d{{4}}-?\d{{2}}-?\d{{2}}[^+-]*(?:$|{_OFFSET})"
_ZONE = rf"\d[Tt ]\d[\d:.]*\s*(?:[Zz]\s*$|{_OFFSET})"


def to_frame(columns: dict[str, arrow.ChunkedArray]) -> pd.DataFrame:
    """Return the columns of a file as a table, and remove them from `columns`."""
    frame = {}
    for name in list(columns):
        array = columns.pop(name)  # so that the file's copy of the column is freed at once
        if name in (col.TIMESTAMP, col.PNR):
            frame[name] = _to_times(array)
        elif name in TEXTS:
            frame[name] = _to_category(array)
        else:  # 0.99999999 must not become the label 1
            frame[name] = _to_numbers(array, np.float64 if name == col.LABEL else np.float32)
    arrow.default_memory_pool().release_unused()  # else a second copy of the file stays behind
    return pd.DataFrame(frame, copy=False)


def codes_and_words(array: arrow.ChunkedArray) -> tuple[np.ndarray, pd.Series]:
    """Return the int codes (-1 = missing) and the trimmed words of a text column."""
    if not arrow.types.is_dictionary(array.type):
        array = _text(array).dictionary_encode()
    # other codes may have no room for "missing" or for the words of all chunks
    array = array.cast(arrow.dictionary(arrow.int32(), array.type.value_type, array.type.ordered))
    encoded = array.unify_dictionaries().combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    words = pd.Series(encoded.dictionary.to_pylist(), dtype="str").str.strip()
    used = np.zeros(len(words), dtype=bool)  # a category may have no rows
    used[codes[codes >= 0]] = True
    return codes, words.where(used & ~words.isin(MISSING))


def _text(array: arrow.ChunkedArray) -> arrow.ChunkedArray:
    try:
        words = array.cast(arrow.string())
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):  # lists, structs, blobs
        return arrow.chunked_array([[None if v is None else str(v) for v in array.to_pylist()]])
    if arrow.types.is_duration(array.type):  # must not pass for a number
        return arrow.compute.binary_join_element_wise(words, array.type.unit, " ")
    return words


def _to_category(array: arrow.ChunkedArray) -> pd.Categorical:
    codes, words = codes_and_words(array)
    ids = pd.Categorical(words)
    # one more entry, so that code -1 (missing) maps to itself
    return pd.Categorical.from_codes(np.append(ids.codes, -1)[codes], dtype=ids.dtype)


def _to_times(array: arrow.ChunkedArray) -> pd.Series:
    if arrow.types.is_timestamp(array.type) or arrow.types.is_date(array.type):
        # a zoned Arrow timestamp counts from the epoch in UTC already
        kind = arrow.timestamp("us", tz=getattr(array.type, "tz", None))
        rounds = getattr(array.type, "unit", None) == "ns"
        try:
            return pd.Series(array.cast(kind, safe=not rounds).to_numpy())
        except arrow.ArrowInvalid:  # a year beyond 290,000: as text, for the rules to refuse
            times = array.to_numpy()
            return pd.Series(times.astype("str"), dtype="str").mask(np.isnat(times))
    codes, words = codes_and_words(array)
    if is_time(words).all() and one_zone_style(words).all():
        return pd.Series(np.append(as_times(words).to_numpy(), np.datetime64("NaT"))[codes])
    return _as_words(codes, words)


def _as_words(codes: np.ndarray, words: pd.Series) -> pd.Series:
    return pd.Series(np.append(words.to_numpy(object), None)[codes], dtype="str")


def as_times(values: pd.Series, format: str = "") -> pd.Series:
    """Return the values as UTC times, NaT where text is not in the format, by default ISO 8601."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return values
    if not format:
        values = values.where(values.str.contains(_ISO, na=False))
    parsed = pd.to_datetime(values, format=format or "ISO8601", errors="coerce", utc=True)
    return parsed.dt.tz_localize(None).astype("datetime64[us]")


def _to_numbers(array: arrow.ChunkedArray, dtype: type) -> np.ndarray | pd.Series:
    kind = array.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        return array.to_numpy().astype(dtype, copy=False)
    if arrow.types.is_decimal(kind) or arrow.types.is_null(kind):
        return array.cast(arrow.float64()).to_numpy().astype(dtype)
    codes, words = codes_and_words(array)
    words = words.mask(words.isin(MISSING_NUMBERS))
    if is_number(words).all():
        return np.append(as_numbers(words).to_numpy(dtype), dtype("nan"))[codes]
    return _as_words(codes, words)


def as_numbers(values: pd.Series) -> pd.Series:
    """Return the values as numbers, NaN where they are text."""
    if pd.api.types.is_numeric_dtype(values):
        return values
    return pd.to_numeric(values.astype(object), errors="coerce").astype("float64")


def is_number(values: pd.Series) -> pd.Series:
    """Accept numbers and missing values."""
    return as_numbers(values).notna() | values.isna()


def is_time(values: pd.Series) -> pd.Series:
    """Accept times and missing values."""
    return as_times(values).notna() | values.isna()


def one_zone_style(values: pd.Series) -> pd.Series:
    """Refuse times with a zone among times without one; the rarer kind is at fault."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return pd.Series(True, index=values.index)
    zoned = _has_zone(values)
    bare = ~zoned & values.notna()
    return ~zoned if zoned.sum() <= bare.sum() else ~bare


def _has_zone(values: pd.Series) -> pd.Series:
    return values.str.contains(_ZONE, na=False)


def zone_styles(array: arrow.ChunkedArray) -> set[bool]:
    """Return whether the times of a column have a zone, both values if only some do."""
    if arrow.types.is_timestamp(array.type) or arrow.types.is_date(array.type):
        return set()  # of one style throughout the file
    words = codes_and_words(array)[1].dropna()
    return set(_has_zone(words).unique().tolist())
