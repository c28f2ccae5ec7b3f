"""ImUnity: a VAE-GAN that repaints a slice in the contrast of another slice, with a latent code that hides the site."""
