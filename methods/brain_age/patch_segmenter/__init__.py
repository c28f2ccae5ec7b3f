"""Label maps from 3-D patches: the networks, the patches that are learnt from, and the windows that are summed."""
