"""pDDPM: a box of a slice at a time is drowned in noise, and predicted from the rest."""
