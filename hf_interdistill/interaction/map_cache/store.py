"""An append-only store of records under 128-bit keys, with checksums.

A folder holds shards. Each shard is written by one process of one run only, so any number of processes and runs may
share the folder. A shard is a sequence of records: magic, key, length, checksums, payload. A record that was cut by a
kill or damaged on the disk fails its checksum and counts as missing, so it is computed and written again. Records are
written without buffering, so a killed process loses none. A power cut may lose the last ones; they are only computed
again, so the store does not wait for the disk (no `fsync`).
"""

from __future__ import annotations

import logging
import struct
import uuid
import zlib
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

_FIELDS = struct.Struct("<4s16sQI")  # magic, key, bytes of the payload, checksum of key and payload
_CHECK = struct.Struct("<I")  # checksum of the fields
_HEADER_SIZE = _FIELDS.size + _CHECK.size
_MAGIC = b"IMAP"
_PATTERN = "maps-*.bin"


class RecordStore:
    """Payloads by key.

    Args:
        folder: created if it is missing.
        process_index: of this process, part of the name of its shard.

    Raises:
        OSError: the folder cannot be created.
    """

    def __init__(self, folder: Path, process_index: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._own = folder / f"maps-{process_index:05d}-{uuid.uuid4().hex[:12]}.bin"
        self._writer: BinaryIO | None = None
        self._is_writing = True
        self._readers: dict[Path, BinaryIO] = {}
        self._indexed_up_to: dict[Path, int] = {}
        self._locations: dict[bytes, list[tuple[Path, int, int, int]]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._locations)

    def __contains__(self, key: bytes) -> bool:
        return key in self._locations

    def refresh(self) -> None:
        """Find the records that other processes have written since."""
        for path in sorted(self.folder.glob(_PATTERN)):
            if path != self._own:
                self._index(path)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all records, headers included, one for each key."""
        return sum(locations[-1][2] + _HEADER_SIZE for locations in self._locations.values())

    def _index(self, path: Path) -> None:
        reader, size = self._reader(path), path.stat().st_size
        position = self._indexed_up_to.get(path, 0)
        while position + _HEADER_SIZE <= size:
            reader.seek(position)
            header = reader.read(_HEADER_SIZE)
            magic, key, length, checksum = _FIELDS.unpack_from(header)
            if magic != _MAGIC or _CHECK.unpack_from(header, _FIELDS.size)[0] != zlib.crc32(header[: _FIELDS.size]):
                logger.warning(
                    f"{path} is damaged at byte {position}: the {size - position} bytes from there on are not read, "
                    "and the teacher computes those maps again. Delete the file to free its space."
                )
                position = size
                break
            end = position + _HEADER_SIZE + length
            if end > size:  # being written, or cut short by a kill
                break
            self._locations.setdefault(key, []).append((path, position + _HEADER_SIZE, length, checksum))
            position = end
        self._indexed_up_to[path] = position

    def _reader(self, path: Path) -> BinaryIO:
        if path not in self._readers:
            self._readers[path] = path.open("rb", buffering=0)
        return self._readers[path]

    def get(self, key: bytes) -> bytes | None:
        """The payload, or `None` if there is no undamaged one."""
        locations = self._locations.get(key, [])
        while locations:
            path, start, length, checksum = locations[-1]
            reader = self._reader(path)
            reader.seek(start)
            payload = reader.read(length)
            if len(payload) == length and _checksum(key, payload) == checksum:
                return payload
            locations.pop()
            if not locations:
                logger.warning(f"{path} is damaged: the record at byte {start} fails its checksum, so it is not used.")
        self._locations.pop(key, None)
        return None

    def put(self, key: bytes, payload: bytes) -> None:
        """Append a record to the shard of this process; after a failure, warn and write no more."""
        if not self._is_writing:
            return
        checksum = _checksum(key, payload)
        fields = _FIELDS.pack(_MAGIC, key, len(payload), checksum)
        record = memoryview(fields + _CHECK.pack(zlib.crc32(fields)) + payload)
        try:
            if self._writer is None:
                self._writer = self._own.open("xb", buffering=0)
            start = self._writer.tell()
            while record:
                record = record[self._writer.write(record) :]
        except OSError as error:
            self._is_writing = False
            logger.warning(
                f"{self._own} cannot be written ({error.strerror or error}): training continues, but no more maps "
                "are cached, and the teacher computes them at each visit. Free space, or set another `teacher_cache`."
            )
            return
        self._locations.setdefault(key, []).append((self._own, start + _HEADER_SIZE, len(payload), checksum))


def _checksum(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key))
