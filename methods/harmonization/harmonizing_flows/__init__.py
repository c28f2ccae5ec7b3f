"""Harmonizing Flows: a harmoniser learnt on the source, adapted to a target by the likelihood of a source flow.

Intensities in this package are grey levels 0..255, as published: batches enter through `slices`, and the one way
back to [0, 1] is the end of `HarmonizingFlows.harmonize`.
"""
