"""Early warning of thermal runaway in high-voltage battery storage: the workbook's library.

Import it before numpy, scikit-learn, XGBoost and MLflow: they read these settings once, when they
load.
"""

import os
from importlib.metadata import version

__version__ = version("hvs-workbook")

_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: with another busy process on the cores an
    # XGBoost fit is otherwise many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Linear algebra adds up in an order that depends on the number of its threads, which
    # scikit-learn's neighbours change for a while, or for good where folds run side by side.
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # A headless log and a committed notebook hold results, not MLflow's advice.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
