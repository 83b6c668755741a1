"""The toy model through a worker beside plain FastAPI and LitServe alone: the spine's part of ``benchmarks.gateway_toy``, in the spine's file."""

from __future__ import annotations

from benchmarks import gateway_toy, peers, results


def main() -> None:
    """Run, print and write."""
    made = gateway_toy.figures(comparisons=1)
    results.show(made)
    results.write("spine", made, gateway_toy.PACKAGES, peers.versions("peers.txt"))


if __name__ == "__main__":
    main()
