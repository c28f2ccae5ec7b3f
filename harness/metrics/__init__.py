"""Metrics: overlap, surface, intensity, regression, detection of anomalies, and ranks with their tests.

Each file stands alone and is imported by name (`from harness.metrics.surface import hd95_all`), so that
nothing here costs an import that is not used. All of them take numpy arrays and return float64; a value that
is not defined is nan, never 0 and never a reward.
"""
