"""CycleGAN: two generators between two sites, each the other's inverse."""
