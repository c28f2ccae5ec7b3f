"""Task models: what is trained on the source site and judged on the others."""
