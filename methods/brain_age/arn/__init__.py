"""ARN: an ensemble of residual attention networks on the central slice, which also say how sure they are."""
