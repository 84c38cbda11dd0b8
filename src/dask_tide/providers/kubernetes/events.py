"""Events: what the platform says about pods beyond their status, and who scales them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .objects import Event

__all__ = ["EVICTED", "IGNORED", "EventView", "read_event"]

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


#: The reason that matters whatever the phase. The status of a pod that its kubelet evicts does not say so
#: if its containers then end well, as those of drained workers do.
EVICTED = "Evicted"
#: What a VerticalPodAutoscaler's updater says of a pod: `EvictedByVPA`, `InPlaceResizedByVPA`.
_BY_VPA = "ByVPA"
#: What node autoscalers say of a pod without a place: whether a machine is coming.
_MACHINE = {
    ("cluster-autoscaler", "TriggeredScaleUp"): True,
    ("cluster-autoscaler", "NotTriggerScaleUp"): False,
    ("karpenter", "Nominated"): True,
    ("karpenter", "FailedScheduling"): False,
    # Karpenter again, as EKS runs it for its users.
    ("eks-auto-mode/compute", "Nominated"): True,
    ("eks-auto-mode/compute", "FailedScheduling"): False,
}
#: Who scales horizontally, and what it says when it has.
_AUTOSCALER, _RESCALED = "HorizontalPodAutoscaler", "SuccessfulRescale"


@dataclass(frozen=True)
class EventView:
    """What an event says of a pod, or of a HorizontalPodAutoscaler that has scaled something.

    Attributes
    ----------
    name
        Of the pod or the autoscaler.
    words
        The reason and the message.
    autoscaler
        Whether it is about an autoscaler.
    resized
        Whether it is a VerticalPodAutoscaler's: it has changed the pod, or evicts it.
    machine
        Whether a machine is coming for the pod, according to a node autoscaler; None: it is not about that.
    at
        When it was last seen: a list has all events of the last hour. None: it does not say.
    """

    name: str
    words: str
    autoscaler: bool = False
    resized: bool = False
    machine: bool | None = None
    at: datetime | None = None

    @property
    def age_s(self) -> float:
        """Seconds since then; 0 if it does not say."""
        return 0.0 if self.at is None else max(0.0, (datetime.now(UTC) - self.at).total_seconds())


def read_event(event: Event) -> EventView | None:
    """What an event says; None if it is about something else."""
    about, reason = event.involved_object, event.reason or ""
    words = f"{reason}: {event.message or ''}".rstrip(": ")
    # Each client library writes another one of them.
    series = event.series.last_observed_time if event.series is not None else None
    at = series or event.last_timestamp or event.event_time
    if about.kind == "Pod":
        says = event.reporting_component or event.source.component or ""
        return EventView(
            about.name, words, resized=reason.endswith(_BY_VPA), machine=_MACHINE.get((says, reason)), at=at
        )
    if about.kind == _AUTOSCALER and reason == _RESCALED:
        return EventView(about.name, words, autoscaler=True, at=at)
    return None
