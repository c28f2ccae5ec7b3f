"""MAD-AD: a diffusion model of latents that finds what is noisy, and mends nothing else."""
