"""What a rental costs. All amounts are dollars."""

from dataclasses import dataclass

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Prices, fixed when it is rented."""

    gpu_usd_per_hour: float
    #: Of its whole disk.
    storage_usd_per_hour: float
    down_usd_per_gb: float = 0.0
    up_usd_per_gb: float = 0.0

    @property
    def usd_per_hour(self) -> float:
        """For as long as it exists."""
        return self.gpu_usd_per_hour + self.storage_usd_per_hour

    def traffic_usd(self, down_bytes: float, up_bytes: float) -> float:
        return (down_bytes * self.down_usd_per_gb + up_bytes * self.up_usd_per_gb) / _GB
