"""One rack of a site: how it differs, what drives it, and what became of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from hvs_lib.simulator import physics as ph
from hvs_lib.simulator.events import CAUSES, LOOK_ALIKES, Event, RackPlan, wander
from hvs_lib.simulator.physics import DT_S, N_MODULES

BACKGROUND_PPM = np.array([[15.0, 5.0], [3.0, 1.0], [1.5, 0.7]])  # VOC, CO, H2: mean, sd
SOC_WINDOW = (0.08, 0.92)


class Fate(NamedTuple):
    """What became of an event."""

    event: Event
    vent_s: float  # first vent of the module; inf = none
    pnr_s: float  # point of no return; inf = none

    @property
    def hazard(self) -> bool:
        """Whether the point of no return was reached, whatever the cause."""
        return bool(np.isfinite(self.pnr_s))

    @property
    def rank(self) -> tuple[bool, ...]:
        """Which event a row shows where several overlap: hazards, then the most local."""
        cause = self.event.cause
        return self.hazard, cause not in LOOK_ALIKES, self.event.module >= 0, self.event.rack >= 0


@njit(cache=True, nogil=True)
def follow_dispatch(c_rate, soc_start, low, high):
    """Return the C-rate that a string really takes: none past the ends of its window.

    Parameters
    ----------
    c_rate, high : ndarray of shape (n_steps,)
        Asked for; upper end of the window.
    soc_start, low : float

    Returns
    -------
    ndarray of shape (n_steps,)
    """
    taken = np.empty_like(c_rate)
    soc = soc_start
    for k in range(c_rate.size):
        change = c_rate[k] * DT_S / 3600.0
        outside = soc + change > high[k] if change > 0.0 else soc + change < low
        taken[k] = 0.0 if outside else c_rate[k]
        soc += taken[k] * DT_S / 3600.0
    return taken


def draw_dispatch(n_steps: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw the current that a site's operator asks for: blocks, plus frequency regulation.

    Returns
    -------
    c_rate : ndarray of shape (n_steps,)
        In multiples of the capacity per hour, > 0 charges.
    soc : float
        State of charge at the start, 0-1.
    """
    c_rate = np.empty(n_steps)
    start = soc = rng.uniform(0.25, 0.8)
    k = 0
    while k < n_steps:
        block = int(rng.uniform(15.0, 75.0) * 60.0 / DT_S)
        sign = 1.0 if rng.random() > soc else -1.0
        rate = 0.0 if rng.random() < 0.12 else sign * rng.uniform(0.25, 0.70)
        c_rate[k : k + block] = rate
        soc = float(np.clip(soc + rate * block * DT_S / 3600.0, *SOC_WINDOW))
        k += block
    return c_rate + 0.04 * wander(rng, n_steps, 120.0), start


def draw_room(n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the room's air temperature [degC], shape (n_steps,)."""
    t = np.arange(n_steps) * DT_S
    day = rng.uniform(1.0, 3.0) * np.sin(2 * np.pi * (t / 86400.0 + rng.random()))
    cycling = 0.4 * np.sin(2 * np.pi * (t / (60.0 * rng.uniform(15.0, 30.0)) + rng.random()))
    return rng.uniform(19.0, 25.0) + day + 0.35 * wander(rng, n_steps, 900.0) + cycling


def draw_traits(rng: np.random.Generator) -> np.ndarray:
    """Draw how the modules of a rack differ, ``TRAITS`` of shape (n_modules,)."""

    def spread(sd: float) -> np.ndarray:
        return np.exp(sd * rng.standard_normal(N_MODULES))

    traits = np.empty(N_MODULES, ph.TRAITS)
    traits["resistance"] = spread(0.05)
    traits["capacity"] = 1.0 + 0.012 * rng.standard_normal(N_MODULES)
    traits["cell_core_W_K"] = ph.G_CELL_CORE * spread(0.18)
    traits["cell_case_W_K"] = ph.G_CELL_CASE * spread(0.20)
    traits["core_case_W_K"] = ph.G_CORE_CASE * spread(0.08)
    traits["separator_C"] = rng.uniform(136.5, 139.5, N_MODULES)
    traits["vent_Pa"] = 0.70e6 * spread(0.30)
    burns = rng.random(N_MODULES) < 0.6
    traits["core_delay_s"] = np.where(burns, rng.uniform(90.0, 400.0, N_MODULES), np.inf)
    traits["core_tau_s"] = 1800.0 * spread(0.35)
    traits["short_opens_C"] = np.inf
    return traits


def string_current(plan: RackPlan) -> tuple[np.ndarray, float]:
    """Return the string's current [A] and its state of charge at the start.

    The state of charge may be fixed at a later sample: before it, time runs backwards.
    """
    at, soc = plan.soc_at
    back = follow_dispatch(-plan.c_rate[:at][::-1], soc, SOC_WINDOW[0], plan.soc_limit[:at][::-1])
    ahead = follow_dispatch(plan.c_rate[at:], soc, SOC_WINDOW[0], plan.soc_limit[at:])
    start = soc + back.sum() * DT_S / 3600.0
    return ph.MODULE_AH * np.concatenate([-back[::-1], ahead]), start


def plan_rack(
    rack: int,
    dispatch: tuple[np.ndarray, float],
    room_C: np.ndarray,
    events: Sequence[Event],
    rng: np.random.Generator,
) -> RackPlan:
    """Draw a rack, let the events act on it and return what drives it."""
    n = room_C.size
    drive = np.zeros((N_MODULES, n), ph.DRIVE)
    drive["case_air_W_K"] = ph.G_CASE_AIR * np.exp(0.10 * rng.standard_normal((N_MODULES, 1)))
    drive["short_ohm"] = np.inf
    drive["group_capacity"] = 1.0
    around = np.empty(n, ph.SURROUNDINGS)
    around["room_C"] = room_C
    for g, (mean, sd) in enumerate(BACKGROUND_PPM):
        around["inlet_ppm"][:, g] = np.maximum(mean + sd * wander(rng, n, 1200.0), 0.0)
    soc = float(np.clip(dispatch[1] + rng.normal(0.0, 0.03), *SOC_WINDOW))
    plan = RackPlan(
        rack=rack,
        c_rate=dispatch[0] * rng.normal(1.0, 0.03),
        soc_limit=np.full(n, SOC_WINDOW[1]),
        soc_at=(0, soc),
        drive=drive,
        around=around,
        traits=draw_traits(rng),
    )
    for event in events:
        if CAUSES[event.cause].physical:
            CAUSES[event.cause].physical(event, plan)
    around["current_A"], soc = string_current(plan)
    plan.traits["soc"] = soc + 0.012 * rng.standard_normal(N_MODULES)
    return plan


def fates(rack: int, events: Sequence[Event], truth: ph.RackTruth) -> list[Fate]:
    """Return what became of every event of one module in a rack, propagation included.

    A module's PNR belongs to its hazard, else to the latest event before it, else to propagation.
    """
    result = []
    propagates = int(np.ceil(min(truth.pnr_s.min() / DT_S, 2**31)))
    for m, (vent_s, pnr_s) in enumerate(zip(truth.vent_s, truth.pnr_s, strict=True)):
        own = [event for event in events if event.module == m]
        begun = [event for event in own if event.onset * DT_S < pnr_s]
        blamed = max(begun, key=lambda e: (CAUSES[e.cause].hazard, e.onset), default=None)
        if blamed is None and np.isfinite(pnr_s):
            blamed = Event("propagation", propagates, rack=rack, module=m)
            own.append(blamed)
        result += [Fate(e, vent_s, pnr_s) if e is blamed else Fate(e, np.inf, np.inf) for e in own]
    return result
