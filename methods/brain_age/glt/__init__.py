"""GLT: what local windows of a slice see, put into the context of the whole slice by attention."""
