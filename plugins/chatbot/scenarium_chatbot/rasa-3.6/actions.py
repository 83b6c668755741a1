"""The shipped custom actions. They run in the bot's own process, on its event loop: what waits must be ``async``.

A user's own file (``serve.actions``) may define actions with the same names; they take the place of these.
"""

from __future__ import annotations

import csv
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from rasa_sdk import Action, Tracker
from rasa_sdk.events import SlotSet
from rasa_sdk.executor import CollectingDispatcher

ORDERS: dict[str, dict[str, str]] = {}
"""Order number, upper case, to its row of the table."""
SETTINGS: dict[str, Any] = {"demo": True, "refunds": None}


def read_orders(path: Path) -> None:
    """Read the order table: CSV with a header; ``order_id``, ``status`` and perhaps ``status_zh``."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    ORDERS.clear()
    ORDERS.update({row["order_id"].strip().upper(): row for row in rows})


class ActionLookupOrder(Action):
    """Answers the status of the order in the slot ``order_id``."""

    def name(self) -> str:
        return "action_lookup_order"

    async def run(self, dispatcher: CollectingDispatcher, tracker: Tracker, domain: dict[str, Any]) -> list[dict[str, Any]]:
        order_id = (tracker.get_slot("order_id") or "").upper()
        if not order_id:
            dispatcher.utter_message(response="utter_order_id_invalid")
            return []
        order = ORDERS.get(order_id)
        if order is None:
            dispatcher.utter_message(response="utter_order_not_found", found_id=order_id)
            return [SlotSet("order_id", None)]
        chinese = language(tracker) == "zh"
        status = (chinese and order.get("status_zh")) or order["status"]
        if SETTINGS["demo"]:
            status += "（演示数据）" if chinese else " (demo data)"
        dispatcher.utter_message(response="utter_order_found", found_id=order_id, status=status)
        return [SlotSet("order_id", order_id)]


class ActionRequestRefund(Action):
    """Writes a refund request down, if it was confirmed: one JSON line in ``refunds.jsonl`` of the scenario's data folder."""

    def name(self) -> str:
        return "action_request_refund"

    async def run(self, dispatcher: CollectingDispatcher, tracker: Tracker, domain: dict[str, Any]) -> list[dict[str, Any]]:
        order_id = (tracker.get_slot("order_id") or "").upper()
        if not tracker.get_slot("refund_confirmed"):
            dispatcher.utter_message(response="utter_refund_dropped")
            return [SlotSet("refund_confirmed", None)]
        request = {"request_id": "R" + uuid.uuid4().hex[:8].upper(), "order_id": order_id, "session_id": tracker.sender_id, "time": int(time.time())}
        if SETTINGS["refunds"]:
            with open(SETTINGS["refunds"], "a", encoding="utf8") as file:
                file.write(json.dumps(request, ensure_ascii=False) + os.linesep)
        dispatcher.utter_message(response="utter_refund_requested", found_id=order_id, request_id=request["request_id"])
        return [SlotSet("refund_confirmed", None), SlotSet("order_id", None)]


class ActionHandover(Action):
    """Says that a person takes over; the answer's ``handover`` tells the client."""

    def name(self) -> str:
        return "action_handover"

    async def run(self, dispatcher: CollectingDispatcher, tracker: Tracker, domain: dict[str, Any]) -> list[dict[str, Any]]:
        dispatcher.utter_message(response="utter_handover")
        return []


def language(tracker: Tracker) -> str:
    """The language of the user's last message that has one."""
    found = ((event.get("metadata") or {}).get("language") for event in reversed(tracker.events) if event["event"] == "user")
    return next(filter(None, found), "en")
