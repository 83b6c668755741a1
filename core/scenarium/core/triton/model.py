"""``model.py`` of an entry whose scenario is no tensor function: Triton's python backend runs it, in an interpreter of its own.

It imports nothing of Scenarium. Requests go to a process of the interpreter that the entry's parameters name (``scenarium.core.triton.answering``), over its
standard input and output; one that has died is started anew by the next request.
"""

import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

NUMBER = struct.Struct("<I")
MEANINGS = {404: "NOT_FOUND", 503: "UNAVAILABLE", 504: "UNAVAILABLE"}
"""Status to Triton's name of the fault; below 500 it is INVALID_ARG, else INTERNAL."""


class Fault(Exception):
    """What the process has said, with its status."""


class TritonPythonModel:
    """What Triton makes of this file, once an instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """The configuration is complete."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Start the process; the model is ready when it has loaded the version."""
        given = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        # What Triton's own interpreter needs would harm the other.
        self.environ = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")}
        if "PYTHONPATH" in given:
            self.environ["PYTHONPATH"] = given["PYTHONPATH"]
        self.command = [given["PYTHON"], "-m", "scenarium.core.triton.answering", given["STORE"], given["SCENARIO"], args["model_version"]]
        self.start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        # In a session of its own, so that Ctrl-C in Triton's terminal is left to ``finalize``.
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environ, start_new_session=True)
        assert self.process.stdin
        assert self.process.stdout
        self.sink, self.source = self.process.stdin, self.process.stdout
        self.read()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request: every element of ``REQUEST`` is a body, and one of ``RESPONSE`` its answer."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The answer to one, or its error."""
        asked = [each if isinstance(each, bytes) else str(each).encode() for each in pb.get_input_tensor_by_name(request, "REQUEST").as_numpy().reshape(-1)]
        try:
            if self.process.poll() is not None:
                self.end()
                self.start()
            self.sink.write(NUMBER.pack(len(asked)) + b"".join(NUMBER.pack(len(each)) + each for each in asked))
            self.sink.flush()
            found = self.read()
        except Fault as fault:
            status, text = fault.args
            meaning = MEANINGS.get(status, "INVALID_ARG" if status < 500 else "INTERNAL")
            return pb.InferenceResponse(error=pb.TritonError(text, getattr(pb.TritonError, meaning)))
        except (OSError, EOFError) as fault:
            self.end()
            text = f"The process of the model ended while it answered ({fault}); the next request starts another."
            return pb.InferenceResponse(error=pb.TritonError(text, pb.TritonError.UNAVAILABLE))
        return pb.InferenceResponse([pb.Tensor("RESPONSE", np.array(found, dtype=np.object_))])

    def read(self) -> list[bytes]:
        """What it says next: a status, and elements."""
        status, count = self.number(), self.number()
        found = [self.exactly(self.number()) for _ in range(count)]
        if status != 200:
            raise Fault(status, found[0].decode())
        return found

    def number(self) -> int:
        """The next number."""
        (found,) = NUMBER.unpack(self.exactly(NUMBER.size))
        return int(found)

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        found: bytes = self.source.read(size)
        if len(found) < size:
            raise EOFError(f"status {self.process.wait()}")
        return found

    def end(self) -> None:
        """End it: at the end of its input it leaves, else it is killed."""
        with contextlib.suppress(OSError):  # it may be gone already
            self.sink.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.source.close()

    def finalize(self) -> None:
        """Triton unloads the model."""
        self.end()
