"""Methods that map what is abnormal in brain MRI, having learnt from healthy slices only."""
