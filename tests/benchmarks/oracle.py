"""How far an alarm can go on a fresh fleet: the champion's kind of model beside three oracles.

`make bench-oracle` fits XGBoost with the square root of the class weight, with limits and without
the build-up, as `03_smote` does, and judges it on sites of a seed that no choice has seen:

- with the instruments that the simulated sites have, where fixed thresholds are judged, too;
- with a thermistor on each cell, every other instrument as it is;
- with the simulator's hidden state in the place of all readings: the temperature of the hottest
  cell, of the average cell and of the air, the gas, the voltage, without noise, drift or gaps.

The last oracle fits nothing: it knows each fault from its first row on. The threshold for each
alarm budget is chosen on the fresh sites themselves, so that the table shows what the scores allow.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import click
import numpy as np
import pandas as pd
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, alarm_curve, event_table, outcomes_of
from hvs_lib.evaluation.outcomes import Outcomes
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import (
    XGBOOST_BY_HAND,
    balancing_weight,
    fixed_threshold_score,
    make_pipeline,
    score_in_parts,
)
from hvs_lib.parallel import SCHEDULER
from hvs_lib.project import set_environment
from hvs_lib.report.tables import at_budgets, caught_by_cause
from hvs_lib.simulator import fleet as simulator
from hvs_lib.simulator.battery import BATTERIES, Battery
from hvs_lib.simulator.causes import Event
from hvs_lib.simulator.physics import DT_S, RackTruth
from hvs_lib.telemetry.fleet import load_fleet

ANY = AlarmRule(1, 1)
ON_EACH_CELL = {
    name: replace(battery, thermistors=battery.series * battery.parallel)
    for name, battery in BATTERIES.items()
}


def hidden_state(
    truth: RackTruth,
    current_A: np.ndarray,
    events: Sequence[Event],
    n_steps: int,
    rng: np.random.Generator,
    battery: Battery,
) -> np.ndarray:
    """Report what is, instead of what instruments read; in and out as for `measure`."""
    cell, core, case = truth.temp_C
    n_cells = battery.series * battery.parallel
    drives = (np.arange(truth.air_C.size) * battery.interval_s / DT_S).astype(int)
    state = {
        col.TEMP_AVG: (cell + (n_cells - 1) * core) / n_cells,
        col.TEMP_MAX: np.maximum(np.maximum(cell, core), case),
        col.VOLTAGE: truth.voltage_V * (BATTERIES["module"].series / battery.series),
        col.CURRENT: current_A[drives],
        col.SOC: 100.0 * truth.soc,
        col.CO: truth.gas_ppm[:, 1],
        col.H2: truth.gas_ppm[:, 2],
        col.VOC: truth.gas_ppm[:, 0],
        col.AMBIENT: truth.air_C,
    }
    readings = [np.broadcast_to(state[name], cell.shape) for name in col.SENSORS]
    return np.array(readings, np.float32)[..., :n_steps]


INSTRUMENTS: dict[str, Callable] = {
    "as installed": ExitStack,  # changes nothing
    "a thermistor on each cell": lambda: patch.dict(BATTERIES, ON_EACH_CELL),
    "the hidden state": lambda: patch.object(simulator, "measure", hidden_state),
}


@contextmanager
def new_project() -> Iterator[None]:
    """Keep what is simulated apart from the fleet of the workbook."""
    with tempfile.TemporaryDirectory() as root, patch.dict(os.environ, HVS_PROJECT_ROOT=root):
        yield


def on_fresh_sites(sites: int, fresh_sites: int, fresh_seed: int) -> tuple[Outcomes, Outcomes]:
    """Fit on a fleet and score another, both with the instruments that are there.

    Returns what the model's scores are worth there, and those of the fixed thresholds.
    """
    fleet = load_fleet(sites=sites)
    protocol = Protocol(
        fleet, split_fleet(fleet.rows), fault_types=("soft_short",), drop_sensors=0.04
    )
    root = balancing_weight(protocol.training.y, power=0.5, thinning=protocol.thinning)
    xgboost = XGBClassifier(**XGBOOST_BY_HAND, scale_pos_weight=root, random_state=42, n_jobs=1)
    fits = replace(protocol.fit(make_pipeline(xgboost), build_up="left out"), limit_power=3.0)
    ((_, found),) = protocol.assess_all({"": fits})
    model, fresh = found.deployable(), load_fleet(sites=fresh_sites, seed=fresh_seed)

    def score(partition: int) -> np.ndarray:
        parts = score_in_parts(model, fresh.telemetry(partition), "all sensors")
        return np.hstack([(y_score, fixed_threshold_score(X)) for X, _, y_score in parts])

    rows, faults = np.arange(len(fresh.rows)), {"fault_types": protocol.faults}
    by_model, by_limits = (
        outcomes_of(scores_frame(fresh.rows, rows, scores, **faults))
        for scores in np.hstack(list(fresh.map(score)))
    )
    return by_model, by_limits


def judge(outcomes: Outcomes) -> tuple[dict[str, str], pd.DataFrame]:
    """Read off what five alarm budgets buy, and the events at one nuisance alarm a day."""
    curve = alarm_curve(outcomes, ANY)
    at_one = curve[curve["nuisance_alarms_per_site_day"] <= 1.0]
    best = at_one.sort_values(["event_recall", "event_recall_5min"], kind="stable").iloc[-1]
    bought = at_budgets(curve, len(outcomes.event_rows))
    bought["5 min ahead, 1 a day"] = f"{best['event_recall_5min']:.2f}"
    return bought, event_table(outcomes, Alarm(ANY, best["threshold"]))


@click.command()
@click.option("--sites", default=48, help="Sites to fit on.")
@click.option("--fresh-sites", default=192, help="Sites to judge on.")
@click.option("--fresh-seed", default=778001, help="Seed of these.")
def main(sites: int, fresh_sites: int, fresh_seed: int) -> None:
    """Print event recall and median lead at five alarm budgets, and what is caught by cause."""
    set_environment()
    os.environ.pop(SCHEDULER, None)  # workers would have the installed instruments
    bought, events = {}, {}
    for name, instruments in INSTRUMENTS.items():
        with new_project(), instruments():
            outcomes, fixed = on_fresh_sites(sites, fresh_sites, fresh_seed)
        if not bought:
            bought["fixed thresholds"], events["fixed thresholds"] = judge(fixed)
        bought[name], events[name] = judge(outcomes)
    # of the last fleet, whose faults are those of the others
    known = outcomes.with_scores((outcomes.alarm_on >= 0).astype(float))
    name = "each fault is known from its onset"
    bought[name], events[name] = judge(known)
    print(pd.DataFrame(bought).T.to_string())
    print(caught_by_cause(events).to_string())


if __name__ == "__main__":
    main()
