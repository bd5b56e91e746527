"""The class prior: the share of positives among the unlabeled, when nobody knows it."""
