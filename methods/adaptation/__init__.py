"""Test-time adapters: they change the trained task model on the target's unlabelled test images."""
