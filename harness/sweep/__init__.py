"""`harness sweep`: a search over the fields of one method, on Ray Tune.

file:   what a sweep file says, resolved.     space: what each field takes, and the trials that come of it.
trials: trials on Ray Tune, and the journal.  run:   a sweep from its file to its report.   view: what is shown.
"""
