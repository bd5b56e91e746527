"""The block `engine`: who works on shards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pu_kd_pipeline.params.base import Block


class EngineParams(Block):
    """The block `engine`: who works on shards, the cells of a comparison and the trials of a pilot.

    No result depends on it.
    """

    kind: Literal["local", "processes", "ray"] = Field(
        description="local: this process; processes: further ones on this machine; ray: actors of "
        "a Ray cluster, or of one that is started on this machine"
    )
    n_workers: Annotated[int, Field(gt=0)] | None = Field(
        description="null: one per CPU; with ray, one per CPU of the cluster but one, and no more "
        "than its GPUs allow"
    )
    address: str | None = Field(
        description="of the Ray cluster, host:port; auto: the one that this machine belongs to; "
        "null: one is started on this machine and ends with the run. Only ray reads it"
    )
    gpus_per_worker: float = Field(
        ge=0, description="GPUs that Ray reserves for a worker, such as 1, or 0.5 for two on a GPU"
    )
    stall_minutes: float = Field(
        gt=0,
        description="the run fails when no shard was finished for this long: more than the "
        "slowest shard, cell of a comparison or trial of a pilot takes",
    )

    @field_validator("address")
    @classmethod
    def _address_is_of_a_cluster(cls, address: str | None) -> str | None:
        if address is None or address == "auto":
            return address
        if "://" in address:
            raise ValueError(
                f"{address!r} is an address for Ray's client: start the run on a machine of the "
                "cluster, and write host:port or auto"
            )
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address!r} should be host:port, such as 10.0.0.5:6379, or auto")
        return address

    @model_validator(mode="after")
    def _gpus_can_be_reserved(self) -> EngineParams:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker is {gpus:g}: above 1, it should be a whole number")
        if gpus > 0 and self.kind == "processes":
            raise ValueError(
                "gpus_per_worker needs kind ray: nothing distributes GPUs among processes, which "
                "would all use the first one"
            )
        return self
