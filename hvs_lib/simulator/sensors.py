"""From what happens in a rack to what its sensors report."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hvs_lib import columns as col
from hvs_lib.simulator.events import (
    AMBIENT,
    AMP,
    AVG,
    CAUSES,
    CO,
    H2,
    MAX,
    SOC,
    VOC,
    VOLT,
    Event,
)
from hvs_lib.simulator.physics import N_MODULES, RackTruth

N_SENSORS = len(col.SENSORS)

# In the order of col.SENSORS. The fleet's figures for noise, missing values and outliers.
NOISE_SD = np.array([0.20, 0.25, 0.05, 0.10, 0.10, 5.0, 5.0, 5.0, 0.10], np.float32)
BIAS_SD = np.array([0.25, 0.25, 0.02, 0.0, 1.0, 6.0, 6.0, 6.0, 0.25])
RANGE = np.array(
    [
        [-40, -40, 0, -1000, 0, 0, 0, 0, -40],
        [200, 200, 100, 1000, 100, 2000, 2000, 2000, 200],
    ],
    np.float32,
)
# Steps of an instrument to the unit: 0.01 degC, 1 mV, 0.01 A, 0.01 %, 0.1 ppm. They also hide the
# last digit of the mathematics, which differs from processor to processor.
STEPS = np.array([100, 100, 1000, 100, 100, 10, 10, 10, 100], np.float32)
MISSING, OUTLIERS, OUTLIER_SD = 0.0005, 0.0001, 7.0
# Readings CO, H2, VOC of what is really there: VOC, CO, H2
CROSS_RESPONSE = np.array([[0.015, 1.0, 0.25], [0.01, 0.05, 1.0], [1.0, 0.10, 0.30]], np.float32)


class SensorSet(NamedTuple):
    """How the instruments of the eight modules of a rack differ."""

    visibility: np.ndarray  # (n_modules,) share of f - s that the nearest thermistor sees
    average: np.ndarray  # (n_modules,) the same for the average of eight thermistors
    hot_spot_K: np.ndarray  # (n_modules,)
    core_share: np.ndarray  # (n_modules,) share of the core's excess over the air
    bias: np.ndarray  # (n_sensors, n_modules)


def draw_sensors(rng: np.random.Generator) -> SensorSet:
    """Draw the instruments of a rack.

    Eight thermistors for 28 cells: the failing cell has one of its own, or sits next to one, or
    is far from all.
    """
    n = N_MODULES
    where = rng.random(n)
    near, beside, far = (rng.uniform(*span, n) for span in [(0.6, 0.9), (0.12, 0.35), (0.03, 0.10)])
    visibility = np.where(where < 8 / 28, near, np.where(where < 8 / 28 + 0.45, beside, far))
    bias = rng.standard_normal((N_SENSORS, n)) * BIAS_SD[:, None]
    bias[AMBIENT] = bias[AMBIENT, 0]  # one thermometer in the rack's air
    return SensorSet(
        visibility,
        visibility / 8.0 * rng.uniform(0.6, 1.2, n),
        rng.uniform(0.3, 1.8, n),
        rng.uniform(0.1, 0.6, n),
        bias,
    )


def ideal_readings(truth: RackTruth, current_A: np.ndarray, sensors: SensorSet) -> np.ndarray:
    """Return the noiseless readings, float32 of shape (n_sensors, n_modules, n_steps)."""
    f, c, s = truth.temp_C
    out = np.empty((N_SENSORS, *s.shape), np.float32)

    def column(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None]

    excess = f - s
    out[AVG] = s + column(sensors.average) * excess
    warm_core = column(sensors.core_share) * np.maximum(c - truth.air_C, 0.0)
    out[MAX] = s + column(sensors.visibility) * excess + column(sensors.hot_spot_K) + warm_core
    out[VOLT] = truth.voltage_V
    out[AMP] = current_A
    out[SOC] = 100.0 * truth.soc
    gases = truth.gas_ppm.transpose(1, 0, 2)
    for reading, response in zip((CO, H2, VOC), CROSS_RESPONSE, strict=True):
        # Not as a matrix product, whose last digit depends on the processor's BLAS.
        out[reading] = sum(share * gas for share, gas in zip(response, gases, strict=True))
    out[AMBIENT] = truth.air_C
    out += sensors.bias.astype(np.float32)[:, :, None]
    return out


def scatter(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """Return the flat positions of a random share of an array's values."""
    size = int(np.prod(shape))
    return rng.integers(size, size=rng.binomial(size, share))


def measure(
    truth: RackTruth,
    current_A: np.ndarray,
    sensors: SensorSet,
    events: Sequence[Event],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return what the rack's sensors report.

    Parameters
    ----------
    truth : RackTruth
    current_A : ndarray of shape (n_steps,)
    sensors : SensorSet
    events : sequence of Event
        Those that touch this rack; instrument faults among them act here.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of shape (n_sensors, n_modules, n_steps), float32
        In the order and units of ``col.SENSORS``.
    """
    readings = ideal_readings(truth, current_A, sensors)
    noise = rng.standard_normal(readings.shape, np.float32)
    noise[AMBIENT] = noise[AMBIENT, 0]
    wild = scatter(rng, noise.shape, OUTLIERS)
    noise.reshape(-1)[wild] = OUTLIER_SD * rng.choice([-1.0, 1.0], wild.size)
    noise *= NOISE_SD[:, None, None]
    readings += noise
    for event in events:
        if CAUSES[event.cause].instrument:
            CAUSES[event.cause].instrument(event, readings)
    np.clip(readings, RANGE[0][:, None, None], RANGE[1][:, None, None], out=readings)
    readings = np.rint(readings * STEPS[:, None, None]) / STEPS[:, None, None]
    readings.reshape(-1)[scatter(rng, readings.shape, MISSING)] = np.nan
    return readings
