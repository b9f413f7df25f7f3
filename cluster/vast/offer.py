"""A machine as the market shows it. Names are Vast's, with the units that it leaves out."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Offer(BaseModel):
    """What can be rented, for how much. What is asked of an offer has to be there; anything else is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    machine_id: int
    gpu_name: str
    num_gpus: int
    #: Of one GPU, as the driver reports it: a card of 24 GB has 24564.
    gpu_ram_mb: Amount = Field(alias="gpu_ram")
    #: The machine's, of which a rental gets the share of its GPUs.
    cpu_ram_mb: Amount = Field(alias="cpu_ram")
    #: The share of the machine's GPUs.
    gpu_frac: Amount
    cpu_cores_effective: Amount
    disk_space_gb: Amount = Field(alias="disk_space")
    cuda_max_good: Amount
    inet_down_mbps: Amount = Field(alias="inet_down")
    #: Dollars per GB.
    inet_down_cost: Amount
    inet_up_cost: Amount
    #: Dollars per GB and month.
    storage_cost: Amount
    #: Dollars per hour, without storage.
    dph_base: Amount
    #: Dollars per hour, with the storage that the search named.
    dph_total: Amount
    #: 0 to 1.
    reliability: Amount = Field(le=1)
    #: Seconds for which it can still be rented.
    duration_s: Amount = Field(alias="duration")
    #: Dollars per hour for the GPUs, from which on a bid is taken.
    min_bid: Amount | None = None
    #: It was searched for as one to bid for.
    is_bid: bool = False
    verification: str | None = None
    #: 1: in a datacenter that Vast has vetted.
    hosting_type: int | None = None
    rentable: bool | None = None
    geolocation: str | None = None

    @property
    def verified(self) -> bool:
        return self.verification == "verified"

    @property
    def datacenter(self) -> bool:
        return self.hosting_type == 1

    @property
    def own_ram_mb(self) -> float:
        """Host memory that a rental gets."""
        return self.cpu_ram_mb * min(self.gpu_frac, 1.0)
