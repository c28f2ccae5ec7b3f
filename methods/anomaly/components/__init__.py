"""What several anomaly detectors learn alike: autoencoders, latents, diffusion models."""
