"""Harmonisers: methods that give images of a target site the look of the source site."""
