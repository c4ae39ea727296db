"""Energy counters, in a folder that looks like Linux's."""

import math

from eex.experiments.papers.energy import find_meter


def package(folder, name, now, largest=999):
    (folder / name).mkdir()
    (folder / name / "energy_uj").write_text(f"{now}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_read_and_their_parts_are_not(tmp_path):
    package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:1", 990)
    package(tmp_path, "intel-rapl:0:0", 5)
    meter, told = find_meter(tmp_path)
    assert told == "RAPL, 2 packages"
    before = meter.read()
    assert before == [100, 990]
    # the second counter turns over: from 990 past 999 to 10 are 20
    assert math.isclose(meter.joules(before, [150, 10]), 70e-6)


def test_machine_without_counters_says_so(tmp_path):
    meter, told = find_meter(tmp_path)
    assert "no energy counter" in told
    assert meter.read() == []
    assert math.isnan(meter.joules([], []))


def test_unreadable_counters_say_so(tmp_path):
    package(tmp_path, "intel-rapl:0", 100)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as forbidden, for who may read everything
    meter, told = find_meter(tmp_path)
    assert "cannot be read" in told
    assert not meter.counters
