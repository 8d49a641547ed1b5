"""Records on the disk under 128-bit keys: appended, checked when read, never changed.

A folder holds shards, each written by one process of one run and by nobody else, so that any number of processes and
runs may share the folder. A shard is a chain of records: magic, key, length, checksums, payload. What a kill leaves
half written, and what the disk has damaged, fails its checksum, counts as missing and is written anew by whoever
misses it. A record is handed to the system at once, so a killed process loses none. A power cut may take the last
ones; that costs time and nothing else, so nothing waits for the disk here.
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
        folder: made if it is not there.
        process_index: of this process, for the name of its shard.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, process_index: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._own = folder / f"maps-{process_index:05d}-{uuid.uuid4().hex[:12]}.bin"
        self._writer: BinaryIO | None = None
        self._is_writing = True
        self._readers: dict[Path, BinaryIO] = {}
        self._read_up_to: dict[Path, int] = {}
        self._places: dict[bytes, list[tuple[Path, int, int, int]]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Find what other processes have written since."""
        for path in sorted(self.folder.glob(_PATTERN)):
            if path != self._own:
                self._index(path)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all records, headers included, one for each key."""
        return sum(places[-1][2] + _HEADER_SIZE for places in self._places.values())

    def _index(self, path: Path) -> None:
        reader, size = self._reader(path), path.stat().st_size
        position = self._read_up_to.get(path, 0)
        while position + _HEADER_SIZE <= size:
            reader.seek(position)
            header = reader.read(_HEADER_SIZE)
            magic, key, length, checksum = _FIELDS.unpack_from(header)
            if magic != _MAGIC or _CHECK.unpack_from(header, _FIELDS.size)[0] != zlib.crc32(header[: _FIELDS.size]):
                logger.warning(
                    f"{path} is damaged at byte {position}: the {size - position} bytes from there on are not read, "
                    "and the teacher reads those pairs again. Delete the file to free its space."
                )
                position = size
                break
            end = position + _HEADER_SIZE + length
            if end > size:  # being written, or cut short by a kill
                break
            self._places.setdefault(key, []).append((path, position + _HEADER_SIZE, length, checksum))
            position = end
        self._read_up_to[path] = position

    def _reader(self, path: Path) -> BinaryIO:
        if path not in self._readers:
            self._readers[path] = path.open("rb", buffering=0)
        return self._readers[path]

    def get(self, key: bytes) -> bytes | None:
        """The payload, or `None` if there is none that is whole."""
        places = self._places.get(key, [])
        while places:
            path, start, length, checksum = places[-1]
            reader = self._reader(path)
            reader.seek(start)
            payload = reader.read(length)
            if len(payload) == length and _checksum(key, payload) == checksum:
                return payload
            places.pop()
            if not places:
                logger.warning(f"{path} is damaged: the record at byte {start} fails its checksum and is made again.")
        self._places.pop(key, None)
        return None

    def put(self, key: bytes, payload: bytes) -> None:
        """Append a record to this process's shard; where that fails, say so and write no more."""
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
                f"{self._own} cannot be written ({error.strerror or error}): training goes on, but no more maps are "
                "kept, and the teacher reads those pairs at each visit. Make room, or choose another `teacher_cache`."
            )
            return
        self._places.setdefault(key, []).append((self._own, start + _HEADER_SIZE, len(payload), checksum))


def _checksum(key: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(key))
