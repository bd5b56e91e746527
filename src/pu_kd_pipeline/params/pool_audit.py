"""The block `pool_audit`."""

from __future__ import annotations

from pydantic import Field

from pu_kd_pipeline.params.base import SEEDS, Block


class PoolAuditParams(Block):
    """The block `pool_audit`: images of the pool that a person answers for."""

    seed: int = Field(ge=0, lt=SEEDS, description="which images are drawn")
    n_images: int = Field(
        ge=20, le=2000, description="number of images; all of a pool that has no more"
    )
    answers: str | None = Field(
        description="file that the page saved; null: pool_audit_answers.json in 01_raw of the data "
        "folder"
    )
    write_labeled: bool = Field(
        description="write the images answered with yes to 01_raw/audited_labeled of the data "
        "folder, one folder per class, from where data_ingestion.labeled can take them"
    )
