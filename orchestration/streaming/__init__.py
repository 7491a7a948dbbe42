"""Online features and scores for events: the incremental twin of the SQL features."""
