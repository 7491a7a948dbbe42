"""The graph in Dagster's vocabulary, thin: what each asset is, never how its work is done."""
