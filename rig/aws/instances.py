"""An instance as it is told to who asks: for tests, people and bills."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rig.aws.account import price_per_hour


@dataclass
class Instance:
    """An EC2 instance, alive or not.

    Attributes
    ----------
    id
        Its id.
    kind, zone, market
        Its type; its zone; ``"spot"`` or ``"on-demand"``.
    pool
        Who asked for it: a NodePool's or Auto Scaling group's name, or ``"system"``.
    node
        Its private DNS name, which is its Node's name.
    address
        Its private address.
    launched_s, ended_s
        When it was launched and terminated, in seconds since 1970.
    joined
        Whether its Node is or was there.
    notice_s
        When it will be taken back, if that was announced.
    trouble
        Why it could not boot, which is our own fault and no cloud's; empty if it could.
    """

    id: str
    kind: str
    zone: str
    market: str
    pool: str
    node: str
    address: str
    launched_s: float
    ended_s: float | None = None
    joined: bool = False
    notice_s: float | None = None
    trouble: str = ""

    @property
    def alive(self) -> bool:
        return self.ended_s is None

    @property
    def paid_s(self) -> float:
        """The seconds that are paid for, up to now or its end."""
        return (self.ended_s or time.time()) - self.launched_s

    @property
    def cost(self) -> float:
        """What it cost up to now or its end, in dollars."""
        return self.paid_s / 3600 * price_per_hour(self.kind, self.zone, self.market)

    @property
    def provider_id(self) -> str:
        """What its Node calls it."""
        return f"aws:///{self.zone}/{self.id}"
