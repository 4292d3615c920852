"""Heat, reactions, gas and electricity of one rack of modules, compiled.

All equations of the simulator are here. Temperatures are in degC (``kelvin`` = + 273.15), all else
in SI units. A module consists of one cell that may fail (``f``), its other cells (the core, ``c``)
and the case (``s``); the modules of a rack share its air.

Reaction kinetics and enthalpies are from the literature below. Thermal conductances, gas mixing
and gas yields are engineering estimates, chosen so that the hazards reach their point of no return
(PNR) and the look-alikes do not.

References
----------
Hatchard, MacNeil, Basu, Dahn, J. Electrochem. Soc. 148 (2001) A755.
Kim, Pesaran, Spotnitz, J. Power Sources 170 (2007) 476.
Shurtz, Engerer, Hewson, J. Electrochem. Soc. 166 (2019) A2498.
UL 9540A cell test, FSRI, doi:10.5281/zenodo.7003380 (the gas leads the thermal jump by a minute).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

# Division as in C: checking every divisor makes the kernel five times slower. Records instead of
# tuples of arrays: passing tuples costs more than the physics.
compiled = njit(cache=True, nogil=True, error_model="numpy")

DT_S = 10.0  # sampling interval of a rack's inputs, and the longest step
CELL_AH = 50.0
KELVIN, R_GAS, SIGMA, FARADAY = 273.15, 8.314, 5.67e-8, 96485.0

# Heat capacities [J/K] and conductances [W/K]
CELL_J_K = 0.90 * 1020.0
CORE_J_K, CASE_J_K = 1500.0, 9000.0  # of a module, besides its cells
AIR_J_K = 8000.0
G_CELL_CORE, G_CELL_CASE, G_CORE_CASE = 1.10, 0.25, 20.0
G_CASE_AIR, G_CASE_AIR_NO_FAN = 10.0, 2.5
G_CASE_CASE, RADIATING_M2, G_VENTILATION = 1.0, 0.10, 71.0
EDGE_SHARE = 0.15  # of the heat from a hotter neighbour, into the edge cell, f
BUS_OHM = 0.4e-3
JOINT_INTO_CELL = 0.55  # of the heat of a bad joint; the rest warms the case

# Reactions: SEI, anode with solvent, cathode, electrolyte
E_SEI, E_CATHODE, E_ELYTE = 1.3508e5, 1.396e5, 2.74e5  # J/mol; the anode shares E_SEI
A_SEI, A_ANODE, A_CATHODE, A_ELYTE = 1.667e15, 2.5e13, 6.667e13, 5.14e25  # 1/s
H_SEI, H_ANODE, H_CATHODE, H_ELYTE = 257e3, 1714e3, 314e3, 155e3  # J/kg of material
GRAPHITE_KG, CATHODE_KG, ELYTE_KG = 0.155, 0.310, 0.100  # per cell
SEI_0, LITHIUM_0, THICK_0, ALPHA_0 = 0.15, 0.75, 0.033, 0.04

# State of a cell: remaining SEI, lithium, electrolyte, charge and solvent; thickness of the SEI,
# conversion of the cathode, collapse of the separator
SEI, ANODE, THICK, CATHODE, ELYTE, CHARGE, SEPARATOR, SOLVENT = range(8)
FRESH_CELL = np.array([SEI_0, 1.0, THICK_0, ALPHA_0, 1.0, 1.0, 0.0, 1.0])
N_STATES = FRESH_CELL.size

SEPARATOR_RAMP_K = 6.0
CELL_V = 3.7  # mean voltage, for the electrical energy that becomes heat
CORE_SHORTED_S = 60.0
EJECTA_C, EJECTA_SHARE = 200.0, 0.20
CORE_IGNITION_C = 250.0

SOLVENT_KG, SOLVENT_KG_MOL, SOLVENT_J_KG = 0.060, 0.090, 370e3
SOLVENT_FLASH, SOLVENT_TAU_S = 0.12, 1500.0
HEADSPACE_M3 = 60e-6
# mol per fully reacted cell of VOC, CO, H2, CO2
YIELDS = np.array(
    [
        [0.03, 0.004, 0.004, 0.05],  # SEI
        [0.45, 0.10, 0.40, 0.10],  # anode
        [0.30, 0.45, 0.70, 1.60],  # cathode
        [0.30, 0.10, 0.40, 0.40],  # electrolyte
    ]
)
SIDE_YIELD = np.array([0.03, 0.03, 0.02, 0.07])  # mol per mol of electrons
SIDE_FROM = 1.10  # state of charge above which part of the current makes heat and gas
RACK_M3, RACK_M3_S, NEAR_M3_S = 1.5, 0.06, 0.02
PPM_M3_MOL = 1e6 * R_GAS * 298.15 / 101325.0
LAG_S = (20.0, 30.0, 30.0)  # gas sensors: VOC, CO, H2

QUIET_C, QUIET_SOC = 60.0, 1.08  # nothing reacts below both
PNR_C, PNR_RATE_K_S, PNR_RATE_FROM_C = 140.0, 0.5, 110.0
MAX_CHANGE, MIN_STEP_S = 0.25, 0.02

# Single precision, so that the last bit of numpy's exp, sin and powers, which differs between
# processors, is rounded away before the kernel sees it.
# Inputs of a module at a sample
DRIVE = np.dtype(
    [
        ("case_air_W_K", "f4"),
        ("short_ohm", "f4"),  # across the group of f; inf = none
        ("joint_ohm", "f4"),  # in series with the module
        ("cell_W", "f4"),  # heat from outside into f
        ("case_W", "f4"),  # heat from outside into s
        ("leak_mol_s", "f4"),  # solvent vapour
        ("group_capacity", "f4"),  # relative, of the group of f
    ]
)
# Inputs of a whole rack at a sample
SURROUNDINGS = np.dtype(
    [
        ("current_A", "f4"),  # of the string, > 0 when charging
        ("room_C", "f4"),
        ("inlet_ppm", "f4", 3),  # VOC, CO, H2 in the room's air
    ]
)
# How a module differs from the others
TRAITS = np.dtype(
    [
        ("resistance", "f4"),  # relative
        ("capacity", "f4"),  # relative
        ("soc", "f4"),  # at the start, 0-1
        ("cell_core_W_K", "f4"),
        ("cell_case_W_K", "f4"),
        ("core_case_W_K", "f4"),
        ("separator_C", "f4"),  # onset of the collapse
        ("vent_Pa", "f4"),
        ("core_delay_s", "f4"),  # from f at 250 degC to the core's ignition; inf = never
        ("core_tau_s", "f4"),
        ("short_opens_C", "f4"),  # at which the short burns open; inf = never
        ("opens_C", "f4"),  # lowest temperature of venting
        ("shorted_s", "f4"),  # time constant of the release of f's stored charge
        ("shorted_J", "f8"),  # heat of that release in a full cell
        ("series", "f8"),
        ("parallel", "f8"),
        ("cells", "f8", 2),  # number of cells: f, core
        ("heat_J_K", "f8", 3),  # heat capacity of f, core, case
    ]
)
# State of a module, and scratch space for the changes in a step
STATE = np.dtype(
    [
        ("temp", "f8", 3),  # f, c, s [degC]
        ("soc", "f8"),  # of the string
        ("soc_f", "f8"),  # of the group of f
        ("short_A", "f8"),
        ("opened", "f8"),  # 1: the short has burnt open
        ("cells", "f8", (2, N_STATES)),  # f, a cell of the core
        ("vented", "f8", 2),
        ("retained", "f8", (2, 4)),  # gas in a closed cell [mol]
        ("ignites_s", "f8"),  # of the core
        ("pnr_s", "f8"),
        ("sensor_ppm", "f8", 3),
        ("middle", "f8", 3),  # temperatures halfway through a step
        ("flow", "f8", 3),  # heat into f, c, s [W]
        ("heat", "f8", 3),  # of chemistry in a step, in f, c, s (none in s) [J]
        ("change", "f8", N_STATES),  # of a cell in a step
        ("gas", "f8", 4),  # made by a cell in a step [mol]
        ("emitted", "f8", 3),  # into the rack air in a step [mol]
    ]
)
RACK = np.dtype([("air", "f8"), ("ppm", "f8", 3)])


class RackTruth(NamedTuple):
    """The true state of a rack, before any sensor."""

    temp_C: np.ndarray  # (3, n_modules, n_steps) f, c, s
    air_C: np.ndarray  # (n_steps,)
    voltage_V: np.ndarray  # (n_modules, n_steps)
    soc: np.ndarray  # (n_modules, n_steps) of the string, as the BMS counts it
    gas_ppm: np.ndarray  # (n_modules, 3, n_steps) VOC, CO, H2 at the lagging sensor
    pnr_s: np.ndarray  # (n_modules,) point of no return; inf = none


@compiled
def open_circuit_voltage(soc):
    """Return a cell's open-circuit voltage [V]; it collapses below 0 and flattens above 1."""
    if soc < 0.0:
        return max(3.131 + 40.0 * soc, 0.0)
    z = min(soc, 1.0)
    volts = (((-2.622 * z + 5.761) * z - 4.145) * z + 2.062) * z + 3.131
    return min(volts + 1.45 * max(soc - 1.0, 0.0), 5.1)


@compiled
def cell_resistance(temp_C, soc):
    """Return a cell's resistance [ohm]: higher when cold, empty, full or overcharged."""
    warm = 1.0 + 0.024 * min(max(temp_C - 25.0, -25.0), 60.0)
    ends = 1.0 + 6.0 * max(0.15 - soc, 0.0) + 2.5 * max(min(soc, 1.0) - 0.92, 0.0)
    return 0.90e-3 / warm * ends * (1.0 + 8.0 * max(soc - 1.0, 0.0))


@compiled
def side_share(soc):
    """Return the share of the charging current that makes heat and gas instead of charge."""
    return min(max((soc - SIDE_FROM) / 0.45, 0.0), 1.0)


@compiled
def reaction_extents(x, temp_C, soc, step_s):
    """Return how far SEI, anode, cathode and electrolyte react in a step at constant temperature.

    dx_sei = -k x_sei; dx_an = -k x_an exp(-thick/0.033) = -dthick; dalpha = k alpha (1 - alpha);
    dx_e = -k x_e; k = A exp(-E/RT). Exact at constant temperature (anode: at constant lithium), so
    no step overshoots. Returns SEI used, lithium used, gain in cathode conversion and
    electrolyte used, all >= 0.

    References
    ----------
    Hatchard 2001, equations 3-8; Kim 2007, table 2.
    """
    inverse_RT = 1.0 / (R_GAS * (temp_C + KELVIN))
    arrhenius_sei = np.exp(-E_SEI * inverse_RT) * step_s
    over = max(soc - 1.0, 0.0)
    sei = -x[SEI] * np.expm1(-A_SEI * arrhenius_sei)
    lithium = LITHIUM_0 * min(max(soc, 0.0), 1.0) * x[ANODE]
    rate = A_ANODE * arrhenius_sei * (1.0 + 30.0 * over) * lithium * np.exp(-x[THICK] / THICK_0)
    anode = min(THICK_0 * np.log1p(rate / THICK_0), lithium)
    logistic = A_CATHODE * np.exp(-E_CATHODE * inverse_RT) * step_s * (1.0 + 5.0 * over)
    alpha = x[CATHODE]
    cathode = alpha / (alpha + (1.0 - alpha) * np.exp(-logistic)) - alpha
    elyte = -x[ELYTE] * np.expm1(-A_ELYTE * np.exp(-E_ELYTE * inverse_RT) * step_s)
    return sei, anode, cathode, elyte


@compiled
def reaction_heat(extents, soc, graphite_kg, cathode_kg, elyte_kg):
    """Return the heat of reaction extents [J]: extent x enthalpy x mass of the material."""
    sei, anode, cathode, elyte = extents
    return (
        graphite_kg * (H_SEI * sei + H_ANODE * anode)
        + cathode_kg * H_CATHODE * (0.3 + 0.7 * min(max(soc, 0.0), 1.0)) * cathode
        + elyte_kg * H_ELYTE * elyte
    )


@compiled
def react(module, traits, c, now, step_s):
    """Compute the chemistry of f (``c`` = 0) or of one cell of the core, without applying it.

    Besides the reactions: above ``separator_C`` the collapsing separator turns stored charge into
    heat, the solvent of a vented cell evaporates, and a burning core loses the share
    ``1 - exp(-step/tau)`` of all that is left. Fills ``change`` and ``gas``; returns the heat
    released by reactions and stored charge, and the heat absorbed by evaporation [J].
    """
    x, dx, gas, temp_C = module.cells[c], module.change, module.gas, module.middle[c]
    burning = c == 1 and now >= module.ignites_s
    if temp_C < QUIET_C and not burning:
        dx[:] = 0.0
        gas[:] = 0.0
        return 0.0, 0.0
    soc = module.soc if c else module.soc_f
    charge = min(max(soc, 0.0), 1.0)
    lithium = LITHIUM_0 * charge * x[ANODE]
    sei, anode, cathode, elyte = reaction_extents(x, temp_C, soc, step_s)
    ramp = min((temp_C - traits.separator_C) / SEPARATOR_RAMP_K, 1.0)
    dx[SEPARATOR] = max(ramp - x[SEPARATOR], 0.0)
    tau_s = CORE_SHORTED_S if c else traits.shorted_s
    shorted = -x[CHARGE] * np.expm1(-(x[SEPARATOR] + dx[SEPARATOR]) * step_s / tau_s)
    wet = module.vented[c] * min(max((temp_C - 90.0) / 50.0, 0.0), 3.0)
    solvent = -x[SOLVENT] * np.expm1(-wet * step_s / SOLVENT_TAU_S)
    if burning:
        burnt = -np.expm1(-step_s / traits.core_tau_s)
        sei += burnt * (x[SEI] - sei)
        anode += burnt * (lithium - anode)
        cathode += burnt * (1.0 - x[CATHODE] - cathode)
        elyte += burnt * (x[ELYTE] - elyte)
        shorted += burnt * (x[CHARGE] - shorted)
        solvent += burnt * (x[SOLVENT] - solvent)
    dx[SEI], dx[CATHODE], dx[ELYTE], dx[THICK] = -sei, cathode, -elyte, anode
    dx[ANODE] = -x[ANODE] * anode / lithium if lithium > 0.0 else 0.0
    dx[CHARGE], dx[SOLVENT] = -shorted, -solvent
    for g in range(4):
        gas[g] = (
            YIELDS[0, g] * sei / SEI_0
            + YIELDS[1, g] * anode / LITHIUM_0
            + YIELDS[2, g] * cathode * (0.3 + 0.7 * charge)
            + YIELDS[3, g] * elyte
        )
    heat = reaction_heat((sei, anode, cathode, elyte), soc, GRAPHITE_KG, CATHODE_KG, ELYTE_KG)
    return heat + traits.shorted_J * charge * shorted, SOLVENT_J_KG * SOLVENT_KG * solvent


@compiled
def heat_into_module(module, traits, drive, current_A, air_C):
    """Fill in a module's heat flows into f, c, s, without chemistry and neighbours.

    Ohmic heat of a cell in a group of p: R (I/p)^2, reversible heat (I/p) T 1e-4 (0.3 - z). A short
    of R_isc across the group draws i = U/(R_isc + R/p): i^2 (R_isc + R/p^2) heats f, i^2 R/p^2 each
    partner.
    Returns the heat flow from the case into the rack air [W].
    """
    f, c, s = module.middle[0], module.middle[1], module.middle[2]
    p = traits.parallel
    part = current_A / p
    r_f = traits.resistance * cell_resistance(f, module.soc_f)
    r_c = traits.resistance * cell_resistance(c, module.soc)
    heat_f = r_f * part**2 + part * (f + KELVIN) * 1e-4 * (0.3 - module.soc_f)
    heat_c = r_c * part**2 + part * (c + KELVIN) * 1e-4 * (0.3 - module.soc)
    heat_c *= traits.cells[1]
    module.short_A = 0.0
    if drive.short_ohm < np.inf and module.opened == 0.0 and module.soc_f > 0.0:
        i = open_circuit_voltage(module.soc_f) / (drive.short_ohm + r_f / p)
        module.short_A = i
        heat_f += i**2 * (drive.short_ohm + r_f / p**2)
        heat_c += i**2 * ((p - 1.0) / p**2) * r_f
    if current_A > 0.0 and module.soc_f > SIDE_FROM:
        heat_f += side_share(module.soc_f) * current_A * open_circuit_voltage(module.soc_f)
    joint = drive.joint_ohm * current_A**2
    heat_f += JOINT_INTO_CELL * joint + drive.cell_W
    heat_s = (1.0 - JOINT_INTO_CELL) * joint + drive.case_W + BUS_OHM * current_A**2
    f_c = traits.cell_core_W_K * (f - c)
    f_s = traits.cell_case_W_K * (f - s)
    c_s = traits.core_case_W_K * (c - s)
    air_W = drive.case_air_W_K * (s - air_C)
    module.flow[0] = heat_f - f_c - f_s
    module.flow[1] = heat_c + f_c - c_s
    module.flow[2] = heat_s + f_s + c_s - air_W
    return air_W


@compiled
def heat_flows(modules, traits, drive, around, k, air_C):
    """Fill in the heat flows of all modules at ``middle`` temperatures; return the air's [W].

    Neighbouring cases exchange heat by conduction and radiation; part of it reaches the edge
    cell of the colder module.
    """
    air_W = -(G_VENTILATION * (air_C - around[k].room_C))
    for m in range(modules.size):
        air_W += heat_into_module(modules[m], traits[m], drive[m, k], around[k].current_A, air_C)
    for m in range(modules.size - 1):
        a, b = modules[m].middle[2], modules[m + 1].middle[2]
        up = G_CASE_CASE * (a - b) + SIGMA * RADIATING_M2 * ((a + KELVIN) ** 4 - (b + KELVIN) ** 4)
        hot, cold = (m, m + 1) if up > 0.0 else (m + 1, m)
        modules[hot].flow[2] -= abs(up)
        modules[cold].flow[2] += (1.0 - EDGE_SHARE) * abs(up)
        modules[cold].flow[0] += EDGE_SHARE * abs(up)
    return air_W


@compiled
def is_quiet(modules):
    """Return whether nothing in the rack reacts."""
    for m in range(modules.size):
        temp = modules[m].temp
        if max(temp[0], temp[1], temp[2]) >= QUIET_C or modules[m].soc_f > QUIET_SOC:
            return False
    return True


@compiled
def shorten_step(modules, traits, now, step):
    """Return a step within which no reaction rate changes by more than 25 %.

    Leaves the chemical heat of the step's first half in ``heat``.
    """
    while True:
        ratio = 0.0
        for m in range(modules.size):
            module = modules[m]
            for c in range(2):
                made, taken = react(module, traits[m], c, now, 0.5 * step)
                module.heat[c] = traits[m].cells[c] * (made - taken)
                kelvin = module.temp[c] + KELVIN
                rise = (module.flow[c] * step + 2.0 * module.heat[c]) / traits[m].heat_J_K[c]
                ratio = max(ratio, abs(rise) * E_SEI / (MAX_CHANGE * R_GAS * kelvin * kelvin))
        if ratio <= 1.0 or step <= MIN_STEP_S:
            return step
        step = max(0.9 * step / ratio, MIN_STEP_S)


@compiled
def vent(module, traits, c, now):
    """Keep a closed cell's gas, or vent it: all its gas and a flash of solvent escape.

    The pressure in a closed cell is that of air, half-saturated solvent vapour and gas. Returns the
    heat absorbed by the flash [J].
    """
    x, gas, retained = module.cells[c], module.gas, module.retained[c]
    kelvin = module.middle[c] + KELVIN
    retained += gas
    gas[:] = 0.0
    total = retained[0] + retained[1] + retained[2] + retained[3]
    vapour_Pa = 101325.0 * np.exp(-33.5e3 / R_GAS * (1.0 / kelvin - 1.0 / 363.4))
    gas_Pa = total * R_GAS * kelvin / HEADSPACE_M3
    pressure_Pa = 101325.0 * kelvin / 298.0 + 0.5 * vapour_Pa + gas_Pa
    burning = c == 1 and now >= module.ignites_s
    closed = pressure_Pa < traits.vent_Pa or module.middle[c] < traits.opens_C
    if closed and not burning:
        return 0.0
    module.vented[c] = 1.0
    flash = SOLVENT_FLASH * x[SOLVENT]
    x[SOLVENT] -= flash
    gas[:] = retained
    gas[0] += flash * SOLVENT_KG / SOLVENT_KG_MOL
    return flash * SOLVENT_KG * SOLVENT_J_KG


@compiled
def apply_chemistry(module, traits, current_A, now, step):
    """Let a module's cells react for a step at its midpoint temperatures.

    Returns the heat that the ejecta carry into the rack air [J].
    """
    ejected = 0.0
    for c in range(2):
        made, taken = react(module, traits, c, now, step)
        module.cells[c] += module.change
        module.gas[0] -= module.change[SOLVENT] * SOLVENT_KG / SOLVENT_KG_MOL
        if c == 0 and module.soc_f > SIDE_FROM and current_A > 0.0:
            side_mol = side_share(module.soc_f) / traits.parallel * current_A * step / FARADAY
            module.gas[:] += SIDE_YIELD * side_mol
        if module.vented[c] == 0.0:
            taken += vent(module, traits, c, now + step)
        ejecta = EJECTA_SHARE * made if module.middle[c] > EJECTA_C else 0.0
        module.heat[c] = traits.cells[c] * (made - taken - ejecta)
        ejected += traits.cells[c] * ejecta
        for g in range(3):
            module.emitted[g] += traits.cells[c] * module.gas[g]
    return ejected


@compiled
def advance_charge(module, traits, drive, current_A, step):
    """Update the charge of the string and of the group of f, which a short drains."""
    per_A = step / (3600.0 * CELL_AH * traits.parallel * traits.capacity)
    side = side_share(module.soc_f) if current_A > 0.0 else 0.0
    into_group = current_A * (1.0 - side) - module.short_A
    module.soc = max(module.soc + current_A * per_A, 0.0)
    module.soc_f = max(module.soc_f + into_group * per_A / drive.group_capacity, 0.0)


@compiled
def note_milestones(module, traits, now, rise_K_s):
    """Record a short that burns open, the ignition of the core and the point of no return."""
    f, c = module.temp[0], module.temp[1]
    if f >= traits.short_opens_C:
        module.opened = 1.0
    if f >= CORE_IGNITION_C and module.ignites_s == np.inf:
        module.ignites_s = now + traits.core_delay_s
    hottest = max(f, c) if traits.cells[1] else f
    lost = hottest >= PNR_C or (rise_K_s >= PNR_RATE_K_S and f > PNR_RATE_FROM_C)
    if lost and module.pnr_s == np.inf:
        module.pnr_s = now


@compiled
def mix_gas(modules, rack, inlet_ppm, step):
    """Mix the modules' emissions into the rack air and update the lagging sensors.

    Rack: V dc/dt = Q (c_inlet - c) + n. A module's own sensor also sees n / 0.02 m3/s.
    """
    per_step = PPM_M3_MOL / step
    fade = np.exp(-step * RACK_M3_S / RACK_M3)
    for g in range(3):
        total = 0.0
        for m in range(modules.size):
            total += modules[m].emitted[g]
        target = inlet_ppm[g] + total * per_step / RACK_M3_S
        rack.ppm[g] = target + (rack.ppm[g] - target) * fade
        lag = np.exp(-step / LAG_S[g])
        for m in range(modules.size):
            seen = rack.ppm[g] + modules[m].emitted[g] * per_step / NEAR_M3_S
            modules[m].sensor_ppm[g] = seen + (modules[m].sensor_ppm[g] - seen) * lag


@compiled
def advance(modules, rack, traits, drive, around, k, now, step):
    """Advance a rack by one step of the explicit midpoint rule.

    Returns the length of the step [s]: as requested if nothing reacts, else possibly shorter.
    """
    quiet = is_quiet(modules)
    for m in range(modules.size):
        modules[m].middle[:] = modules[m].temp
        modules[m].heat[:] = 0.0
    air_W = heat_flows(modules, traits, drive, around, k, rack.air)
    if not quiet:
        step = shorten_step(modules, traits, now, step)
    for m in range(modules.size):
        module = modules[m]
        for node in range(3):
            joule = 0.5 * step * module.flow[node] + module.heat[node]
            module.middle[node] += joule / traits[m].heat_J_K[node]

    middle_air = rack.air + 0.5 * step * air_W / AIR_J_K
    air_W = heat_flows(modules, traits, drive, around, k, middle_air)
    current, ejected = around[k].current_A, 0.0
    for m in range(modules.size):
        module = modules[m]
        module.emitted[:] = 0.0
        module.emitted[0] = drive[m, k].leak_mol_s * step
        if not quiet:
            ejected += apply_chemistry(module, traits[m], current, now, step)
        before = module.temp[0]
        for node in range(3):
            joule = step * module.flow[node] + module.heat[node]
            module.temp[node] += joule / traits[m].heat_J_K[node]
        if not quiet:
            note_milestones(module, traits[m], now + step, (module.temp[0] - before) / step)
        advance_charge(module, traits[m], drive[m, k], current, step)
    rack.air += (air_W * step + ejected) / AIR_J_K
    mix_gas(modules, rack, around[k].inlet_ppm, step)
    return step


@compiled
def module_voltage(module, traits, current_A, joint_ohm):
    """Return a module's terminal voltage [V]: healthy groups, the group of f, the joint.

    A group has no voltage left once its separators have collapsed.
    """
    r_c = traits.resistance * cell_resistance(module.temp[1], module.soc)
    r_f = traits.resistance * cell_resistance(module.temp[0], module.soc_f)
    healthy = open_circuit_voltage(module.soc) + r_c / traits.parallel * current_A
    group_A = current_A - module.short_A
    faulty = open_circuit_voltage(module.soc_f) + r_f / traits.parallel * group_A
    groups = (traits.series - 1.0) * healthy * module.cells[1, CHARGE]
    groups += faulty * module.cells[0, CHARGE]
    return max(groups + current_A * (joint_ohm + BUS_OHM), 0.0)


@compiled
def run(modules, rack, traits, drive, around, truth, dt_s):
    """Advance a rack through all samples, ``dt_s`` apart (10 s or a divisor), and record them.

    While nothing reacts, a step is one sample; otherwise it is so short that no reaction rate
    changes by more than 25 % within it. Steps always land on the sample grid.
    """
    step = dt_s
    per = round(DT_S / dt_s)
    for i in range(truth.air_C.size):
        k = i // per  # sample of its inputs
        truth.air_C[i] = rack.air
        for m in range(modules.size):
            module = modules[m]
            truth.temp_C[:, m, i] = module.temp
            truth.gas_ppm[m, :, i] = module.sensor_ppm
            joint = drive[m, k].joint_ohm
            truth.voltage_V[m, i] = module_voltage(module, traits[m], around[k].current_A, joint)
            truth.soc[m, i] = module.soc
        done = 0.0
        while done < dt_s - 1e-9:
            longest = min(max(2.0 * step, MIN_STEP_S), dt_s - done)
            if is_quiet(modules):
                longest = dt_s - done
            step = advance(modules, rack, traits, drive, around, k, i * dt_s + done, longest)
            done += step


def at_rest(around: np.ndarray, traits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``STATE`` of a rack's modules and its ``RACK``, a little warmer than the room."""
    modules, rack = np.zeros(traits.size, STATE), np.zeros(1, RACK)
    rack["air"] = float(around["room_C"][0]) + 0.5
    rack["ppm"] = around["inlet_ppm"][0]
    modules["temp"] = rack["air"] + 1.5
    modules["sensor_ppm"] = rack["ppm"]
    modules["soc"] = modules["soc_f"] = traits["soc"]
    modules["cells"] = FRESH_CELL
    modules["ignites_s"] = modules["pnr_s"] = np.inf
    return modules, rack[0]


def simulate(
    drive: np.ndarray, around: np.ndarray, traits: np.ndarray, interval_s: float = DT_S
) -> RackTruth:
    """Simulate one rack and return its state every ``interval_s``.

    The heat of a step is reaction extent x enthalpy, so energy is conserved to rounding error.

    Parameters
    ----------
    drive : ndarray of DRIVE, shape (n_modules, n_steps)
    around : ndarray of SURROUNDINGS, shape (n_steps,)
    traits : ndarray of TRAITS, shape (n_modules,)
    interval_s : float
        Interval of the result [s], 1 to 60, a divisor or a multiple of 10.
    """
    n, dt_s = traits.size, min(interval_s, DT_S)
    n_steps = around.size * round(DT_S / dt_s)
    modules, rack = at_rest(around, traits)
    series = [(3, n, n_steps), (n_steps,), (n, n_steps), (n, n_steps), (n, 3, n_steps)]
    arrays = [np.empty(shape, np.float32) for shape in series]
    run(modules, rack, traits, drive, around, RackTruth(*arrays, modules["pnr_s"]), dt_s)
    every = round(interval_s / dt_s)
    return RackTruth(*(array[..., ::every] for array in arrays), modules["pnr_s"])
