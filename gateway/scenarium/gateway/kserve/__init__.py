"""The Open Inference Protocol (KServe v2) as Triton speaks it: HTTP/REST and gRPC, for unmodified Triton clients."""
