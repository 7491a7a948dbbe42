"""The registry, MLflow: what was fitted, on what, and which model is in force."""
