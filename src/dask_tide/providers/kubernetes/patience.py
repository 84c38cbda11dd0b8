"""Patience: how long the provider waits for what."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Patience"]


@dataclass(frozen=True)
class Patience:
    """Durations, in seconds; tests have less of it.

    Attributes
    ----------
    watch_s
        The API server ends a watch after so long, and the next one starts where it ended.
    silence_s
        The server sends a bookmark a minute: one that is silent for so long has gone without a word. Of
        kinds without bookmarks it ends watches after ``watch_s``, which may take so much longer to arrive.
    resync_s
        Everything is listed anew when a watch ends so long after the last list, whatever the watches said.
    failed_s, failed_max_s
        Pause after a call that failed, doubled with each further one, and its upper bound.
    refused_s, refused_max_s
        The same where we have no right: somebody must change something first. (A server that has just
        started refuses everything for a moment.)
    park_s
        How long a drained worker may take to park until its pod is seen as unready.
    start_s
        How long pods that are just starting may keep others waiting that are to go.
    delete_s
        How long the ReplicaSet's controller may take to delete pods until it is told again.
    quota_s, quota_max_s
        For how long a quota's refusal is believed, doubled with each further one, and its upper bound.
    rival_s
        For how long a second scaler is believed to be there after it was last seen.
    idle_s
        For how long a pod must have been idle before it says so.
    marks_refused_s
        Upper bound of the pause where a pod may not be patched, which begins with ``refused_s`` and doubles.
    """

    watch_s: float = 240.0
    silence_s: float = 150.0
    resync_s: float = 3600.0
    failed_s: float = 0.2
    failed_max_s: float = 5.0
    refused_s: float = 2.0
    refused_max_s: float = 30.0
    park_s: float = 10.0
    start_s: float = 20.0
    delete_s: float = 5.0
    quota_s: float = 30.0
    quota_max_s: float = 300.0
    rival_s: float = 300.0
    idle_s: float = 5.0
    marks_refused_s: float = 300.0
