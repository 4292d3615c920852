"""Split telemetry by rack into training folds and a test set.

Rows of one rack share its air, its gas and the cause of its event, so a rack is never split. The
random row split is kept to show how much it flatters a model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, train_test_split

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.files import DataError

SPLITS = ("rack", "row")


@dataclass(frozen=True, eq=False)
class Split:
    """Training rows with their folds, and test rows.

    Attributes
    ----------
    train, test : array of int, shape (n_train,) and (n_test,)
        Positions of the rows in the telemetry, ascending.
    folds : list of (array, array)
        Per fold the rows to fit on and the rows to validate on, as positions in the telemetry. The
        validation rows of all folds are the training rows, each once.
    kind : {"rack", "row"}
        What was kept whole.
    seed : int
        Of the shuffle.
    parts : dict of dict
        Racks and sizes of each fold (its validation rows), of train and of test.
    """

    train: np.ndarray
    test: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]
    kind: str
    seed: int
    parts: dict[str, dict]

    def table(self) -> pd.DataFrame:
        """Return a row for each part: racks, modules, rows, events and prevalence."""
        table = pd.DataFrame.from_dict(self.parts, orient="index").rename_axis("part")
        return table.assign(racks=table["racks"].map(len))

    def to_dict(self) -> dict:
        """Return kind, seed, and the racks and sizes of each part, ready for JSON."""
        return {
            "kind": self.kind, "seed": self.seed, "n_folds": len(self.folds), "parts": self.parts,
        }  # fmt: skip


def split_by_rack(
    telemetry: pd.DataFrame,
    *,
    test_size: float = 0.25,
    n_folds: int = 3,
    seed: int = 42,
    split: str = "rack",
) -> Split:
    """Split telemetry into training folds and a test set that share no rack.

    Racks with an event and racks without one are dealt out separately, so that each part gets its
    share of both.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, n_columns)
        With the label.
    test_size : float
        Share of the racks with an event, and of those without, that go to the test set.
    n_folds : int
        Number of folds of the training racks.
    seed : int
        Of the shuffle.
    split : {"rack", "row"}
        "row" deals out single rows instead. It leaks: neighbouring rows are near copies.

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If a parameter is out of range.
    DataError
        If some part would have no event.

    Examples
    --------
    >>> telemetry = pd.DataFrame(
    ...     {
    ...         "Site_ID": "S1",
    ...         "Rack_ID": np.repeat(["R1", "R2", "R3", "R4"], 4),
    ...         "Module_ID": "M1",
    ...         "Hazard_Label": [0, 0, 1, 1] * 4,
    ...     }
    ... )
    >>> split_by_rack(telemetry, n_folds=2, test_size=0.5).table()
            racks  modules  rows  events  prevalence
    part
    fold 1      1        1     4       1         0.5
    fold 2      1        1     4       1         0.5
    train       2        2     8       2         0.5
    test        2        2     8       2         0.5
    """
    check_split(test_size, n_folds, split)
    check_labels(telemetry)
    if split == "rack":
        train, test, folds = _deal_racks(telemetry, test_size, n_folds, seed)
    else:
        train, test, folds = _deal_rows(telemetry, test_size, n_folds, seed)
    named = {f"fold {i}": valid for i, (_, valid) in enumerate(folds, start=1)}
    parts = _describe(telemetry, {**named, "train": train, "test": test})
    empty = [name for name, part in parts.items() if part["events"] == 0]
    if empty:
        counts = ", ".join(f"{name} {part['events']}" for name, part in parts.items())
        raise _error(
            f"Every part must hold an event, got none in {', '.join(empty)} ({counts})",
            "use fewer folds, a larger test_size, or telemetry with more events.",
        )
    return Split(train, test, folds, split, seed, parts)


def check_split(test_size: float, n_folds: int, split: str) -> None:
    """Refuse settings of `split_by_rack` that are out of range, with a ValueError."""
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be between 0 and 1, got {test_size}.")
    if int(n_folds) != n_folds or n_folds < 2:
        raise ValueError(f"n_folds must be a whole number of at least 2, got {n_folds}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")


def check_labels(telemetry: pd.DataFrame) -> None:
    """Refuse telemetry from which nothing can be learnt.

    Raises
    ------
    DataError
        Without a label, without an event, without a normal row, or with events of one row each.

    Examples
    --------
    >>> check_labels(pd.DataFrame({"Hazard_Label": [0, 0]}))
    Traceback (most recent call last):
    hvs_lib.telemetry.files.DataError: The telemetry cannot be split: It must hold events, ...
    """
    if col.LABEL not in telemetry:
        cure = "add the labels; telemetry without them can only be scored."
        raise _error(f"{col.LABEL} must be a column, it is absent", cure)
    if not telemetry[col.LABEL].any():
        cure = "take telemetry with events, or score it with a trained model."
        raise _error(f"It must hold events, {col.LABEL} is 0 in every row", cure)
    if telemetry[col.LABEL].all():
        cure = "add the telemetry of quiet times, with the label 0."
        raise _error(f"It must hold rows without a hazard, {col.LABEL} is 1 in every row", cure)
    n_rows, n_events = int(telemetry[col.LABEL].sum()), int(event_codes(telemetry).max()) + 1
    if n_rows == n_events > 1:
        cure = "label all rows from 20 min to 30 s before the point of no return."
        found = f"got {n_events} events of one labelled row each"
        raise _error(f"Events must be several rows long, {found}", cure)


def thin_normal_rows(telemetry: pd.DataFrame, rows: np.ndarray, stride: int) -> np.ndarray:
    """Keep every labelled row and every `stride`-th normal row of each module.

    Modules start at different rows, so that the kept rows are not all of the same instants.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, n_columns)
        With the label.
    rows : array of int, shape (n_rows,)
        Positions to choose from.
    stride : int
        1 keeps everything. Weigh the kept normal rows by `stride` to make up for the others.

    Returns
    -------
    array of int, shape (n_kept,)
        The kept positions, in the order of `rows`.

    Raises
    ------
    ValueError
        If `stride` is below 1, or so large that no normal row is left.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}.")
    rows = np.asarray(rows)
    keep = telemetry[col.LABEL].to_numpy()[rows] == 1
    modules = module_codes(telemetry)[rows][~keep]
    place = pd.Series(modules).groupby(modules).cumcount().to_numpy()
    drawn = (place + modules) % stride == 0
    if len(drawn) and not drawn.any():
        raise ValueError(f"normal_stride must leave normal rows to fit on, got {stride}: lower it.")
    keep[~keep] = drawn
    return rows[keep]


def _deal_racks(telemetry, test_size, n_folds, seed):
    """Return train rows, test rows and folds that keep racks whole."""
    racks, events = rack_codes(telemetry), event_codes(telemetry)
    has_event = np.isin(np.arange(racks.max() + 1), racks[events >= 0])
    _check_racks(has_event, int(events.max()) + 1, test_size, n_folds)
    train_racks, test_racks = [], []
    for group in (np.flatnonzero(has_event), np.flatnonzero(~has_event)):
        # two plain draws give exact counts; one stratified draw rounds them as it likes
        keep, take = _draw(group, round(test_size * len(group)), seed)
        train_racks.append(keep)
        test_racks.append(take)
    train_racks = np.sort(np.concatenate(train_racks))
    test = np.flatnonzero(np.isin(racks, np.concatenate(test_racks)))
    train = np.flatnonzero(np.isin(racks, train_racks))
    folds = []
    for _, valid in _stratified_folds(has_event[train_racks], n_folds, seed):
        inside = np.isin(racks[train], train_racks[valid])
        folds.append((train[~inside], train[inside]))
    return train, test, folds


def _check_racks(has_event: np.ndarray, n_events: int, test_size: float, n_folds: int) -> None:
    """Refuse too few racks with an event for the folds and the test set."""
    n_racks, needed = int(has_event.sum()), n_folds + 1
    if n_racks < needed:
        fewer_folds = f"use n_folds={n_racks - 1}, " if n_racks > 2 else ""
        raise _error(
            f"{n_folds} folds and a test set need at least {needed} racks with an event, got"
            f" {n_events} event{'s' if n_events > 1 else ''} in {n_racks}"
            f" rack{'s' if n_racks > 1 else ''}: one event cannot both teach a model and test it",
            f"bring telemetry of more racks with events, {fewer_folds}or use"
            ' split="row", whose random rows put near copies of the test rows in the training set:'
            " good for a look at the data, not for a claim.",
        )
    n_test = round(test_size * n_racks)
    if n_test < 1 or n_racks - n_test < n_folds:
        raise _error(
            f"The test set needs a rack with an event and {n_folds} folds as many each, got"
            f" {n_test} of {n_racks} such racks for the test set with test_size={test_size}",
            f"choose test_size between {1 / n_racks:.3g} and {(n_racks - n_folds) / n_racks:.3g}.",
        )


def _draw(group: np.ndarray, n_test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the racks to keep and the racks drawn."""
    if n_test in (0, len(group)):
        return group[n_test:], group[:n_test]
    return train_test_split(group, test_size=n_test, random_state=seed)


def _deal_rows(telemetry, test_size, n_folds, seed):
    """Return train rows, test rows and folds of single rows, stratified by label."""
    label = telemetry[col.LABEL].to_numpy()
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
    rows = np.arange(len(label))
    parts = train_test_split(rows, test_size=test_size, stratify=label, random_state=seed)
    train, test = (np.sort(part) for part in parts)
    folds = _stratified_folds(label[train], n_folds, seed)
    return train, test, [(train[fit], train[valid]) for fit, valid in folds]


def _stratified_folds(y: np.ndarray, n_folds: int, seed: int) -> list[tuple]:
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # fewer quiet racks than folds is sound: a rack with an event has normal rows as well
        warnings.filterwarnings("ignore", message="The least populated class in y")
        return list(folds.split(np.zeros(len(y)), y))


def _describe(telemetry: pd.DataFrame, parts: dict[str, np.ndarray]) -> dict[str, dict]:
    """Name the racks of each part, as "site/rack", and count what is in it."""
    racks, modules = rack_codes(telemetry), module_codes(telemetry)
    events = event_codes(telemetry)
    first = telemetry.iloc[np.unique(racks, return_index=True)[1]]
    names = (first[col.SITE].astype("str") + "/" + first[col.RACK].astype("str")).to_list()
    return {
        name: {
            "racks": [names[rack] for rack in np.unique(racks[rows])],
            "modules": len(np.unique(modules[rows])),
            "rows": len(rows),
            "events": len(np.unique(events[rows][events[rows] >= 0])),
            "prevalence": float((events[rows] >= 0).mean()),
        }
        for name, rows in parts.items()
    }


def _error(rule: str, cure: str) -> DataError:
    return DataError("The telemetry cannot be split", [f"{rule}; {cure}"])
