"""Scores over HTTP: what each use case takes and answers, and the service that does it."""
