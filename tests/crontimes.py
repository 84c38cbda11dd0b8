"""When a CronJob may run: what Kubernetes' API server takes, and what it refuses. A test asks it."""

from __future__ import annotations

TIMES = [
    "0 0 1 1 0",
    "59 23 31 12 6",
    "00 08 01 01 06",
    "*/15 8-18/2 1,15 Jan-Dec,3 sun-SAT",
    "5/10 * * * 1,3-5",
    "1-1 2-2 3-3 jan-2 sun-5",
    "0  8 ? * ?",
    "0 8 * * 1-5 ",
]
NO_TIMES = [
    *(
        "99 99 * * *",
        "60 8 * * *",
        "0 24 * * *",
        "0 8 0 * *",
        "0 8 32 * *",
        "0 8 * 0 *",
        "0 8 * 13 *",
        "0 8 * * 7",
    ),
    *("0,60 8 * * *", "0 1-24 * * *", "1-2-3 8 * * *", "*/0 8 * * *", "0 8 * * * *", "0 8 * *"),
    *("mon 8 * * *", "0 8 * mon *", "0 8 * * jan"),
    *("0 22-6 * * *", "0 8 * * fri-mon", "0 8 * dec-2 *", "0 8 * * 5-sun"),
]
ZONES = ["Europe/Berlin", "UTC", "Zulu", "GMT", "Etc/GMT+9", "America/Argentina/Ushuaia"]
NO_ZONES = ["Europe/Nowhere", "Europe", "Local", "berlin"]
