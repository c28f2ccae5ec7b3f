"""Age from sizes and surfaces of regions: features are chosen and scaled, then a classical regression predicts."""
