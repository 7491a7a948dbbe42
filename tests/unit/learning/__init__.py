"""Tests of orchestration.learning."""
