"""Comparisons of students over variants, objectives, numbers of labeled images and seeds."""
