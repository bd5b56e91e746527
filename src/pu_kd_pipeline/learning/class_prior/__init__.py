"""Estimates of the class prior: the share of positives among the unlabeled."""
