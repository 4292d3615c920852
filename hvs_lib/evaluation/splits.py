"""Split telemetry by site or by rack into training folds and a test set.

Rows of one rack share its air, its gas and the cause of its event, so a rack is never split. With
enough sites, they stay whole too, so that the test shows how a model performs at a new site. The
random row split is kept to show how much it flatters a model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, train_test_split

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes, site_codes
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.quality import module_intervals_s

SPLITS = ("auto", "site", "rack", "row")
ENOUGH_SITES = 12  # with an event, needed for a split by site
TEST = -1  # as an index, the last: the model fitted on all folds scores the test rows


@dataclass(frozen=True, eq=False)
class Split:
    """Training rows with their folds, and test rows.

    Attributes
    ----------
    fold : array of int8, shape (n_samples,)
        Fold in which each row is held out, from 0; `TEST` for the rows of the test set.
    kind : {"site", "rack", "row"}
        What was kept whole.
    seed : int
        Seed of the shuffle.
    parts : dict of dict
        Racks and sizes of each fold (its held-out rows), of train and of test.
    """

    fold: np.ndarray
    kind: str
    seed: int
    parts: dict[str, dict]

    @cached_property
    def train(self) -> np.ndarray:
        """Numbers of the training rows, ascending."""
        return np.flatnonzero(self.fold != TEST)

    @cached_property
    def test(self) -> np.ndarray:
        """Numbers of the test rows, ascending."""
        return np.flatnonzero(self.fold == TEST)

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def table(self) -> pd.DataFrame:
        """Return a row for each part: sites, racks, modules, rows, events and prevalence."""
        table = pd.DataFrame.from_dict(self.parts, orient="index").rename_axis("part")
        return table.assign(racks=table["racks"].map(len))

    def to_dict(self) -> dict:
        """Return kind, seed, and the racks and sizes of each part, ready for JSON."""
        return {
            "kind": self.kind, "seed": self.seed, "n_folds": self.n_folds, "parts": self.parts,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, logged: dict, rows: pd.DataFrame) -> Split:
        """Restore a split that kept sites or racks whole, for the same rows."""
        names, parts = _rack_names(rows), logged["parts"]
        of_rack = np.full(len(names), TEST, np.int8)
        for number in range(logged["n_folds"]):
            of_rack[names.isin(parts[f"fold {number + 1}"]["racks"])] = number
        return cls(of_rack[rack_codes(rows)], logged["kind"], logged["seed"], parts)


def split_fleet(
    rows: pd.DataFrame,
    *,
    test_size: float = 0.25,
    n_folds: int = 3,
    seed: int = 42,
    split: str = "auto",
) -> Split:
    """Split rows into training folds and a test set that share no site, or no rack.

    Sites (or racks) with an event and those without one are divided separately, so that each part
    gets its share of both.

    Parameters
    ----------
    rows : DataFrame, shape (n_samples, n_columns)
        ``fleet.rows`` or telemetry, with the label; the rows of each module are contiguous.
    test_size : float
        Share of the sites or racks with an event, and of those without, for the test set.
    n_folds : int
        Number of folds for the rest.
    seed : int
        Seed of the shuffle.
    split : {"auto", "site", "rack", "row"}
        What to keep whole; "auto" keeps sites whole if at least 12 have an event, else racks.
        "row" splits single rows and leaks: neighbouring rows are near copies.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If a parameter is out of range.
    DataError
        If a part would have no event.

    Examples
    --------
    >>> rows = pd.DataFrame(
    ...     {
    ...         "Site_ID": "S1",
    ...         "Rack_ID": np.repeat(["R1", "R2", "R3", "R4"], 4),
    ...         "Module_ID": "M1",
    ...         "Hazard_Label": [0, 0, 1, 1] * 4,
    ...     }
    ... )
    >>> split_fleet(rows, n_folds=2, test_size=0.5).table()
            sites  racks  modules  rows  events  prevalence
    part
    fold 1      1      1        1     4       1         0.5
    fold 2      1      1        1     4       1         0.5
    train       1      2        2     8       2         0.5
    test        1      2        2     8       2         0.5
    """
    check_split(test_size, n_folds, split)
    check_labels(rows)
    kind = split
    if kind == "auto":
        with_event = site_codes(rows)[rows[col.LABEL].to_numpy() == 1]
        kind = "site" if len(np.unique(with_event)) >= ENOUGH_SITES else "rack"
    if kind == "row":
        fold = _deal_rows(rows, test_size, n_folds, seed)
    else:
        groups = site_codes(rows) if kind == "site" else rack_codes(rows)
        fold = _deal_groups(rows, groups, kind, test_size, n_folds, seed)
    named = {f"fold {number + 1}": fold == number for number in range(n_folds)}
    parts = _describe(rows, {**named, "train": fold != TEST, "test": fold == TEST})
    empty = [name for name, part in parts.items() if part["events"] == 0]
    if empty:
        counts = ", ".join(f"{name} {part['events']}" for name, part in parts.items())
        raise _error(
            f"Every part must hold an event, got none in {', '.join(empty)} ({counts})",
            "use fewer folds, a larger test_size, or telemetry with more events.",
        )
    return Split(fold, kind, seed, parts)


def check_split(test_size: float, n_folds: int, split: str) -> None:
    """Raise ValueError if a setting of `split_fleet` is out of range."""
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be between 0 and 1, got {test_size}.")
    if not 2 <= n_folds <= 100 or int(n_folds) != n_folds:  # `Split.fold` is int8
        raise ValueError(f"n_folds must be a whole number from 2 to 100, got {n_folds}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")


def check_labels(telemetry: pd.DataFrame) -> None:
    """Refuse telemetry from which nothing can be learnt.

    Raises
    ------
    DataError
        If there is no label, no event or no normal row, or if every event is a single row.

    Examples
    --------
    >>> check_labels(pd.DataFrame({"Hazard_Label": [0, 0]}))
    Traceback (most recent call last):
    hvs_lib.telemetry.files.DataError: The telemetry cannot be split: It must hold events, but ...
    """
    if col.LABEL not in telemetry:
        cure = "add the labels; telemetry without them can only be scored."
        raise _error(f"{col.LABEL} must be a column, but is absent", cure)
    if not telemetry[col.LABEL].any():
        cure = "take telemetry with events, or score it with a trained model."
        raise _error(f"It must hold events, but {col.LABEL} is 0 in every row", cure)
    if telemetry[col.LABEL].all():
        cure = "add the telemetry of quiet times, with the label 0."
        raise _error(f"It must hold normal rows, but {col.LABEL} is 1 in every row", cure)
    n_rows, n_events = int(telemetry[col.LABEL].sum()), int(event_codes(telemetry).max()) + 1
    if n_rows == n_events > 1:
        cure = "label all rows from 20 min to 30 s before the point of no return."
        found = f"got {n_events} events of one labelled row each"
        raise _error(f"Events must be several rows long, {found}", cure)


def thin_rows(
    rows: pd.DataFrame, chosen: np.ndarray, *, normal_stride: int, hazard_stride: int
) -> np.ndarray:
    """Keep every `normal_stride`-th normal and every `hazard_stride`-th labelled row of a module.

    The stride is scaled for a module sampled more or less often than usual, so that it keeps about
    as many rows per unit of time. Modules start at different rows, so that the kept rows do not all
    have the same timestamps.

    Parameters
    ----------
    rows : DataFrame, shape (n_samples, n_columns)
        ``fleet.rows`` or telemetry, with the label; the rows of each module are contiguous.
    chosen : array of int, shape (n_chosen,)
        Numbers of the rows to choose from, ascending.
    normal_stride, hazard_stride : int
        1 keeps every row, except in modules sampled more often than usual. Weight the kept rows by
        their stride to make up for the others.

    Returns
    -------
    array of int, shape (n_kept,)
        Numbers of the kept rows, ascending.

    Raises
    ------
    ValueError
        If a stride is below 1, or so large that no row of its class is left.

    Examples
    --------
    >>> rows = np.arange(len(telemetry))
    >>> kept = thin_rows(telemetry, rows, normal_stride=72, hazard_stride=6)
    >>> len(telemetry), len(kept)
    (5768, 99)
    """
    label, modules = rows[col.LABEL].to_numpy()[chosen], module_codes(rows)[chosen]
    intervals_s = module_intervals_s(rows)
    per_usual = np.median(intervals_s) / intervals_s
    keep = np.zeros(len(chosen), dtype=bool)
    strides = {"normal_stride": normal_stride, "hazard_stride": hazard_stride}
    for value, (name, stride) in enumerate(strides.items()):
        if stride < 1:
            raise ValueError(f"{name} must be at least 1, got {stride}.")
        of_class = label == value
        module = modules[of_class]
        begins = np.flatnonzero(np.diff(module, prepend=-1))
        place = np.arange(len(module)) - np.repeat(begins, np.diff(begins, append=len(module)))
        own = np.maximum(np.round(stride * per_usual), 1).astype(np.int64)
        drawn = (place + module) % own[module] == 0
        if len(drawn) and not drawn.any():
            raise ValueError(f"{name} must leave rows to fit on, got {stride}: lower it.")
        keep[of_class] = drawn
    return chosen[keep]


def rows_to_fit(
    rows: pd.DataFrame, split: Split, *, normal_stride: int, hazard_stride: int
) -> np.ndarray:
    """Thin the training rows with `thin_rows`; raise ValueError if a fold lacks either class."""
    strides = {"normal_stride": normal_stride, "hazard_stride": hazard_stride}
    kept = thin_rows(rows, split.train, **strides)
    label, fold = rows[col.LABEL].to_numpy()[kept], split.fold[kept]
    for value, (name, stride) in enumerate(strides.items()):
        empty = np.setdiff1d(np.arange(split.n_folds), fold[label == value])
        if len(empty):
            cure = "lower it" if stride > 1 else "use fewer folds, or add telemetry"
            raise ValueError(
                f"{name} must leave rows to fit on in each fold, got {stride} and none in fold "
                f"{empty[0] + 1}: {cure}."
            )
    return kept


def _deal_groups(rows, groups, kind, test_size, n_folds, seed):
    """Return the fold of each row, keeping groups whole."""
    events = event_codes(rows)
    has_event = np.isin(np.arange(groups.max() + 1), groups[events >= 0])
    _check_groups(has_event, kind, int(events.max()) + 1, test_size, n_folds)
    train = []
    for of_kind in (np.flatnonzero(has_event), np.flatnonzero(~has_event)):
        n_test = round(test_size * len(of_kind))
        if 0 < n_test < len(of_kind):
            # two plain draws give exact counts; one stratified draw may round them either way
            train.append(train_test_split(of_kind, test_size=n_test, random_state=seed)[0])
        else:  # all or none of them, which scikit-learn refuses
            train.append(of_kind[n_test:])
    return _in_folds(has_event, np.concatenate(train), n_folds, seed)[groups]


def _check_groups(has_event, kind, n_events, test_size, n_folds) -> None:
    """Raise DataError if too few sites or racks have an event for the folds and the test set."""
    n_groups, needed = int(has_event.sum()), n_folds + 1
    if n_groups < needed:
        fewer_folds = f"use n_folds={n_groups - 1}, " if n_groups > 2 else ""
        raise _error(
            f"{n_folds} folds and a test set need at least {needed} {kind}s with an event, got"
            f" {n_events} event{'s' if n_events > 1 else ''} in {n_groups}"
            f" {kind}{'s' if n_groups > 1 else ''}: one event cannot be used both to train and to"
            " test",
            f"bring telemetry of more {kind}s with events, {fewer_folds}or use"
            ' split="row", whose random rows put near copies of the test rows in the training set:'
            " fine for exploration, not for reporting.",
        )
    n_test = round(test_size * n_groups)
    if n_test < 1 or n_groups - n_test < n_folds:
        raise _error(
            f"The test set and each of {n_folds} folds need a {kind} with an event, got"
            f" {n_test} of {n_groups} such {kind}s for the test set with test_size={test_size}",
            f"choose test_size between {1 / n_groups:.3g} and {(n_groups - n_folds) / n_groups:.3g}"
            ".",
        )


def _deal_rows(rows, test_size, n_folds, seed):
    """Return the fold of each row, splitting single rows, stratified by label."""
    label = rows[col.LABEL].to_numpy()
    n_positive = int((label == 1).sum())
    fewest = min(n_positive, len(label) - n_positive)
    n_train = fewest - round(test_size * fewest)
    if not n_folds <= n_train < fewest:
        raise _error(
            f"{n_folds} folds and a test set need rows of both labels in each, got {n_positive}"
            f" rows with label 1 and {len(label) - n_positive} with label 0 with"
            f" test_size={test_size}",
            "bring more telemetry, or use fewer folds or another test_size.",
        )
    numbers = np.arange(len(label))
    train, _ = train_test_split(numbers, test_size=test_size, stratify=label, random_state=seed)
    return _in_folds(label, train, n_folds, seed)


def _in_folds(y: np.ndarray, train: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of each member, stratified by `y`; those not in `train` are `TEST`."""
    fold, train = np.full(len(y), TEST, dtype=np.int8), np.sort(train)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # fewer quiet racks than folds is fine: a rack with an event has normal rows as well
        warnings.filterwarnings("ignore", message="The least populated class in y")
        for number, (_, held_out) in enumerate(folds.split(train, y[train])):
            fold[train[held_out]] = number
    return fold


def _describe(rows: pd.DataFrame, parts: dict[str, np.ndarray]) -> dict[str, dict]:
    """List the racks of each part, as "site/rack", with its sizes and prevalence."""
    racks, modules, events = rack_codes(rows), module_codes(rows), event_codes(rows)
    names, described = _rack_names(rows), {}
    for name, inside in parts.items():
        described[name] = {
            "sites": rows.loc[inside, col.SITE].nunique(),
            "racks": names[np.unique(racks[inside])].tolist(),
            "modules": len(np.unique(modules[inside])),
            "rows": int(inside.sum()),
            "events": len(np.unique(events[inside & (events >= 0)])),
            "prevalence": float((events[inside] >= 0).mean()),
        }
    return described


def _rack_names(rows: pd.DataFrame) -> pd.Index:
    """Return the name of each number in `rack_codes`, as "site/rack"."""
    first = rows.iloc[np.unique(rack_codes(rows), return_index=True)[1]]
    return pd.Index(first[col.SITE].astype("str") + "/" + first[col.RACK].astype("str"))


def _error(rule: str, cure: str) -> DataError:
    return DataError("The telemetry cannot be split", [f"{rule}; {cure}"])
