"""Losses and risks: tensors in, tensors out."""
