"""2DTTA: a residual network on single slices, augmented when it predicts; a scan's age is the mode of its slices'."""
