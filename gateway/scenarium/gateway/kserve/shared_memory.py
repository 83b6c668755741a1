"""Triton's system shared memory extension: POSIX shared memory that a client on this machine made and registers by its key.

The regions are read and written through their descriptors, not mapped: a client that shortens its region while it is used gets an error,
where a mapping would end the gateway by SIGBUS.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import to_json

from scenarium.core.errors import ScenariumError
from scenarium.core.tensors import Malformed, read_header

FOLDER = Path("/dev/shm")
"""Where Linux keeps POSIX shared memory; see shm_overview(7)."""
_MEMBERS = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


class Part(NamedTuple):
    """A part of a region."""

    region: Region
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            ScenariumError: SCN-4203.
        """
        found = os.pread(self.region.fd, self.size, self.region.offset + self.offset)
        if len(found) != self.size:
            raise _wrong(self.region.name, "is shorter than it was", "比注册时短")
        return found

    def write(self, data: bytes) -> None:
        """Put bytes at its start.

        Raises:
            ScenariumError: SCN-4203.
        """
        start = self.region.offset + self.offset
        if len(data) > self.size or os.fstat(self.region.fd).st_size < start + len(data):
            text = f"has {self.size} bytes for an output that needs {len(data)}"
            raise _wrong(self.region.name, text, f"只有 {self.size} 个字节，而输出需要 {len(data)} 个")
        os.pwrite(self.region.fd, data, start)


class Region:
    """One registered region."""

    def __init__(self, name: str, key: str, offset: int, size: int) -> None:
        self.name, self.key, self.offset, self.size = name, key, offset, size
        plain = key.removeprefix("/")
        if not plain or "/" in plain or "\0" in plain or plain in (".", ".."):
            raise _wrong(name, f"has an impossible key {key!r}", f"的键 {key!r} 无效")
        try:
            self.fd = os.open(FOLDER / plain, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as fault:
            raise _wrong(name, f"cannot be opened ({fault.strerror})", f"无法打开（{fault.strerror}）") from None
        if os.fstat(self.fd).st_size < offset + size:
            raise _wrong(name, f"has less than {offset + size} bytes", f"不足 {offset + size} 个字节")

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def shown(self) -> dict[str, Any]:
        """As the protocol lists it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size}


def _wrong(name: str, en: str, zh: str) -> ScenariumError:
    return ScenariumError("SCN-4203", name=name, reason_en=en, reason_zh=zh)


class Regions:
    """The regions of one gateway. A request that uses one keeps it open, whatever is unregistered meanwhile."""

    def __init__(self) -> None:
        self.regions: dict[str, Region] = {}

    def register(self, name: str, key: Any, offset: Any, size: Any) -> None:
        """Add a region.

        Raises:
            ScenariumError: SCN-4203.
        """
        if name in self.regions:
            raise _wrong(name, "is registered already", "已经注册")
        if not isinstance(key, str) or any(type(each) is not int or each < 0 for each in (offset, size)) or size == 0:
            raise _wrong(name, "needs a key, an offset and a byte_size above 0", "需要 key、offset 和大于 0 的 byte_size")
        self.regions[name] = Region(name, key, offset, size)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; one that is not there is no error."""
        if name:
            self.regions.pop(name, None)
        else:
            self.regions.clear()

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """One region, or all.

        Raises:
            ScenariumError: SCN-4203 (not registered).
        """
        if name and name not in self.regions:
            raise _wrong(name, "is not registered", "尚未注册")
        return [region.shown() for each, region in self.regions.items() if name in ("", each)]

    def part(self, parameters: dict[str, Any]) -> Part:
        """The part that the parameters of a tensor name.

        Raises:
            ScenariumError: SCN-4203.
        """
        name, offset, size = (parameters.get(member, 0) for member in _MEMBERS)
        region = self.regions.get(name) if isinstance(name, str) else None
        if region is None:
            raise _wrong(str(name)[:80], "is not registered", "尚未注册")
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0 or offset + size > region.size:
            raise _wrong(region.name, f"has {region.size} bytes, which do not hold what is asked for", f"只有 {region.size} 个字节，不足所请求的部分")
        return Part(region, offset, size)

    def inline(self, header: dict[str, Any], body: bytes, length: int) -> tuple[bytes, int, dict[str, Part]]:
        """A request with the inputs that lie in regions put into its body: body, length of its header, and where outputs go.

        Raises:
            ScenariumError: SCN-4203; Malformed.
        """
        at, parts = length or len(body), []
        placed: dict[str, Part] = {}
        for tensor, parameters in _tensors(header, "inputs"):
            size = parameters.get("binary_data_size")
            if _MEMBERS[0] in parameters:
                data = self.part(parameters).read()
                tensor["parameters"] = {"binary_data_size": len(data)}
                tensor.pop("data", None)
                parts.append(data)
            elif size is not None:
                if type(size) is not int or size < 0 or at + size > len(body):
                    raise Malformed("has a wrong binary_data_size", "的 binary_data_size 有误")
                parts.append(body[at : at + size])
                at += size
        for tensor, parameters in _tensors(header, "outputs"):
            if _MEMBERS[0] in parameters:
                placed[str(tensor.get("name"))] = self.part(parameters)
                tensor["parameters"] = {key: value for key, value in parameters.items() if key not in _MEMBERS} | {"binary_data": True}
        head = to_json(header)
        return b"".join((head, *parts, body[at:])), len(head), placed

    @staticmethod
    def place(body: bytes, length: int, placed: dict[str, Part]) -> tuple[bytes, int]:
        """Write the outputs of an answer where its request wants them; the answer without their bytes.

        Raises:
            ScenariumError: SCN-4203 (one is too large).
        """
        header, at, rest = read_header(body[:length]), length, []
        for output in header["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is None:
                continue
            data, at = body[at : at + size], at + size
            part = placed.get(output["name"])
            if part is None:
                rest.append(data)
                continue
            part.write(data)
            del output["parameters"]  # as with Triton, whose C++ client takes any for those of bytes that follow
        head = to_json(header)
        return b"".join((head, *rest)), len(head) if rest else 0


def _tensors(header: dict[str, Any], kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The tensors of a header that have parameters."""
    listed = header.get(kind)
    found = [each for each in listed if isinstance(each, dict) and isinstance(each.get("parameters"), dict)] if isinstance(listed, list) else []
    return [(each, each["parameters"]) for each in found]
