"""Field trial: the champion against the fixed thresholds on telemetry it has not seen.

Telemetry is scored partition by partition; only alarms and some counts are kept of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import AlarmTrack, Sweep, raise_alarms
from hvs_lib.evaluation.metrics import event_metrics
from hvs_lib.evaluation.outcomes import OUTCOMES
from hvs_lib.evaluation.ranges import count_outside
from hvs_lib.evaluation.uncertainty import poisson_interval
from hvs_lib.features import NEEDED, NO_SET, by_sensor_set, sensor_sets_of
from hvs_lib.models import fixed_threshold_score, score_in_parts
from hvs_lib.report.plots import hours_around
from hvs_lib.report.tables import cell
from hvs_lib.score import FIXED, Champion
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.fleet import Fleet
from hvs_lib.telemetry.quality import sampling_interval_s

CHAMPION = "champion"
RULES = (CHAMPION, FIXED)
MOST_OUTSIDE = 0.05  # share of the time allowed outside the range of a feature
MOST_RATIO = 2.0  # between two sampling intervals


@dataclass(frozen=True)
class Tried:
    """What the champion and the fixed thresholds do on telemetry.

    Attributes
    ----------
    alarms : DataFrame, shape (n_alarms, 7 or 10)
        As from `raise_alarms`, with the rule that raises each.
    swept : dict of str to Sweep
        What the threshold of each rule raises; without a label, every alarm counts as nuisance.
    module_days : float
        Observed time of all modules [d].
    outside : DataFrame, shape (n_features, 3)
        From `count_outside`, as time [s]: each row counts for one sampling interval.
    racks : DataFrame, shape (n_racks, 5)
        Site_ID, Rack_ID, modules, sensor_set and interval_s [s] of each rack.
    """

    alarms: pd.DataFrame
    swept: dict[str, Sweep]
    module_days: float
    outside: pd.DataFrame
    racks: pd.DataFrame

    @classmethod
    def together(cls, parts: Sequence[Tried]) -> Tried:
        """Combine parts of whole racks; raise a DataError if none could be scored."""
        scored = [part for part in parts if part.swept]
        if not scored:
            raise DataError("The telemetry cannot be scored", [NEEDED])
        alarms = pd.concat([part.alarms for part in scored])
        return cls(
            alarms.sort_values([col.TIMESTAMP, *col.KEYS[:3]], kind="stable", ignore_index=True),
            {rule: Sweep.over_all([part.swept[rule] for part in scored]) for rule in RULES},
            sum(part.module_days for part in scored),
            sum(part.outside for part in scored),
            pd.concat([part.racks for part in parts], ignore_index=True),
        )

    @property
    def site_days(self) -> float:
        """Observed time, in days of an average site."""
        scored = self.racks[self.racks["sensor_set"] != NO_SET]
        return self.module_days * scored[col.SITE].nunique() / scored["modules"].sum()

    def metrics(self, rule: str) -> dict[str, float]:
        """Measure a rule, see `event_metrics`; without a label only its alarms_per_site_day."""
        found = event_metrics(self.swept[rule], self.site_days)
        if "outcome" in self.alarms:
            return found
        known = {name: value for name, value in found.items() if name.startswith("nuisance_")}
        return {name.removeprefix("nuisance_"): value for name, value in known.items()}

    def alarm_rates(self) -> pd.DataFrame:
        """Tabulate the alarms per site-day, by outcome and in total, shape (n_rules, 1 or 5)."""
        table = {}
        for rule in self.swept:
            own = self.alarms[self.alarms["rule"] == rule]
            counts = {"all": len(own)}
            if "outcome" in self.alarms:
                counts = {name: int((own["outcome"] == name).sum()) for name in OUTCOMES} | counts
            table[rule] = {name: self._rate(count) for name, count in counts.items()}
        return pd.DataFrame(table).T.rename_axis("alarms per site-day")

    def _rate(self, count: int) -> str:
        low, high = poisson_interval(count, self.site_days)
        return cell({"r": count / self.site_days, "r_low": low, "r_high": high}, "r", 2)


def try_fleet(fleet: Fleet, champion: Champion, *, n_jobs: int = -1) -> Tried:
    """Try the champion on a fleet, partition by partition, see `try_on`.

    Raises
    ------
    DataError
        If no rack has the temperatures that scoring needs.

    Examples
    --------
    >>> tried = try_fleet(fleet, champion)
    >>> tried.metrics(CHAMPION)["n_events"]
    8.0
    """
    found = fleet.map(lambda number: try_on(fleet.telemetry(number), champion), n_jobs=n_jobs)
    return Tried.together([part for parts in found for part in parts])


def try_on(telemetry: pd.DataFrame, champion: Champion) -> list[Tried]:
    """Score whole racks, with a label or not, with the champion and the fixed thresholds.

    Returns
    -------
    list of Tried
        One for each sensor set; for racks that cannot be scored, it holds only `racks`.
    """
    parts = []
    for sensor_set, own in by_sensor_set(telemetry, sensor_sets_of(telemetry)):
        racks = _racks(own, sensor_set)
        if sensor_set == NO_SET:
            parts.append(Tried(pd.DataFrame(), {}, 0.0, pd.DataFrame(), racks))
            continue
        scores, outside = _scored(own, champion, sensor_set)
        alarms, swept = [], {}
        for rule, alarm, y_score in zip(RULES, champion.alarms(sensor_set), scores, strict=True):
            track = AlarmTrack(champion.outcomes(own, y_score), alarm.rule)
            swept[rule] = track.sweep([alarm.threshold])
            raised = raise_alarms(track.outcomes, alarm).assign(rule=rule)
            alarms.append(raised.astype(dict.fromkeys(col.KEYS[:3], str)))
        outside *= max(racks["interval_s"].median(), 1.0)
        parts.append(Tried(pd.concat(alarms), swept, track.rows.module_days, outside, racks))
    return parts


def _racks(telemetry: pd.DataFrame, sensor_set: str) -> pd.DataFrame:
    found = [
        (str(site), str(name), rack[col.MODULE].nunique(), sensor_set, sampling_interval_s(rack))
        for (site, name), rack in telemetry.groupby([col.SITE, col.RACK], observed=True)
    ]
    columns = [col.SITE, col.RACK, "modules", "sensor_set", "interval_s"]
    return pd.DataFrame(found, columns=columns)


def _scored(
    telemetry: pd.DataFrame, champion: Champion, sensor_set: str
) -> tuple[np.ndarray, pd.DataFrame]:
    """Score each row by both of `RULES`, and count those outside the training ranges."""
    scores, counts = [], []
    for whole, X, y_score in score_in_parts(champion.model, telemetry, sensor_set):
        scores.append((y_score, fixed_threshold_score(whole)))  # of all sensors, not only the set
        counts.append(count_outside(X, champion.ranges))
    return np.hstack(scores), sum(counts)


def first_alarms(alarms: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Choose a rule's first four alarms; with a label, one of each outcome, nuisance first.

    Examples
    --------
    >>> tried = try_fleet(fleet, champion)
    >>> first_alarms(tried.alarms, CHAMPION)["outcome"].tolist()
    ['fault', 'timely', 'early']
    """
    own = alarms[alarms["rule"] == rule]
    if "outcome" in own:
        place = own["outcome"].map({name: -k for k, name in enumerate(OUTCOMES)})
        own = own.loc[place.sort_values(kind="stable").index].drop_duplicates("outcome")
    return own.head(len(OUTCOMES))


def around(fleet: Fleet, champion: Champion, alarm: pd.Series) -> pd.DataFrame:
    """Read and rescore the telemetry of an alarm's module; `alarm` is a row of ``Tried.alarms``.

    Returns
    -------
    DataFrame, shape (n_rows, n_columns)
        From `hours_around`, with the score over the threshold for both rules.

    Examples
    --------
    >>> tried = try_fleet(fleet, champion)
    >>> hours = around(fleet, champion, tried.alarms.iloc[0])
    >>> bool(hours[tried.alarms["rule"].iloc[0]].max() >= 1)
    True
    """
    is_rack = (fleet.rows[col.SITE] == alarm[col.SITE]) & (fleet.rows[col.RACK] == alarm[col.RACK])
    rows = np.flatnonzero(is_rack)
    telemetry = fleet.telemetry(fleet.partition_of(rows[0])).loc[rows].reset_index(drop=True)
    (sensor_set,) = sensor_sets_of(telemetry)
    scores, _ = _scored(telemetry, champion, sensor_set)
    for rule, alarm_of, y_score in zip(RULES, champion.alarms(sensor_set), scores, strict=True):
        telemetry[rule] = y_score / alarm_of.threshold
    return hours_around(telemetry, alarm)


def judge_trust(
    tried: Tried, champion: Champion, *, outside: float, data_sha256: str = ""
) -> pd.DataFrame:
    """Judge by stated rules whether the champion can be trusted on telemetry.

    Parameters
    ----------
    outside : float
        Largest share of the time outside the training range of a feature.
    data_sha256 : str
        SHA-256 of the telemetry.

    Returns
    -------
    DataFrame, shape (n_rules, 3)
        Indexed by rule: found and limit as text, and met. The rule on nuisance alarms needs a
        label, and a budget by which the alarm was chosen; that on events a label and events.

    Examples
    --------
    >>> tried = try_fleet(fleet, champion)
    >>> judge_trust(tried, champion, outside=0.01)["met"]
    rule
    telemetry                                 True
    racks whose sensor set was not judged    False
    most time outside a training range        True
    largest ratio of sampling intervals       True
    nuisance alarms per site-day              True
    Name: met, dtype: bool
    """
    racks, found = tried.racks["sensor_set"], tried.metrics(CHAMPION)
    is_own = data_sha256 == champion.data_sha256
    strange = int((~racks.isin([*champion.sets])).sum())
    (shortest, longest), interval = champion.intervals_s, tried.racks["interval_s"]
    ratio = float(np.maximum(interval / longest, shortest / interval).max())
    rules = [
        ("telemetry", "that of the training" if is_own else "other", "other", not is_own),
        ("racks whose sensor set was not judged", strange, 0, strange == 0),
        ("most time outside a training range", f"{outside:.1%}", f"{MOST_OUTSIDE:.0%}",
         outside <= MOST_OUTSIDE),
        ("largest ratio of sampling intervals", f"{max(ratio, 1):.3g}", f"{MOST_RATIO:g}",
         ratio <= MOST_RATIO),
    ]  # fmt: skip
    # The last two are broken only if their whole interval is on the wrong side.
    if (rate := "nuisance_alarms_per_site_day") in found and not np.isnan(champion.budget):
        rules.append((
            "nuisance alarms per site-day", cell(found, rate, 2), f"{champion.budget:g}",
            found[f"{rate}_low"] <= champion.budget,
        ))  # fmt: skip
    sets = {*racks} & {*champion.sets}
    expected = [champion.sets[name]["event_recall_low"] for name in sets]
    if "event_recall" in found and expected:
        rules.append((
            "event recall", cell(found, "event_recall", 2), f"{min(expected):.2f}",
            found["event_recall_high"] >= min(expected),
        ))  # fmt: skip
    table = pd.DataFrame(rules, columns=["rule", "found", "limit", "met"])
    return table.astype({"found": str, "limit": str, "met": bool}).set_index("rule")


def verdict(rules: pd.DataFrame) -> str:
    """Summarize in one line what `judge_trust` found.

    Examples
    --------
    >>> verdict(pd.DataFrame({"found": "0.2", "limit": "0.05", "met": False}, ["outside"]))
    'do not trust the champion on this telemetry yet; rules not met: outside 0.2'
    """
    broken = rules.index[~rules["met"]]
    if not len(broken):
        return f"trust the champion on this telemetry: all {len(rules)} rules are met"
    found = [f"{rule} {rules['found'][rule]}".strip() for rule in broken]
    return f"do not trust the champion on this telemetry yet; rules not met: {'; '.join(found)}"
