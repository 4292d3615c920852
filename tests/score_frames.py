"""How the tests build scores frames by hand."""

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import AlarmRule
from hvs_lib.evaluation.scores import IS_FAULT

START = pd.Timestamp("2025-03-01 12:00:00")
IDS = [col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE]
AT_ONCE = AlarmRule(k=1, n=1, refractory_min=0)


def module_rows(
    score, label=0, *, name="M1", rack="R1", site="S1", event=None, kind="vent", at_s=None
):
    """Rows of one module, every 10 s unless `at_s` [s] gives the times.

    `label`, `event` and `kind`, the cause of the events, are for all rows or one for each.
    """
    at_s = 10.0 * np.arange(len(score)) if at_s is None else np.asarray(at_s, dtype=float)
    rows = pd.DataFrame({col.TIMESTAMP: START + pd.to_timedelta(at_s, unit="s"), "y_score": score})
    rows["y_score"] = rows["y_score"].astype(float)
    rows[col.TIMESTAMP] = rows[col.TIMESTAMP].astype("datetime64[us]")
    rows[col.LABEL] = np.broadcast_to(np.asarray(label, dtype=np.int8), len(rows))
    ids = {col.SITE: site, col.RACK: rack, col.MODULE: name}
    event = np.broadcast_to(np.asarray(event, dtype=object), len(rows))
    kind = np.where(pd.isna(event), None, np.asarray(kind, dtype=object))
    return rows.assign(**ids, **{col.EVENT_ID: event, col.EVENT_TYPE: kind})


def frame_of(*modules):
    """Join modules into one scores frame with categories; labelled causes are faults."""
    frame = pd.concat(modules, ignore_index=True)
    faults = frame.loc[frame[col.LABEL] == 1, col.EVENT_TYPE].dropna()
    frame[IS_FAULT] = frame[col.EVENT_TYPE].isin(set(faults))
    return frame.astype({name: "category" for name in IDS})


def seconds(times):
    """Seconds since `START`."""
    return ((times - START) / pd.Timedelta(seconds=1)).tolist()
