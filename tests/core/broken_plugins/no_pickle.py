"""Fault: a pickle lies in the version."""

from __future__ import annotations

import pickle

from healthy import *


@hookimpl(wrapper=True)
def train(run: Any) -> Any:
    done = yield
    (run.out / "labels.bin").write_bytes(pickle.dumps(run.state))
    return done
