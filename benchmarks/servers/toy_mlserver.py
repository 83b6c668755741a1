"""The toy model behind MLServer with its adaptive batching: ``toy_mlserver.py PORT``.

In process: its pool of workers takes longer on this model. The request is the V2 protocol's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

sys.path.insert(0, str(Path(__file__).parent))
from toy_model import LABELS, forward, weights


class Toy(MLModel):
    async def load(self) -> bool:
        self.layers = weights()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        features = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        output = forward(self.layers, features)
        best = output.argmax(axis=1)
        outputs = [NumpyCodec.encode_output("label", best[:, None]), NumpyCodec.encode_output("score", output.max(axis=1)[:, None])]
        assert len(LABELS) == output.shape[1]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    port = int(sys.argv[1])
    settings = Settings(host="127.0.0.1", http_port=port, grpc_port=0, metrics_endpoint=None, parallel_workers=0, use_structured_logging=False, debug=False)
    server = MLServer(settings)
    model = ModelSettings(name="toy", implementation=Toy, max_batch_size=32, max_batch_time=0.001)
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
