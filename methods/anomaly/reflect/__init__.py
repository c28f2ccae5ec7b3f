"""REFLECT: a rectified flow that carries corrupted latents of brain slices to healthy ones."""
