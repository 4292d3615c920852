"""MLflow: one parent run for a notebook, a child run for each model and each search candidate."""
