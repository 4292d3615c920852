"""The same figures on every x86-64 processor: digests under different instruction sets."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from hvs_lib.simulator.fleet import simulate_site

# numpy's dispatch groups beyond its baseline; a setting leaves some of them out
GROUPS = ("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR")
SETTINGS = {
    "numpy without the newest AVX-512": {"NPY_DISABLE_CPU_FEATURES": "AVX512_ICL AVX512_SPR"},
    "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
    "numpy without AVX2": {"NPY_DISABLE_CPU_FEATURES": " ".join(GROUPS)},
    "nothing newer than SSE": {
        "NPY_DISABLE_CPU_FEATURES": " ".join(GROUPS),
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
    },
}

PROGRAM = """
import hvs_lib
import json
from hvs_lib import columns as col, models
from hvs_lib.features import build_features
from hvs_lib.simulator.fleet import simulate_site
from hvs_lib.evaluation.splits import thin_rows
import joblib
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_info
from xgboost import XGBClassifier

telemetry, _ = simulate_site(3, 6.0, 42)
X, y = build_features(telemetry), telemetry[col.LABEL].to_numpy()
strides = {"normal_stride": 18, "hazard_stride": 3}
rows = thin_rows(telemetry, np.arange(len(telemetry)), **strides)
X, y = X.iloc[rows], y[rows]
weight = np.where(y == 1, 3.0, 18.0)
digests = {"telemetry": joblib.hash(telemetry), "features": joblib.hash(X.to_numpy())}
digests["training rows"] = joblib.hash(X.to_numpy())
classifiers = {
    "XGBoost": XGBClassifier(**models.XGBOOST_BY_HAND, random_state=42, n_jobs=1),
    "random forest": RandomForestClassifier(20, min_samples_leaf=20, random_state=42),
}
for name, classifier in classifiers.items():
    model, _ = models.fit(models.make_pipeline(classifier), X, y, weight)
    digests |= {name: joblib.hash(model), "scaler": joblib.hash(model[:-1].transform(X))}
found = np._core._multiarray_umath.__cpu_features__
blas = {info["architecture"] for info in threadpool_info() if info["internal_api"] == "openblas"}
print(json.dumps([digests, [name for name, there in found.items() if there], sorted(blas)]))
"""


def run_with(setting):
    """Return the digests, numpy's CPU features and OpenBLAS's kernels of a run of PROGRAM."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | setting, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(
    "X86_V3" not in np._core._multiarray_umath.__cpu_dispatch__, reason="not an x86 numpy >= 2.4"
)
def test_digests_do_not_follow_the_instruction_set():
    expected, features, kernels = run_with({})
    assert len(expected) == 6
    for name, setting in SETTINGS.items():
        digests, found, blas = run_with(setting)
        # the setting took effect: exactly the groups it names are gone
        assert set(found) & set(GROUPS) == set(features) & set(GROUPS) - set(
            setting["NPY_DISABLE_CPU_FEATURES"].split()
        )
        assert (blas != kernels) == ("OPENBLAS_CORETYPE" in setting)
        assert digests == expected, name


def test_telemetry_does_not_follow_the_last_bits_of_numpy(monkeypatch):
    """Stands for processors that are not at hand: their kernels differ by a few last bits."""
    plain, _ = simulate_site(3, 6.0, 42)  # one of its racks is sensitive; and all is compiled now
    rng = np.random.default_rng(0)

    def shaken(function):
        def shake(*args):
            value = function(*args)
            return value * (1.0 + 2.0**-52 * rng.integers(-2, 3, np.shape(value)))

        return shake

    for name in ("exp", "expm1", "log", "sin", "power"):
        monkeypatch.setattr(np, name, shaken(getattr(np, name)))
    again, _ = simulate_site(3, 6.0, 42)
    pd.testing.assert_frame_equal(again, plain, check_exact=True)
