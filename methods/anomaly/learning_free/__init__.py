"""Detectors that train no network: what any other must beat."""
