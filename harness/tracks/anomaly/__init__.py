"""Unsupervised anomaly detection: learn from healthy slices, map the lesions of others.

`spec` is its part of the benchmark file, `plan` the stages, `stages` what runs on workers, `scoring` the numbers,
`processing` what may be done to maps before they are scored, `collect` the records and exhibits of a finished run.
"""
