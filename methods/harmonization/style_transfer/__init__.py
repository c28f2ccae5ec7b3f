"""Style transfer: StarGAN v2 with all sites as one domain, and a style code for each image."""
