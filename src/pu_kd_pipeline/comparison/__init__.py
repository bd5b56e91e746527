"""Comparisons of students on a grid of variants, objectives, numbers of labeled images and seeds."""
