"""Handlers as people write them, one per pattern: fixtures for the worker tests. They know nothing of ts_parity."""
