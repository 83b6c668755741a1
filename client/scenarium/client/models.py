"""The base of the classes that ``scenarium snippet NAME --lang types`` writes. Needs pydantic, which only such modules import."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A request or an answer. Bytes are base64 in JSON."""

    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64", protected_namespaces=())
