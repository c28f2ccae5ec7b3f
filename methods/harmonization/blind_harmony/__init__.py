"""BlindHarmony: a flow learns the source's slices; target slices are sought that resemble the input and are likely."""
