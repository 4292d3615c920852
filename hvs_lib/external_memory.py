"""XGBoost on more training rows than fit into memory, a few partitions at a time.

The features stay on disk in the cache, XGBoost's external memory in the folder for temporary files.
The fitted pipeline is an ordinary one, and identical on any machine and any number of machines:
`xgboost.dask` would spread one fit over machines, but draws different rows each time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import joblib
import numpy as np
import pandas as pd
from imblearn.pipeline import Pipeline
from sklearn.base import clone
from sklearn.utils.validation import check_memory
from xgboost import DataIter, ExtMemQuantileDMatrix, XGBClassifier, train

from hvs_lib import cache
from hvs_lib.features import ROWS_IN_PARTS, build_features, with_sensors_dropped
from hvs_lib.telemetry.fleet import Fleet


@dataclass(frozen=True, eq=False)
class PartitionedFeatures:
    """Features of training rows, a few partitions in memory at a time.

    Attributes
    ----------
    fleet : Fleet
    sample : DataFrame, shape (n_sampled, n_features)
        Features of some training rows, for the scaler: trees do not depend on the scale.
    index : array of int, shape (n_training_rows,)
        Numbers of all training rows in the fleet, ascending.
    kept : array of bool, shape (n_training_rows,)
        Which of the training rows are selected.
    drop_sensors : float
        Share of the rows from which each kind of sensor is dropped, see `with_sensors_dropped`.
    seed : int
        Seed of the draws.
    memory : joblib.Memory or None
        Cache of the features; without it, each pass over the rows rebuilds them.
    """

    fleet: Fleet
    sample: pd.DataFrame
    index: np.ndarray
    kept: np.ndarray
    drop_sensors: float
    seed: int
    memory: joblib.Memory | None

    def __getitem__(self, kept: np.ndarray) -> PartitionedFeatures:
        """Choose rows by a mask over all training rows."""
        return replace(self, kept=kept)

    def build(self, *, n_jobs: int) -> None:
        """Cache the features, if there is a cache, several partitions at a time."""
        if self.memory is not None:
            for _ in self.fleet.map(lambda partition: self._of(partition).empty, n_jobs=n_jobs):
                pass

    def parts(self) -> Iterator[pd.DataFrame]:
        """Yield the features, about `ROWS_IN_PARTS` rows at a time."""
        part, n_rows, last = [], 0, len(self.fleet.paths) - 1
        for partition in range(last + 1):
            if len(features := self._of(partition)):
                part.append(features)
                n_rows += len(features)
            if n_rows >= ROWS_IN_PARTS or (n_rows and partition == last):
                yield pd.concat(part)
                part, n_rows = [], 0

    def _of(self, partition: int) -> pd.DataFrame:
        """Return the features of a partition's rows, from the cache if they are there."""
        start, end = self.fleet.starts[partition : partition + 2]
        rows = slice(*np.searchsorted(self.index, [start, end]))
        if not self.kept[rows].any():
            return pd.DataFrame()
        # The folder's name stands for the settings under which the user's file was converted.
        key = cache.key(self.fleet.sha256, *self.fleet.paths[partition].parts[-2:])
        own = partition, self.index[rows] - start, self.drop_sensors, self.seed
        build = check_memory(self.memory).cache(_features, ignore=["fleet"])
        return build(self.fleet, *own, key=key)[self.kept[rows]]


def _features(
    fleet: Fleet, partition: int, own: np.ndarray, share: float, seed: int, key: str
) -> pd.DataFrame:
    """Build the features of some rows of a partition; `key` stands for the code and the fleet."""
    X = build_features(fleet.telemetry(partition)).iloc[own]
    return with_sensors_dropped(X, share=share, seed=(seed, partition))


def fits_in_parts(pipeline: Pipeline) -> bool:
    """Tell whether a pipeline can be fitted in parts: XGBoost without a sampler."""
    is_plain = [*pipeline.named_steps] == ["scale", "classify"]
    return is_plain and isinstance(pipeline[-1], XGBClassifier)


def fit_in_parts(
    pipeline: Pipeline, X: PartitionedFeatures, y: np.ndarray, weight: np.ndarray
) -> Pipeline:
    """Fit a clone of a pipeline that `fits_in_parts`.

    Parameters
    ----------
    pipeline : Pipeline
        From `make_pipeline`; stays unfitted.
    X : PartitionedFeatures of n_samples rows
    y, weight : array, shape (n_samples,)
    """
    of_fold = np.isin(X.sample.index, X.index[X.kept])
    scale, classifier = clone(pipeline["scale"]).fit(X.sample[of_fold]), clone(pipeline["classify"])
    params, rounds = classifier.get_xgb_params(), classifier.get_num_boosting_rounds()
    with tempfile.TemporaryDirectory(prefix="hvs-xgboost-", ignore_cleanup_errors=True) as folder:
        parts = _Parts(X, {"label": y, "weight": weight}, scale.transform, f"{folder}/")
        matrix = ExtMemQuantileDMatrix(parts, nthread=classifier.n_jobs, max_bin=classifier.max_bin)
        trees = train(params, matrix, num_boost_round=rounds).save_raw()
        del matrix, parts  # closes their files before the folder is removed
    classifier.load_model(trees)
    classifier.set_params(**pipeline["classify"].get_params())  # loading changes them
    return Pipeline([("scale", scale), ("classify", classifier)])


class _Parts(DataIter):
    """Iterator that hands XGBoost the parts one by one, as often as it asks."""

    def __init__(self, X: PartitionedFeatures, of_rows: dict, transform: Callable, prefix: str):
        super().__init__(cache_prefix=prefix)
        self.X, self.of_rows, self.transform = X, of_rows, transform
        self.reset()

    def reset(self) -> None:
        self.ahead, self.done = self.X.parts(), 0

    def next(self, input_data: Callable) -> bool:
        for part in self.ahead:
            rows = slice(self.done, self.done + len(part))
            self.done = rows.stop
            of_rows = {name: values[rows] for name, values in self.of_rows.items()}
            input_data(data=self.transform(part), **of_rows)
            return True
        return False
