"""Score raw telemetry with the registered champion: rows in, alarms out, rack by rack."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from xgboost import DMatrix, XGBClassifier

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, AlarmTrack, outcomes_of, raise_alarms
from hvs_lib.evaluation.calibration import CalibratedClassifier, limit_log_odds
from hvs_lib.evaluation.outcomes import OUTCOMES, Outcomes
from hvs_lib.evaluation.ranges import ranges_from_json
from hvs_lib.evaluation.scores import IS_FAULT, scores_frame
from hvs_lib.features import (
    NEEDED,
    NO_SET,
    SENSOR_SETS,
    by_sensor_set,
    check_interval,
    sensor_sets_of,
)
from hvs_lib.models import FIXED_LIMITS, before_scoring, fixed_threshold_score, score_in_parts
from hvs_lib.progress import ProgressBar
from hvs_lib.project import whole_file
from hvs_lib.report.tables import cell
from hvs_lib.telemetry.codes import event_codes
from hvs_lib.telemetry.files import DataError, check_output
from hvs_lib.telemetry.quality import Finding, describe, sampling_interval_s
from hvs_lib.telemetry.read import read_racks
from hvs_lib.tracking.champion import CHAMPION, REGISTERED_MODEL
from hvs_lib.tracking.model_files import ModelError, load_model
from hvs_lib.tracking.runs import read_alarm
from hvs_lib.tracking.store import without_password

CHAMPION_URI = f"models:/{REGISTERED_MODEL}@{CHAMPION}"
N_TOP = 3
COLUMNS = [col.SITE, col.RACK, col.MODULE, "alarm_start", "rule", "score"]
COLUMNS += [name for k in range(1, N_TOP + 1) for name in (f"feature_{k}", f"contribution_{k}")]
FIXED = "fixed thresholds"
RAISED_BY = ("model", FIXED)
OUTCOME_COLUMNS = ["outcome", col.EVENT_ID, "lead_time_min"]  # only for telemetry with a label


@dataclass(frozen=True)
class Champion:
    """A logged model, ready to score, with its alarm and properties of its training telemetry."""

    model: CalibratedClassifier
    alarm: Alarm
    intervals_s: tuple[float, float]  # shortest and longest between two rows of a module [s]
    fault_types: frozenset[str] = frozenset()  # causes of faults
    sets: Mapping[str, dict[str, float]] = field(default_factory=dict)  # of a champion only
    ranges: pd.DataFrame = field(default_factory=pd.DataFrame)  # of its features in training
    budget: float = np.nan  # of nuisance alarms [1/d]; NaN where missed events were weighed
    data_sha256: str = ""  # of the training telemetry

    def alarms(self, sensor_set: str) -> tuple[Alarm, Alarm]:
        """Return the alarms of `RAISED_BY` at sites with one of `SENSOR_SETS`."""
        known = self.sets.get(sensor_set)
        own = replace(self.alarm, threshold=known["threshold"]) if known else self.alarm
        return own, Alarm(AlarmRule(), 1.0)

    def outcomes(self, telemetry: pd.DataFrame, y_score: np.ndarray) -> Outcomes:
        """Return the outcomes of scored racks; the causes of faults are those of its training."""
        frame = scores_frame(telemetry, np.arange(len(telemetry)), y_score)
        if IS_FAULT in frame:  # regardless of other racks
            frame[IS_FAULT] = frame[col.EVENT_TYPE].isin(self.fault_types) & (col.LABEL in frame)
        return outcomes_of(frame, label=False)


@dataclass
class Tally:
    """What was scored so far, and the warnings raised meanwhile."""

    racks: int = 0
    rows: int = 0
    alarms: Counter = field(default_factory=Counter)  # by rule
    sets: Counter = field(default_factory=Counter)  # racks with each sensor set
    outcomes: list[str] = field(default_factory=list)  # of the alarms, if there is a label
    warnings: list[str] = field(default_factory=list)


def is_in_store(uri: str) -> bool:
    """Tell the URI of a model in the store from a folder or another address."""
    return uri.startswith(("models:", "runs:"))


def load_champion(uri: str = CHAMPION_URI) -> Champion:
    """Load a model logged by a notebook, see `load_model`; by default the champion.

    Raises
    ------
    ModelError
        If there is none, it is refused, or it was not logged by the workbook.

    Examples
    --------
    >>> load_champion().alarm == assessment.alarm
    True
    """
    try:
        fixed, metadata = load_model(uri)
    except ModelError as error:
        if not is_in_store(uri):
            raise
        store = without_password(mlflow.get_registry_uri())
        raise ModelError(
            f"{error}\nThe store is {store}: `hvs run` trains and registers "
            "one, or set MLFLOW_TRACKING_URI (MLFLOW_REGISTRY_URI, if you use it) to the store "
            "that has it."
        ) from error
    needed = {"alarm_threshold", "intervals_s", "fault_types", "training_ranges", "data_sha256"}
    if missing := ", ".join(sorted(needed - metadata.keys())):
        raise ModelError(
            f"the model {uri} lacks {missing}: name another, or run the notebooks again."
        )
    return Champion(
        model=fixed.estimator.estimator,
        alarm=read_alarm(metadata),
        intervals_s=tuple(metadata["intervals_s"]),
        fault_types=frozenset(json.loads(metadata["fault_types"])),
        sets=metadata.get("sensor_sets", {}),
        ranges=ranges_from_json(metadata["training_ranges"]),
        budget=metadata.get("max_nuisance_alarms_per_site_day", np.nan),
        data_sha256=metadata["data_sha256"],
    )


def score_file(
    path: str | Path,
    output: str | Path,
    champion: Champion,
    *,
    columns: str | Path = "",
    keep_fill_values: bool = False,
) -> Tally:
    """Write the alarms raised on a file's telemetry to a CSV file, under a progress bar.

    The telemetry, CSV or Parquet, may be larger than memory unless `columns` names a map, as for
    `load_telemetry`. The output is sorted by site, rack, module and time; it appears when complete
    and replaces an older one. A label is optional; with one, each alarm gets its outcome.

    Raises
    ------
    DataError
        If the telemetry breaks a rule of the table, or the output cannot be written or would
        overwrite anything but older alarms.
    """
    output = Path(output).resolve()
    check_output(output, (".csv",), not_over=Path(path))
    tally, findings, intervals_s, judged, n_events, n_rows = Tally(), [], [], [], 0, 0
    parts = read_racks(
        path,
        columns=columns,
        keep_fill_values=keep_fill_values,
        then=partial(_score_part, champion),
        n_jobs=1,  # more racks at once would need more memory
    )
    with whole_file(output) as unfinished, closing(parts), ProgressBar(100, "percent") as bar:
        for share, part in parts:
            findings += part.findings
            n_rows += part.n_rows
            intervals_s.append(part.interval_s)
            tally.sets.update(part.sets)
            tally.rows += part.n_scored
            n_events += part.n_events
            if part.n_scored:
                # Six digits: the threads of a forest add up in any order.
                form = {"header": not tally.racks, "index": False, "float_format": "%.6g"}
                part.alarms.to_csv(unfinished, mode="a", **form)
                tally.racks += len(part.sets) - part.sets.count(NO_SET)
                tally.alarms.update(part.alarms["rule"])
                judged += [part.alarms] if "outcome" in part.alarms else []
            bar.update(100 * share - bar.done)
        if not tally.racks:
            raise DataError(f"{path} cannot be scored", [NEEDED])
        for rule in RAISED_BY if judged else ():
            alarms = pd.concat(judged)
            tally.outcomes += _outcomes_told(rule, alarms[alarms["rule"] == rule], n_events)
        if untold := [n for n in tally.sets if SENSOR_SETS.get(n) and n not in champion.sets]:
            tally.warnings.append(
                f"the model has no threshold for racks with {', '.join(untold)}: that for all "
                "sensors is used, with which there may be no alarms, or alarms all the time"
            )
        tally.warnings += _interval_notes(float(np.median(intervals_s)), champion)
    tally.warnings += describe(findings, n_rows)
    return tally


@dataclass
class _Part:
    """Results for a few racks of a file."""

    n_rows: int
    findings: list[Finding]
    interval_s: float
    sets: list[str]
    n_scored: int = 0
    n_events: int = 0
    alarms: pd.DataFrame | None = None


def _score_part(champion: Champion, _: int, telemetry: pd.DataFrame) -> _Part:
    """Score a few racks, see `read_racks`."""
    findings, interval_s = telemetry.attrs["findings"], sampling_interval_s(telemetry)
    part = _Part(len(telemetry), findings, interval_s, sensor_sets_of(telemetry))
    found = []
    for sensor_set, own in by_sensor_set(telemetry, part.sets):
        if sensor_set == NO_SET:
            continue
        found.append(score_racks(own, champion, sensor_set))
        part.n_scored += len(own)
        part.n_events += int(event_codes(own).max()) + 1 if col.LABEL in own else 0
    if found:
        part.alarms = pd.concat(found).sort_values(COLUMNS[:4], kind="stable")
    return part


def _outcomes_told(rule: str, alarms: pd.DataFrame, n_events: int) -> list[str]:
    """Report the outcomes of a rule's alarms, the events it catches and their median lead time."""
    counts = alarms["outcome"].value_counts().reindex(OUTCOMES, fill_value=0)
    events = [col.SITE, col.RACK, col.MODULE, col.EVENT_ID]
    lead = alarms.dropna(subset="lead_time_min").groupby(events)["lead_time_min"].max()
    caught = f"{len(lead)} of {n_events} events caught"
    early = f", median lead time {lead.median():.1f} min" if len(lead) else ""
    told = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES)
    return [f"{rule}: {told}", f"{rule}: {caught}{early}"]


def sensor_sets_told(racks: Mapping[str, int], champion: Champion | None) -> list[str]:
    """Report how many racks have each sensor set, and what to expect of the champion there."""
    lines = []
    for name, count in racks.items():
        line = f"sensors: {name} ({count} rack{'s' * (count != 1)})"
        if champion and name in champion.sets:
            found = champion.sets[name]
            recall, lead = cell(found, "event_recall", 2), found.get("lead_time_median_min", np.nan)
            line += f"; events caught there out of fold: {recall}, median lead {lead:.0f} min"
        if missing := ", ".join(SENSOR_SETS.get(name, ())):
            line += f"; not used, or absent: {missing}"
        if name == NO_SET:
            line += f": left out, since {col.TEMP_AVG} and {col.TEMP_MAX} are needed"
        lines.append(line)
    return lines


def _interval_notes(interval_s: float, champion: Champion) -> list[str]:
    """Warn if the telemetry has another sampling rate than the model's training telemetry."""
    notes, (shortest, longest) = check_interval(interval_s), champion.intervals_s
    if interval_s and not shortest / 2 <= interval_s <= longest * 2:
        rule, trained = champion.alarm.rule, f"{shortest:g}"
        trained += f" to {longest:g}" if longest > shortest else ""
        notes.append(
            f"the model was trained on a row every {trained} s, and this file has one every "
            f"{interval_s:g} s: an alarm, {rule.k} of {rule.n} rows, covers another time span, and "
            "scores are less reliable"
        )
    return notes


def score_racks(telemetry: pd.DataFrame, champion: Champion, sensor_set: str) -> pd.DataFrame:
    """List the alarms of whole, sorted racks with the same sensors, shape (n_alarms, 12 or 15).

    The columns are `COLUMNS`: site, rack, module, start, the rule that raises it (the model's alarm
    or the fixed thresholds), score at the start, and the three features that contribute most: each
    with its contribution, see `contributions`, or its ratio to the limit. With a label, also
    `OUTCOME_COLUMNS`, as from `raise_alarms`; faults are the causes that were faults in the model's
    training. Ids that a spreadsheet would take for a formula are prefixed with an apostrophe.
    """
    ids, alarms = telemetry[col.KEYS], champion.alarms(sensor_set)
    scores, reasons, first = [], ([], []), 0
    for whole, X, y_score in score_in_parts(champion.model, telemetry, sensor_set):
        scores.append((y_score, fixed_threshold_score(whole)))
        rows = np.arange(first, first := first + len(X))
        for k, alarm in enumerate(alarms):  # keeps only the features of its rows
            outcomes = outcomes_of(scores_frame(ids, rows, scores[-1][k]), label=False)
            start = AlarmTrack(outcomes, alarm.rule).alarms(alarm.threshold)
            found = whole[[*FIXED_LIMITS]].iloc[start] / [*FIXED_LIMITS.values()]
            if k == 0 and len(start):
                found = contributions(champion.model, X.iloc[start])
            reasons[k].append(_top_features(found))
    tables = []
    for rule, alarm, y_score, top in zip(
        RAISED_BY, alarms, np.hstack(scores), reasons, strict=True
    ):
        raised = raise_alarms(champion.outcomes(telemetry, y_score), alarm)
        table = raised[col.KEYS[:3]].astype("str").apply(_as_text)
        table["alarm_start"] = raised[col.TIMESTAMP].dt.strftime("%Y-%m-%dT%H:%M:%S")
        table["rule"], table["score"] = rule, raised["y_score"]
        table = table.join(pd.concat(top, ignore_index=True))
        if col.LABEL in telemetry:
            table = table.join(raised[OUTCOME_COLUMNS])
            table[col.EVENT_ID] = _as_text(table[col.EVENT_ID].astype("str"))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _as_text(ids: pd.Series) -> pd.Series:
    return ids.where(~ids.str.startswith(("=", "+", "-", "@", "\t", "\r")), "'" + ids)


def contributions(model: CalibratedClassifier, X: pd.DataFrame) -> pd.DataFrame:
    """Return how much each feature raises the score of each row, before calibration.

    Parameters
    ----------
    model : CalibratedClassifier
        Calibrates a pipeline with XGBoost, a random forest or logistic regression.
    X : DataFrame, shape (n_samples, n_features)

    Returns
    -------
    DataFrame, shape (n_samples, n_features), plus a column for the fixed limits if they are used
        SHAP values of the log-odds for XGBoost; coefficient times scaled value for logistic
        regression (also log-odds); for a forest the change of the mean probability along the paths.

    References
    ----------
    Lundberg et al., Nature Machine Intelligence 2 (2020) 56-67 (tree SHAP); Saabas, "Interpreting
    random forests" (2014) (paths).
    """
    pipeline = model.classifier
    values = np.asarray(before_scoring(pipeline).transform(X), dtype=np.float32)
    classifier = pipeline[-1]
    if isinstance(classifier, XGBClassifier):
        found = classifier.get_booster().predict(DMatrix(values), pred_contribs=True)[:, :-1]
    elif isinstance(classifier, RandomForestClassifier):
        paths = [_path_contributions(tree.tree_, values) for tree in classifier.estimators_]
        found = np.mean(paths, axis=0)
    else:
        found = values * classifier.coef_[0]
    found = pd.DataFrame(found, columns=X.columns)
    if model.limit_power:
        found["fixed limits"] = limit_log_odds(X, model.limit_power)
    return found


def _path_contributions(tree, values: np.ndarray) -> np.ndarray:
    """Credit each split's feature with the change of probability from a node to its child."""
    share = tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1)
    splits = np.flatnonzero(tree.feature >= 0)
    change = np.zeros((tree.node_count, values.shape[1]))
    for child in (tree.children_left[splits], tree.children_right[splits]):
        change[child, tree.feature[splits]] = share[child] - share[splits]
    return tree.decision_path(values) @ change


def _top_features(found: pd.DataFrame) -> pd.DataFrame:
    """Name the features that contribute most to each row, with their contributions."""
    order = np.argsort(-found.to_numpy(), axis=1, kind="stable")
    largest = np.take_along_axis(found.to_numpy(), order, axis=1)
    columns = {}
    for k in range(N_TOP):
        columns[f"feature_{k + 1}"] = found.columns.to_numpy()[order[:, k]]
        columns[f"contribution_{k + 1}"] = largest[:, k]
    return pd.DataFrame(columns)
