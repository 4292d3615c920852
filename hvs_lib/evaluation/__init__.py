"""What models are worth: split, fit, score, calibrate, alarms, metrics and their intervals."""
