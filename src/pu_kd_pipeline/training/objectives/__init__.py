"""Objectives of distillation: losses, and modules that are trained in addition to the student."""
