"""Records on the disk: found again whole, or not at all."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

import pytest
from support.datasets import ROOT

from hf_interdistill.interaction.map_cache.store import RecordStore


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def payload(number: int) -> bytes:
    return bytes([number % 251]) * (20 + number)


def write(folder, numbers, process_index=0) -> RecordStore:
    store = RecordStore(folder, process_index)
    for number in numbers:
        store.put(key(number), payload(number))
    return store


def shard(folder):
    (path,) = folder.glob("maps-*.bin")
    return path


def test_records_are_found_by_their_writer_and_by_others(tmp_path):
    writer = write(tmp_path / "cache", range(5))
    reader = RecordStore(tmp_path / "cache")
    for store in (writer, reader):
        assert len(store) == 5 and key(3) in store and key(9) not in store
        assert [store.get(key(number)) for number in range(5)] == [payload(number) for number in range(5)]
        assert store.get(key(9)) is None
        assert store.stored_bytes == shard(tmp_path / "cache").stat().st_size


def test_several_writers_share_a_folder(tmp_path):
    stores = [write(tmp_path, (10 * index, 10 * index + 1), process_index=index) for index in range(3)]
    assert len({path.name for path in tmp_path.iterdir()}) == 3
    assert stores[0].get(key(20)) is None  # written after it looked
    stores[0].refresh()
    assert stores[0].get(key(20)) == payload(20)
    stores[1].put(key(12), payload(12))
    stores[0].refresh()
    assert stores[0].get(key(12)) == payload(12) and len(stores[0]) == 7


def test_nothing_is_made_until_something_is_written(tmp_path):
    store = RecordStore(tmp_path)
    assert store.get(key(1)) is None and not list(tmp_path.iterdir())


def test_a_shard_cut_anywhere_loses_only_the_records_after_the_cut(tmp_path):
    write(tmp_path, range(3))
    path = shard(tmp_path)
    whole = path.read_bytes()
    lengths = [len(whole) - 36 * 3 - sum(len(payload(i)) for i in range(3))]
    assert lengths == [0]  # 36 bytes of header a record
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        store = RecordStore(tmp_path)
        ends = [36 * (n + 1) + sum(len(payload(i)) for i in range(n + 1)) for n in range(3)]
        for number, end in enumerate(ends):
            assert store.get(key(number)) == (payload(number) if end <= cut else None)


def test_a_record_that_was_being_written_is_found_when_it_is_whole(tmp_path):
    write(tmp_path, range(3))
    path = shard(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    store = RecordStore(tmp_path)
    assert store.get(key(2)) is None
    path.write_bytes(whole)
    store.refresh()
    assert store.get(key(2)) == payload(2)


def test_a_flipped_byte_is_detected_and_reported(tmp_path, caplog):
    write(tmp_path, range(3))
    path = shard(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store = RecordStore(tmp_path)
            read = [store.get(key(number)) for number in range(3)]
        assert None in read and all(one in (None, payload(number)) for number, one in enumerate(read))
        assert "damaged" in caplog.text


def test_a_damaged_record_is_replaced_by_a_good_one(tmp_path, caplog):
    write(tmp_path, range(3))
    path = shard(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    store = RecordStore(tmp_path)
    assert store.get(key(2)) is None and key(2) not in store
    store.put(key(2), payload(2))
    assert store.get(key(2)) == payload(2)
    caplog.clear()
    later = RecordStore(tmp_path)  # finds both, whichever shard comes first
    assert later.get(key(2)) == payload(2) and not caplog.text


def test_a_full_disk_is_reported_and_stops_only_writing(tmp_path, caplog):
    store = write(tmp_path, range(2))

    class Full:
        def __init__(self, inner):
            self.inner = inner

        def tell(self):
            return self.inner.tell()

        def write(self, record):
            if len(record) < 20:
                raise OSError(28, "No space left on device")
            return self.inner.write(record[: len(record) - 10])  # a part goes in, the rest does not

    store._writer = Full(store._writer)
    for number in (2, 3):
        store.put(key(number), payload(number))
    assert caplog.text.count("cannot be written (No space left on device)") == 1
    assert store.get(key(1)) == payload(1) and store.get(key(2)) is None
    assert len(RecordStore(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_records_of_a_killed_process_are_found(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from hf_interdistill.interaction.map_cache.store import RecordStore\n"
        "store = RecordStore(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    store.put(number.to_bytes(16, 'little'), bytes([number % 251]) * (20 + number))\n"
        "    print(number, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) >= 200:
                break
        child.send_signal(signal.SIGKILL)
    store = RecordStore(tmp_path)
    assert len(store) >= 201
    assert all(store.get(key(number)) == payload(number) for number in range(len(store)))
