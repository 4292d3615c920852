"""Training ranges of a model's features, and how much of other telemetry lies outside them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from hvs_lib.features import SIGNALS

QUANTILES = (0.001, 0.999)  # of the rows that a model is fitted on, unweighted: what it has seen


def ranges_to_json(X: pd.DataFrame) -> str:
    """Write the `QUANTILES` of each feature as JSON, [null, null] for one without values.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
        The rows that a model is fitted on, with no sensor dropped.
    """
    found = X.quantile(list(QUANTILES)).astype(float)
    pairs = {name: [None if np.isnan(q) else q for q in found[name]] for name in X}
    return json.dumps(pairs)


def ranges_from_json(text: str) -> pd.DataFrame:
    """Return the ranges, shape (n_features, 2): low and high, NaN where there is none."""
    return pd.DataFrame(json.loads(text), index=["low", "high"], dtype=float).T


def count_outside(X: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Count the rows that lie outside the training range of each feature.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
    ranges : DataFrame, shape (n_features, 2)
        From `ranges_from_json`.

    Returns
    -------
    DataFrame of int, shape (n_features, 3)
        below, above, and rows with a value. Any value of a feature without a range counts as above.

    Examples
    --------
    >>> ranges = pd.DataFrame({"low": [0.0], "high": [1.0]}, index=["t"])
    >>> count_outside(pd.DataFrame({"t": [-1.0, 0.5, 2.0, 3.0, np.nan]}), ranges)
       below  above  rows
    t      1      2     4
    """
    found = []
    for name, low, high in ranges.itertuples():
        values = X[name].to_numpy(dtype=float)
        values = values[~np.isnan(values)]
        found.append([np.sum(values < low), np.sum(~(values <= high)), len(values)])
    return pd.DataFrame(found, ranges.index, ["below", "above", "rows"], dtype=int)


def outside_by_sensor(counts: pd.DataFrame) -> pd.DataFrame:
    """Find the feature of each signal that lies outside its training range most often.

    Parameters
    ----------
    counts : DataFrame of int, shape (n_features, 3)
        Sum of results of `count_outside`.

    Returns
    -------
    DataFrame, shape (n_signals, 4)
        Indexed by the signals that have a value, most often outside first: outside, below and above
        as shares of the rows with a value, and the feature. outside is at most 0.002 on the
        training rows themselves, and slightly more at a site like the training sites.

    Examples
    --------
    >>> names = ["Module_Voltage_V", "Module_Voltage_V__slope_5min"]
    >>> counts = pd.DataFrame({"below": [0, 1], "above": [2, 0], "rows": 4}, names)
    >>> outside_by_sensor(counts)
                      outside  below  above           feature
    signal
    Module_Voltage_V      0.5    0.0    0.5  Module_Voltage_V
    """
    counts = counts[counts["rows"] > 0]
    shares = counts[["below", "above"]].div(counts["rows"], axis=0)
    shares.insert(0, "outside", shares.sum(axis=1))
    # The longest match: the name of a difference feature begins with the sensor's name, too.
    longest_first = sorted(SIGNALS, key=len, reverse=True)
    signal = [next(s for s in longest_first if name.startswith(s)) for name in shares.index]
    worst = shares["outside"].groupby(signal).idxmax()
    found = shares.loc[worst].assign(feature=worst.to_numpy()).set_axis(worst.index)
    return found.sort_values("outside", ascending=False, kind="stable").rename_axis("signal")
