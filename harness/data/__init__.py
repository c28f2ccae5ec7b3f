"""Datasets: cards, readers, preparation, splits and audits."""
