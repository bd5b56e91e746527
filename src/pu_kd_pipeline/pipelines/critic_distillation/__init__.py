"""Pipeline `critic_distillation`: a student from the original images, with a PU critic (S0)."""

from pu_kd_pipeline.pipelines.critic_distillation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
