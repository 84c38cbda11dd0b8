"""The status page as people see it: a browser, an ingress with a path of its own, a cluster at work."""

from __future__ import annotations

import asyncio
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from abilities import skip_unless_ci
from browser import find, open_browser
from distributed import Client, Event
from ingress import Ingress
from releases import POOL, Release
from waiting import until

from rig.nodes import Cluster

pytestmark = [
    pytest.mark.xdist_group("nodes"),
    pytest.mark.timeout(300, func_only=True),
    # Here and in the image are two patch releases of Python.
    pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning"),
]

HOST, PATH = "dask.example.org", "/science/dask"
#: How many tasks the page's task stream shows.
SHOWN = """
Bokeh.documents.flatMap(document => [...document._all_models.values()])
    .filter(model => model.type == "ColumnDataSource" && "worker_thread" in model.data)
    .reduce((sum, model) => sum + model.get_length(), 0)
"""
#: Where to keep the picture for the documentation: a folder.
PICTURES = os.environ.get("DASK_TIDE_PICTURES")


@pytest.fixture
def release(nodes: Cluster, new_namespace: Callable[..., str], tmp_path: Path) -> Iterator[Release]:
    if find() is None:
        skip_unless_ci("no browser: apt-get install --no-install-recommends chromium")
    release = Release(nodes, new_namespace(nodes.kubectl, "restricted"), "r", tmp_path)
    ingress = {"enabled": True, "host": HOST, "path": PATH}
    release.apply("install", {"pools": {"cpu": POOL | {"maximum": 4}}, "ingress": ingress})
    release.ready()
    yield release
    release.close()


def fetch(url: str) -> str:
    with urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def work(client: Client, go_on: Event, width: int) -> list[Any]:
    """Tasks of several kinds and lengths; one waits for ``go_on``."""

    def load(number: int) -> int:
        from time import sleep

        sleep(0.2 + number % 7 / 20)
        return number

    def clean(number: int) -> int:
        from time import sleep

        sleep(0.1 + number % 5 / 20)
        return number

    def fit(*numbers: int) -> int:
        from time import sleep

        sleep(0.5)
        return sum(numbers)

    def decide(event: Event) -> bool:
        return bool(event.wait(200))

    loaded = client.map(load, range(width), pure=False)
    cleaned = client.map(clean, loaded, pure=False)
    fitted = [client.submit(fit, *cleaned[start : start + 8], pure=False) for start in range(0, width, 8)]
    return [*fitted, client.submit(decide, go_on, pure=False)]


async def test_the_status_page_lives_behind_an_ingress(release: Release, tmp_path: Path) -> None:
    (rule,) = await asyncio.to_thread(release.objects, "ingresses")
    service = rule["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert service["port"] == {"name": "http-dashboard"}
    (found,) = await asyncio.to_thread(release.objects, "services")
    assert found["metadata"]["name"] == service["name"]
    (port,) = (each["port"] for each in found["spec"]["ports"] if each["name"] == "http-dashboard")
    behind = await asyncio.to_thread(release.forward, f"service/{service['name']}", port)
    ingress = Ingress(rule, f"127.0.0.1:{behind}")

    comm = await asyncio.to_thread(release.forward, f"service/{service['name']}", 8786)
    security = await asyncio.to_thread(release.security)
    async with (
        ingress.serve(),
        Client(f"tls://127.0.0.1:{comm}", security=security, asynchronous=True, timeout=30) as client,
        open_browser(tmp_path, {HOST: "127.0.0.1"}) as page,
    ):
        address = f"http://{HOST}:{ingress.port}"
        go_on = Event("go-on", client=client)
        futures = work(client, go_on, 160 if PICTURES else 24)
        later: list[Any] = []

        await page.go(f"{address}{PATH}/status")
        await until(lambda: page.value("document.title == 'Dask: Status'"), "the page is there")
        before = await until(lambda: page.value(SHOWN), "tasks are shown")
        seen = ingress.messages["down"]

        async def more(than: int) -> bool:
            # However late the page came, there are tasks that it has not shown yet.
            later.append(client.submit(operator.neg, len(later)))
            return int(await page.value(SHOWN) or 0) > than

        await until(lambda: more(before), "more tasks are shown, by and by")
        assert ingress.messages["down"] > seen
        if PICTURES:
            await until(lambda: more(60), "a good deal of work")
        picture = await page.picture()
        assert len(picture) > 30_000, "there is something on it"
        if PICTURES:
            await asyncio.to_thread((Path(PICTURES) / "kubernetes-status.png").write_bytes, picture)
        await go_on.set()
        await client.gather(futures)

        # As the ServiceMonitor has it.
        metrics = await asyncio.to_thread(fetch, f"http://127.0.0.1:{behind}{PATH}/metrics")
        assert "dask_scheduler_workers" in metrics

        # What is not below the path is none of the page's business, and nothing of it was asked for.
        assert set(ingress.answers) <= {200, 301, 302, 304}, ingress.answers
        await page.go(f"{address}/status")
        await until(lambda: page.value("document.title.includes('404')"), "not found")
        futures.clear()
        later.clear()
