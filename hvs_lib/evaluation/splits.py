"""Split telemetry by rack into training folds and a test set.

Rows of one rack share its air, its gas and the cause of its event, so a rack is never split. The
random row split is kept to show how much it flatters a model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.files import DataError

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold, train_test_split

SPLITS = ("rack", "row")

_TITLE = "The telemetry cannot be split"
_OTHER_SPLIT = (
    'or use split="row", whose random rows put near copies of the test rows in the training set: '
    "good for a look at the data, not for a claim."
)


@dataclass(frozen=True, eq=False)
class Split:
    """Training rows with their folds, and test rows.

    Attributes
    ----------
    train, test : ndarray of shape (n_train,) and (n_test,), int64
        Positions of the rows in the telemetry, ascending.
    folds : list of (ndarray, ndarray)
        Per fold the rows to fit on and the rows to validate on, as positions in the telemetry. The
        validation rows of all folds are the training rows, each once.
    kind : {"rack", "row"}
        What was kept whole.
    seed : int
        Seed of the shuffle.
    parts : tuple of dict
        What `table` and `to_dict` report of each fold, of train and of test.
    """

    train: np.ndarray
    test: np.ndarray
    folds: list[tuple[np.ndarray, np.ndarray]]
    kind: str
    seed: int
    parts: tuple[dict, ...]

    def table(self) -> pd.DataFrame:
        """Return the size of each part.

        Returns
        -------
        DataFrame
            One row per fold (its validation rows), for train and for test, with the columns
            `racks, modules, rows, events, prevalence`.
        """
        counted = [{**part, "racks": len(part["racks"])} for part in self.parts]
        return pd.DataFrame(counted).set_index("part")

    def to_dict(self) -> dict:
        """Return kind, seed, and the racks and sizes of each part, ready for JSON."""
        parts = {
            part["part"]: {name: value for name, value in part.items() if name != "part"}
            for part in self.parts
        }
        return {"kind": self.kind, "seed": self.seed, "n_folds": len(self.folds), "parts": parts}


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
    telemetry : DataFrame of shape (n_samples, n_columns)
        With the label.
    test_size : float, default=0.25
        Share of the racks with an event, and of those without, that go to the test set.
    n_folds : int, default=3
        Number of folds of the training racks.
    seed : int, default=42
        Seed of the shuffle.
    split : {"rack", "row"}, default="rack"
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
    """
    check_split(test_size, n_folds, split)
    check_labels(telemetry)
    racks, events = rack_codes(telemetry), event_codes(telemetry)
    deal = _deal_racks if split == "rack" else _deal_rows
    train, test, folds = deal(telemetry, racks, events, test_size, n_folds, seed)
    named = {f"fold {i}": valid for i, (_, valid) in enumerate(folds, start=1)}
    parts = _describe(telemetry, racks, events, {**named, "train": train, "test": test})
    _check_parts(parts)
    return Split(train, test, folds, split, seed, parts)


def check_labels(telemetry: pd.DataFrame) -> None:
    """Refuse telemetry from which nothing can be learnt.

    Raises
    ------
    DataError
        Without a label, without an event, without a normal row, or with events of one row each.
    """
    if col.LABEL not in telemetry:
        cure = "add the labels; telemetry without them can only be scored."
        raise DataError(_TITLE, [f"{col.LABEL} must be a column, it is absent; {cure}"])
    if not telemetry[col.LABEL].any():
        cure = "take telemetry with events, or score it with a trained model."
        raise DataError(_TITLE, [f"It must hold events, {col.LABEL} is 0 in every row; {cure}"])
    if telemetry[col.LABEL].all():
        cure = "add the telemetry of quiet times, with the label 0."
        rule = f"It must hold rows without a hazard, {col.LABEL} is 1 in every row"
        raise DataError(_TITLE, [f"{rule}; {cure}"])
    n_rows, n_events = int(telemetry[col.LABEL].sum()), int(event_codes(telemetry).max()) + 1
    if n_rows == n_events > 1:
        cure = "label all rows from 20 min to 30 s before the point of no return."
        rule = f"Events must be several rows long, got {n_events} events of one labelled row each"
        raise DataError(_TITLE, [f"{rule}; {cure}"])


def thin_normal_rows(telemetry: pd.DataFrame, rows: np.ndarray, stride: int) -> np.ndarray:
    """Keep every labelled row and every `stride`-th normal row of each module.

    Modules start at different rows, so that the kept rows are not all of the same instants.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        With the label.
    rows : ndarray of shape (n_rows,), int
        Positions to choose from.
    stride : int
        1 keeps everything. Weigh the kept normal rows by `stride` to make up for the others.

    Returns
    -------
    ndarray of shape (n_kept,), int
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


def check_split(test_size: float, n_folds: int, split: str) -> None:
    """Refuse settings of `split_by_rack` that are out of range, with a ValueError."""
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be between 0 and 1, got {test_size}.")
    if int(n_folds) != n_folds or n_folds < 2:
        raise ValueError(f"n_folds must be a whole number of at least 2, got {n_folds}.")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")


def _deal_racks(telemetry, racks, events, test_size, n_folds, seed):
    """Return train rows, test rows and folds that keep racks whole."""
    all_racks = np.arange(racks.max() + 1)
    has_event = np.zeros(len(all_racks), dtype=bool)
    has_event[racks[events >= 0]] = True
    n_test = _n_test_racks(has_event, int(events.max()) + 1, test_size, n_folds)

    train_racks, test_racks = [], []
    for group, n in zip((all_racks[has_event], all_racks[~has_event]), n_test, strict=True):
        # two plain draws give exact counts; one stratified draw rounds them as it likes
        keep, take = _draw(group, n, seed)
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


def _n_test_racks(
    has_event: np.ndarray, n_events: int, test_size: float, n_folds: int
) -> tuple[int, int]:
    """Return how many racks with and without an event go to the test set."""
    n_with, n_without = int(has_event.sum()), int((~has_event).sum())
    needed = n_folds + 1
    if n_with < needed:
        cure = f"bring telemetry of more racks with events, {_fewer_folds(n_with)}{_OTHER_SPLIT}"
        raise DataError(
            _TITLE,
            [
                f"{n_folds} folds and a test set need at least {needed} racks with an event, got"
                f" {n_events} event{'s' if n_events > 1 else ''} in {n_with}"
                f" rack{'s' if n_with > 1 else ''}: one event cannot both teach a model and test"
                f" it; {cure}"
            ],
        )
    n_test = round(test_size * n_with)
    if n_test < 1 or n_with - n_test < n_folds:
        raise DataError(
            _TITLE,
            [
                f"The test set needs a rack with an event and {n_folds} folds as many each, got"
                f" {n_test} of {n_with} such racks for the test set with test_size={test_size};"
                f" choose test_size between {1 / n_with:.3g} and {(n_with - n_folds) / n_with:.3g}."
            ],
        )
    return n_test, round(test_size * n_without)


def _fewer_folds(n_with: int) -> str:
    return f"use n_folds={n_with - 1}, " if n_with > 2 else ""


def _draw(group: np.ndarray, n_test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the racks to keep and the racks drawn."""
    if n_test == 0:
        return group, group[:0]
    if n_test == len(group):
        return group[:0], group
    keep, take = train_test_split(group, test_size=n_test, random_state=seed)
    return keep, take


def _stratified_folds(y: np.ndarray, n_folds: int, seed: int) -> list[tuple]:
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # fewer quiet racks than folds is sound: a rack with an event has normal rows as well
        warnings.filterwarnings("ignore", message="The least populated class in y")
        return list(folds.split(np.zeros(len(y)), y))


def _deal_rows(telemetry, racks, events, test_size, n_folds, seed):
    """Return train rows, test rows and folds of single rows, stratified by label."""
    label = telemetry[col.LABEL].to_numpy()
    n_positive = int((label == 1).sum())
    fewest = min(n_positive, len(label) - n_positive)
    n_train = fewest - round(test_size * fewest)
    if not n_folds <= n_train < fewest:
        cure = "bring more telemetry, or use fewer folds or another test_size."
        raise DataError(
            _TITLE,
            [
                f"{n_folds} folds and a test set need rows of both labels in each, got"
                f" {n_positive} rows with label 1 and {len(label) - n_positive} with label 0"
                f" with test_size={test_size}; {cure}"
            ],
        )
    train, test = train_test_split(
        np.arange(len(label)), test_size=test_size, stratify=label, random_state=seed
    )
    train, test = np.sort(train), np.sort(test)
    folds = [
        (train[fit], train[valid]) for fit, valid in _stratified_folds(label[train], n_folds, seed)
    ]
    return train, test, folds


def _describe(
    telemetry: pd.DataFrame, racks: np.ndarray, events: np.ndarray, parts: dict[str, np.ndarray]
) -> tuple[dict, ...]:
    """Count what is in each part."""
    modules = module_codes(telemetry)
    names = _rack_names(telemetry, racks)
    return tuple(
        {
            "part": name,
            "racks": [names[rack] for rack in np.unique(racks[rows])],
            "modules": len(np.unique(modules[rows])),
            "rows": len(rows),
            "events": len(np.unique(events[rows][events[rows] >= 0])),
            "prevalence": float((events[rows] >= 0).mean()) if len(rows) else 0.0,
        }
        for name, rows in parts.items()
    )


def _rack_names(telemetry: pd.DataFrame, racks: np.ndarray) -> list[str]:
    """Return "site/rack" for each rack number."""
    _, first = np.unique(racks, return_index=True)
    ids = telemetry[[col.SITE, col.RACK]].iloc[first].astype("str")
    return (ids[col.SITE] + "/" + ids[col.RACK]).to_list()


def _check_parts(parts: tuple[dict, ...]) -> None:
    """Refuse a part without an event before any model is fitted."""
    empty = [part["part"] for part in parts if part["events"] == 0]
    if empty:
        counts = ", ".join(f"{part['part']} {part['events']}" for part in parts)
        cure = "use fewer folds, a larger test_size, or telemetry with more events."
        raise DataError(
            _TITLE,
            [f"Every part must hold an event, got none in {', '.join(empty)} ({counts}); {cure}"],
        )
