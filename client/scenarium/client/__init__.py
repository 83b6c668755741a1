"""A client of the gateway: ``Client`` waits, ``AsyncClient`` is awaited, and both have the same calls.

>>> with Client() as client:
...     print(client.predict("fraud_text", {"text": "You have won a prize"})["label"])

It needs httpx (and websockets for ``AsyncClient.live``), and imports no other part of Scenarium.
"""

from scenarium.client.answers import Answer, Item, JobStatus, Scenario
from scenarium.client.asynchronous import AsyncClient, AsyncJob
from scenarium.client.blocking import Client, Job
from scenarium.client.errors import DeadlineExceeded, ScenariumAPIError, ScenariumConnectionError
from scenarium.client.flows import Options
from scenarium.client.live import Live, Seen
from scenarium.client.retries import Retry

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "DeadlineExceeded",
    "Item",
    "Job",
    "JobStatus",
    "Live",
    "Options",
    "Retry",
    "Scenario",
    "ScenariumAPIError",
    "ScenariumConnectionError",
    "Seen",
]
