"""Model evaluation: splits, fits, scores, calibration, alarms, metrics and their intervals."""
