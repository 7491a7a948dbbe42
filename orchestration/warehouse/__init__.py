"""The warehouse: a DuckLake, its connections, its one-writer lock, and how dbt reaches it."""
