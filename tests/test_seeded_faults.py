"""`tests/faults.py` fits the package as it is; running it takes half an hour."""

from pathlib import Path

from tests.faults import FAULTS, ROOT, home


def test_every_fault_can_be_seeded_and_has_tests_to_ask() -> None:
    assert len(FAULTS) >= 40
    assert len({(fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert home(ROOT, fault).is_file()
        assert fault.old != fault.new
        assert any(Path(ROOT, tests).exists() for tests in fault.tests.split()), fault
