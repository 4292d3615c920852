"""XGBoost on more training rows than memory should hold: it gets some partitions after the others.

The features stay on disk, in the cache, and what XGBoost makes of them in its external memory. The
fitted pipeline is one like any other, and the same wherever and on how many machines it is fitted:
`xgboost.dask` would share one fit among machines, but draws other rows each time.
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
    """Features of training rows, of which a few partitions' are in memory at a time.

    Attributes
    ----------
    fleet : Fleet
    index : array of int, shape (n_training_rows,)
        Numbers of all training rows in the fleet, ascending.
    kept : array of bool, shape (n_training_rows,)
        Which of them these are.
    drop_sensors : float
        Share of the rows from which each kind of sensor is dropped, see `with_sensors_dropped`.
    seed : int
        Of what is dropped.
    memory : joblib.Memory or None
        Keeps the features; without it each pass over the rows builds them again.
    """

    fleet: Fleet
    index: np.ndarray
    kept: np.ndarray
    drop_sensors: float
    seed: int
    memory: joblib.Memory | None

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __getitem__(self, kept: np.ndarray) -> PartitionedFeatures:
        """Choose rows by a mask over all training rows."""
        return replace(self, kept=kept)

    def parts(self) -> Iterator[pd.DataFrame]:
        """Yield the features, about `ROWS_IN_PARTS` rows at a time."""
        build = check_memory(self.memory).cache(_features, ignore=["fleet", "own"])
        bounds, part, n_rows = np.searchsorted(self.index, self.fleet.starts), [], 0
        for partition, start in enumerate(self.fleet.starts[:-1]):
            rows = slice(*bounds[partition : partition + 2])
            own = partition, self.index[rows] - start, self.drop_sensors, self.seed
            if self.kept[rows].any():
                features = build(self.fleet, own, cache.key(self.fleet.sha256, *own))
                part.append(features[self.kept[rows]])
                n_rows += len(part[-1])
            if n_rows >= ROWS_IN_PARTS or (part and partition == len(self.fleet.paths) - 1):
                yield pd.concat(part)
                part, n_rows = [], 0


def _features(fleet: Fleet, own: tuple, key: str) -> pd.DataFrame:
    """Build the features of some rows of a partition; `key` stands for the other arguments."""
    partition, rows, share, seed = own
    X = build_features(fleet.telemetry(partition)).iloc[rows]
    return with_sensors_dropped(X, share=share, seed=[seed, partition])


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
    X : PartitionedFeatures, of n_samples
    y, weight : array, shape (n_samples,)
    """
    scale, classifier = clone(pipeline["scale"]), clone(pipeline["classify"])
    for part in X.parts():
        with np.errstate(invalid="ignore"):
            scale.partial_fit(part)
        # Of a sensor that the first parts lack, scikit-learn would never know a mean.
        scale.mean_, scale.var_ = np.nan_to_num(scale.mean_), np.nan_to_num(scale.var_)
    bins = {"max_bin": classifier.max_bin} if classifier.max_bin else {}
    params, rounds = classifier.get_xgb_params(), classifier.get_num_boosting_rounds()
    with tempfile.TemporaryDirectory(dir=cache.folder()) as folder:  # /tmp may be in memory
        parts = _Parts(X, y, weight, scale.transform, prefix=f"{folder}/")
        matrix = ExtMemQuantileDMatrix(parts, nthread=classifier.n_jobs, **bins)
        trees = train(params, matrix, num_boost_round=rounds).save_raw()
        del matrix, parts  # and their files, before the folder
    classifier.load_model(trees)
    return Pipeline([("scale", scale), ("classify", classifier)])


class _Parts(DataIter):
    """Hands XGBoost one part after the other, as often as it asks."""

    def __init__(
        self,
        X: PartitionedFeatures,
        y: np.ndarray,
        weight: np.ndarray,
        transform: Callable,
        *,
        prefix: str,
    ):
        super().__init__(cache_prefix=prefix)
        self.X, self.y, self.weight, self.transform = X, y, weight, transform
        self.reset()

    def reset(self) -> None:
        self.ahead, self.done = self.X.parts(), 0

    def next(self, input_data: Callable) -> bool:
        for part in self.ahead:
            rows = slice(self.done, self.done + len(part))
            self.done = rows.stop
            input_data(data=self.transform(part), label=self.y[rows], weight=self.weight[rows])
            return True
        return False
