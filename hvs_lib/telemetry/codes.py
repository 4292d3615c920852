"""Numbers for the racks, the modules and the events of a table."""

import numpy as np
import pandas as pd

from hvs_lib import columns as col


def site_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the sites, as `rack_codes` does."""
    return _numbered(telemetry, [col.SITE])


def rack_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the racks, a rack being a Rack_ID of a site.

    Returns
    -------
    ndarray of shape (n_samples,), int32
        0 to n_racks - 1 in the order of the ids, -1 where an id is missing.
    """
    return _numbered(telemetry, [col.SITE, col.RACK])


def module_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the modules, a module being a Module_ID of a rack of a site, as `rack_codes` does.

    Examples
    --------
    >>> np.unique(module_codes(telemetry))
    array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int32)
    """
    return _numbered(telemetry, [col.SITE, col.RACK, col.MODULE])


def _numbered(telemetry: pd.DataFrame, keys: list[str]) -> np.ndarray:
    combined = np.zeros(len(telemetry), dtype=np.int64)
    missing = np.zeros(len(telemetry), dtype=bool)
    for key in [key for key in keys if key in telemetry]:
        values = telemetry[key].astype("category").cat
        codes = values.codes.to_numpy()
        missing |= codes < 0
        combined = combined * len(values.categories) + codes
    combined[missing] = -1
    step = np.diff(combined, prepend=combined[:1])
    if (step >= 0).all():  # sorted, as the rows of a fleet are
        codes = np.cumsum(step > 0, dtype=np.int32)
    else:
        codes, _ = pd.factorize(combined, sort=True, use_na_sentinel=False)
    return codes.astype(np.int32) - np.int32(missing.any())


def event_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the events.

    An event is the rows of one module with label 1 and the same Event_ID or, where there is no
    Event_ID, one unbroken stretch of label 1.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        Sorted by module and time, with the label.

    Returns
    -------
    ndarray of shape (n_samples,), int32
        0 to n_events - 1 on the rows with label 1, in the order of the rows; -1 elsewhere.

    Examples
    --------
    >>> np.unique(event_codes(telemetry))
    array([-1,  0], dtype=int32)
    """
    codes = np.full(len(telemetry), -1, dtype=np.int32)
    rows = np.flatnonzero(telemetry[col.LABEL].to_numpy() == 1)
    modules = module_codes(telemetry)[rows]
    broken = (np.diff(rows, prepend=-2) > 1) | (np.diff(modules, prepend=-1) != 0)
    name = np.cumsum(broken)
    if col.EVENT_ID in telemetry:
        event_id = pd.factorize(telemetry[col.EVENT_ID].iloc[rows])[0]
        name = np.where(event_id >= 0, -1 - event_id, name)  # below zero: never a stretch's number
    pairs = pd.MultiIndex.from_arrays([modules, name])
    codes[rows] = pd.factorize(pairs)[0]
    return codes


def pnr_of(last: pd.DataFrame) -> pd.Series:
    """Return the points of no return of events, given the last labelled row of each.

    Where the telemetry has none, it is `columns.LABEL_UNTIL_S` after the last label.
    """
    assumed = last[col.TIMESTAMP] + pd.Timedelta(seconds=col.LABEL_UNTIL_S)
    return last[col.PNR].fillna(assumed) if col.PNR in last else assumed


def hazard_types(telemetry: pd.DataFrame) -> list[str]:
    """Name the causes that reach a point of no return somewhere in the telemetry.

    Returns the values of Event_Type that occur with label 1, sorted; none without these columns.

    Examples
    --------
    >>> hazard_types(telemetry)
    ['sudden_short']
    """
    if not {col.LABEL, col.EVENT_TYPE} <= set(telemetry.columns):
        return []
    labelled = telemetry.loc[telemetry[col.LABEL] == 1, col.EVENT_TYPE]
    return sorted(map(str, labelled.dropna().unique()))


def order_of(modules: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """Return the order of the rows by module and time, None if they are already sorted."""
    step, later = np.diff(modules), times[1:] >= times[:-1]
    if np.all((step > 0) | ((step == 0) & later)):
        return None
    return np.lexsort((times, modules))
