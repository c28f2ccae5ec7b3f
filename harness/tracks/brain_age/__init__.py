"""Brain age from anatomy: sizes and surfaces of segmented regions, and a regression on them."""
