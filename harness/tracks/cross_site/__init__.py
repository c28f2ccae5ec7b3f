"""Cross-site harmonisation: a task model of one site, scored on every other site.

`spec` is its part of the benchmark file, `plan` the stages, `stages` what runs on workers, `collect` the
records and exhibits of a finished run.
"""
