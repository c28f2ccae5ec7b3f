"""THOR: a descent that is drawn back to the input wherever the input looks healthy."""
