"""Events: what the platform says about pods beyond their status."""

from __future__ import annotations

from dataclasses import dataclass

from .objects import Event

__all__ = ["IGNORED", "EventView", "read_event"]

#: Field selector: what everything goes well with is not worth the traffic.
IGNORED = ",".join(
    f"reason!={reason}"
    for reason in (
        "Scheduled",
        "Pulling",
        "Pulled",
        "Created",
        "Started",
        "Killing",
        "SuccessfulCreate",
        "SuccessfulDelete",
        # A worker that starts, or has parked.
        "Unhealthy",
    )
)


@dataclass(frozen=True)
class EventView:
    """What an event says of a pod."""

    name: str
    words: str


def read_event(event: Event) -> EventView | None:
    """What an event says of a pod; None if it is about something else."""
    about = event.involved_object
    if about.kind != "Pod":
        return None
    return EventView(about.name, f"{event.reason}: {event.message or ''}".rstrip(": "))
