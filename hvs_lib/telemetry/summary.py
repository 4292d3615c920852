"""What telemetry holds, in numbers and in words."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.project import did_you_mean
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.quality import describe, sampling_interval_s

NO_FAULTS = (
    f"without {col.EVENT_ID} faults cannot be identified: every alarm that is neither early nor "
    "timely counts as a nuisance"
)


def summarize(telemetry: pd.DataFrame, missing: Mapping[str, float] | None = None) -> dict:
    """Describe telemetry in numbers.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        As `load_telemetry` returns it.
    missing : mapping of str to float, optional
        Share of missing readings of each sensor; by default counted in the table, whose sensor
        columns are not needed otherwise.

    Returns
    -------
    dict
        `rows, sites, racks, modules, start, end, hours, interval_s, missing` (share of rows per
        sensor), `sensors_absent, ignored_columns, warnings`; with a label also `events,
        event_racks, labelled_rows, prevalence`; with Event_ID also `look_alikes`: the ids without
        a labelled row; with Event_Type also `event_types`: ids per type.

    Examples
    --------
    >>> found = summarize(telemetry)
    >>> found["racks"], found["events"], found["event_types"]
    (1, 1, {'hot_day': 1, 'hvac_outage': 1, 'sudden_short': 1})
    """
    times = telemetry[col.TIMESTAMP]
    interval_s = sampling_interval_s(telemetry)
    span_s = (times.max() - times.min()).total_seconds() + interval_s
    missing = telemetry[col.SENSORS].isna().mean() if missing is None else missing
    warnings = describe(telemetry.attrs.get("findings", []), len(telemetry))
    if col.LABEL in telemetry and not telemetry.get(col.EVENT_ID, pd.Series()).notna().any():
        warnings.append(NO_FAULTS)
    summary = {
        "rows": len(telemetry),
        "sites": telemetry[col.SITE].nunique(),
        "racks": int(rack_codes(telemetry).max()) + 1,
        "modules": int(module_codes(telemetry).max()) + 1,
        "start": times.min().isoformat(),
        "end": times.max().isoformat(),
        "hours": span_s / 3600,
        "interval_s": interval_s,
        "missing": {name: float(share) for name, share in missing.items()},
        "sensors_absent": [name for name, share in missing.items() if share == 1],
        "ignored_columns": list(telemetry.attrs.get("ignored_columns", [])),
        "warnings": warnings,
    }
    if col.LABEL not in telemetry:
        return summary
    codes = event_codes(telemetry)
    labelled = codes >= 0
    summary |= {
        "events": int(codes.max(initial=-1)) + 1,
        "event_racks": len(np.unique(rack_codes(telemetry)[labelled])),
        "labelled_rows": int(labelled.sum()),
        "prevalence": float(labelled.mean()),
    }
    if col.EVENT_ID in telemetry:
        ids = telemetry[col.EVENT_ID]
        summary["look_alikes"] = ids.nunique() - ids[labelled].nunique()
    if {col.EVENT_ID, col.EVENT_TYPE} <= set(telemetry.columns):
        named = telemetry[[col.EVENT_TYPE, col.EVENT_ID]].dropna().drop_duplicates()
        counts = named[col.EVENT_TYPE].astype("str").value_counts()
        summary["event_types"] = counts.sort_index().to_dict()
    return summary


def format_summary(summary: dict) -> str:
    """Lay out what `summarize` returns for a terminal, one line per fact.

    Examples
    --------
    >>> print(format_summary(summarize(telemetry)).splitlines()[0])
    rows             5,768
    """
    facts = [(name, f"{summary[name]:,}") for name in ("rows", "sites", "racks", "modules")]
    hours = f"{summary['hours']:.2f} h"
    facts.append(("time", f"{summary['start']} to {summary['end']} UTC, {hours}"))
    facts.append(("interval", f"{summary['interval_s']:g} s"))
    if "events" in summary:
        rows, share = summary["labelled_rows"], summary["prevalence"]
        facts.append(("events", f"{summary['events']:,} in {summary['event_racks']:,} racks"))
        facts.append(("prevalence", f"{share:.3%} ({rows:,} rows with label 1)"))
    else:
        facts.append(("events", "unknown, the file has no label"))
    if "look_alikes" in summary:
        count = summary["look_alikes"]
        facts.append(("look-alikes", f"{count:,} (event ids without a labelled row)"))
    if kinds := summary.get("event_types"):
        facts.append(("event types", ", ".join(f"{kind} {n}" for kind, n in kinds.items())))
    absent, ignored = summary["sensors_absent"], summary["ignored_columns"]
    for name, share in summary["missing"].items():
        if share > 0 and name not in absent:
            facts.append(("missing", f"{name} {share:.2%}"))
    for name in absent:
        question = did_you_mean(name, ignored)
        facts.append(("absent", name + (f" ({question})" if question else "")))
    if ignored:
        facts.append(("ignored columns", ", ".join(ignored)))
    facts += [("warning", warning) for warning in summary["warnings"]]
    return "\n".join(f"{name:<17}{value}" for name, value in facts)
