"""Estimators of the age of a brain, from volumes or from tables of features."""
