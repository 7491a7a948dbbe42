"""Tests of orchestration.contracts."""
