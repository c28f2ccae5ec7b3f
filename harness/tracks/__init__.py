"""One module per evaluation protocol: its spec section, its plan and its stage functions."""
