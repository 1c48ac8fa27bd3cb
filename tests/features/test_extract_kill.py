"""An extraction that is killed at any moment, or stopped by Ctrl-C, and started again ends with the same file, to the bit."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from made_for_extraction import Toy, write_pictures

from itm_lib.data import regions
from itm_lib.data.regions import RegionWriter
from itm_lib.features.extract import extract

MOMENTS = ("half created", "before a batch", "half a row", "after a row", "a picture left out", "half the file without them",
           "before it is in place", "after it is in place")
TESTS = Path(__file__).parent


class Killer:
    """Kills this process when it comes to ``moment`` for the ``number``-th time; counts all."""

    def __init__(self, moment=None, number=1):
        self.moment, self.number, self.seen = moment, number, Counter()

    def at(self, moment):
        self.seen[moment] += 1
        if moment == self.moment and self.seen[moment] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self):
        """From now on what creates, computes and writes tells of it; for a process that ends soon."""
        def before(place, name, moment):
            original = getattr(place, name)
            setattr(place, name, lambda *args, **options: (self.at(moment), original(*args, **options))[1])

        put, write, replace = RegionWriter._put, RegionWriter.write, os.replace

        def half(writer, place, value):
            whole = value.reshape(-1).view(np.uint8)
            if value.dtype == "<f2":
                put(writer, place, whole[: len(whole) // 2])
                self.at("half a row" if "whole" not in writer.part.name else "half the file without them")
            put(writer, place, value)

        def written(*args, **options):
            write(*args, **options)
            self.at("after a row")

        def replaced(source, target):
            self.at("before it is in place")
            replace(source, target)
            self.at("after it is in place")

        RegionWriter._put, RegionWriter.write, os.replace = half, written, replaced
        before(Toy, "__call__", "before a batch")
        before(RegionWriter, "leave_out", "a picture left out")
        before(regions.h5py.h5d, "create", "half created")


def run(images, out, backbone=None, **options):
    return extract(images, backbone or Toy(), out, **{"batch_size": 3, "progress": False, **options})


def attempt(images, out, killer, **options):
    """Extract in a new process; whether it came to its end."""
    child = os.fork()
    if not child:
        code = 1
        try:
            killer.watch()
            run(images, out, **options)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the extraction ended with {status}"
    return status == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures, three of them broken, and the region file of them."""
    folder = tmp_path_factory.mktemp("world")
    images = write_pictures(folder / "pictures")
    run(images, folder / "store.h5")
    return images, (folder / "store.h5").read_bytes()


@pytest.mark.parametrize("moment, number", [(moment, number) for moment in MOMENTS for number in (1, 2, 4)
                                            if number == 1 or "place" not in moment and (number == 2 or moment != "a picture left out")])
def test_killed_at_a_moment_it_ends_the_same(moment, number, world, tmp_path):
    images, expected = world
    out = tmp_path / "store.h5"
    assert not attempt(images, out, Killer(moment, number), workers=number % 2)
    assert out.exists() == (moment == "after it is in place")
    assert attempt(images, out, Killer())
    assert out.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.h5.lock", "store.h5"]


def test_killed_again_and_again_it_goes_on_each_time(world, tmp_path):
    images, expected = world
    there = [0]
    for _ in range(3):
        assert not attempt(images, tmp_path / "store.h5", Killer("after a row", 4))
        there.append(rows_in(tmp_path / "store.h5.part"))
    assert there == sorted(set(there)) and there[-1] >= 9
    assert attempt(images, tmp_path / "store.h5", Killer())
    assert (tmp_path / "store.h5").read_bytes() == expected


SCRIPT = """
import signal
import sys
from made_for_extraction import Toy
from itm_lib.features.extract import extract

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with Ctrl-C ignored
try:
    print(extract(sys.argv[1], Toy(seconds=0.4), sys.argv[2], batch_size=3, workers=2).summary())
except KeyboardInterrupt:
    sys.exit(130)
"""


def started(images, out):
    """Another process, in a group of its own as a terminal makes it, with loader workers, that has written its first rows."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])
    command = [sys.executable, "-c", SCRIPT, str(images), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part, deadline = out.with_name(f"{out.name}.part"), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not rows_in(part):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process, [child.pid for child in psutil.Process(process.pid).children()]


def rows_in(part):
    try:
        with h5py.File(part, "r", locking=False) as file:
            return int((file["num_regions"][:] != 0).sum())
    except (OSError, KeyError):  # not there yet, or not whole
        return 0


def goes_on(world, out):
    images, expected = world
    assert not out.exists() and 0 < rows_in(out.with_name(f"{out.name}.part")) < 12
    run(images, out)
    assert out.read_bytes() == expected


def test_a_process_that_is_killed_goes_on(world, tmp_path):
    """At once: the workers that it leaves, for seconds, do not hold the file."""
    process, workers = started(world[0], tmp_path / "store.h5")
    process.kill()
    assert process.wait(60) == -signal.SIGKILL and len(workers) == 2
    goes_on(world, tmp_path / "store.h5")
    for pid in filter(psutil.pid_exists, workers):  # torch ends them too, in five seconds
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_a_process_that_is_interrupted_goes_on(world, tmp_path):
    """Its workers, which Ctrl-C reaches too, end with it and print nothing."""
    process, workers = started(world[0], tmp_path / "store.h5")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err and "Error" not in err
    assert len(workers) == 2 and not any(map(psutil.pid_exists, workers))
    goes_on(world, tmp_path / "store.h5")
