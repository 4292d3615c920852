"""Model files: what they may hold, and how to load one without executing its code.

A store's files may come from anybody who can write to its artifacts. So files are loaded with
skops, with the types below and no other; a pickle, or a model with code of its own, is refused.
`mlflow.sklearn.load_model`, `mlflow.pyfunc` and ``mlflow models serve`` trust whatever the file
asks for: use them only on your own store.
"""

import json
from pathlib import Path
from typing import Any

import mlflow
import yaml
from sklearn.base import BaseEstimator

from hvs_lib.project import HvsError
from hvs_lib.tracking.store import first_line

SENSOR_SETS_FILE = "sensor_sets.json"

# Types that the workbook's pipelines hold beyond those skops trusts. None executes code on loading.
TRUSTED_TYPES = frozenset(
    {
        "hvs_lib.evaluation.calibration.CalibratedClassifier",
        "imblearn.combine._smote_enn.SMOTEENN",
        "imblearn.combine._smote_tomek.SMOTETomek",
        "imblearn.over_sampling._adasyn.ADASYN",
        "imblearn.over_sampling._smote.base.SMOTE",
        "imblearn.over_sampling._smote.filter.BorderlineSMOTE",
        "imblearn.pipeline.Pipeline",
        "imblearn.under_sampling._prototype_selection._edited_nearest_neighbours."
        "EditedNearestNeighbours",
        "imblearn.under_sampling._prototype_selection._random_under_sampler.RandomUnderSampler",
        "imblearn.under_sampling._prototype_selection._tomek_links.TomekLinks",
        "numpy.dtype",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.tree._tree.Tree",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
    }
)


class ModelError(HvsError):
    """A model is missing or refused; the message is for the user."""


def types_to_trust(model: BaseEstimator) -> list[str]:
    """Return the types of a model that skops must be told to trust.

    Raises
    ------
    ModelError
        If the workbook would refuse to load the model again.

    Examples
    --------
    >>> types_to_trust(assessment.model)
    ['imblearn.pipeline.Pipeline', 'xgboost.core.Booster', 'xgboost.sklearn.XGBClassifier']
    """
    import skops.io  # takes half a second

    return _checked(skops.io.get_untrusted_types(data=skops.io.dumps(model)), "the model to log")


def load_model(uri: str | Path) -> tuple[BaseEstimator, dict[str, Any]]:
    """Load a model logged by a notebook, with its calibration and threshold.

    Parameters
    ----------
    uri : str or Path
        URI of a model in the store that MLflow points at, such as ``runs:/<run id>/model``, or the
        folder of a saved model.

    Returns
    -------
    model : estimator
    metadata : dict
        Includes ``sensor_sets`` if the model has become the champion.

    Raises
    ------
    ModelError
        If there is no such model, or its file is not of the kind that the workbook logs.

    Examples
    --------
    >>> model, metadata = load_model(f"runs:/{run_id}/model")
    >>> model.threshold == metadata["alarm_threshold"]
    True
    """
    import skops.io  # takes half a second

    try:
        folder = Path(mlflow.artifacts.download_artifacts(str(uri)))
    except Exception as error:  # each store's package, such as boto3, has its own errors
        raise ModelError(f"there is no model {uri}: {first_line(error)}") from error
    try:
        # Not mlflow.models.Model.load, which unescapes the percent signs of a path.
        described = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
        flavors = described.get("flavors", {})
        flavor = flavors.get("sklearn", {})
        name = str(flavor.get("pickled_model", ""))
        if flavor.get("serialization_format") != "skops" or not name or Path(name).name != name:
            raise ModelError(
                f"the model {uri} is refused: it is not stored as skops, and loading another "
                "format can execute code. Log it again with the workbook."
            )
        if any(each.get("code") for each in flavors.values()):
            raise ModelError(f"the model {uri} is refused: it brings code of its own.")
        types = _checked(skops.io.get_untrusted_types(file=folder / name), f"the model {uri}")
        metadata = dict(described.get("metadata") or {})
        if (folder / SENSOR_SETS_FILE).exists():
            metadata["sensor_sets"] = json.loads((folder / SENSOR_SETS_FILE).read_text("utf-8"))
        return skops.io.load(folder / name, trusted=types), metadata
    except ModelError:
        raise
    except Exception as error:  # any error that a damaged or forged file causes
        raise ModelError(f"the model {uri} cannot be read: {error}") from error


def _checked(types: list[str], what: str) -> list[str]:
    strange = sorted(set(types) - TRUSTED_TYPES)
    if strange:
        raise ModelError(
            f"{what} is refused: it holds types that the workbook does not use, "
            f"{', '.join(strange)}. If you trust them, add them to TRUSTED_TYPES in "
            "hvs_lib/tracking/model_files.py."
        )
    return types
