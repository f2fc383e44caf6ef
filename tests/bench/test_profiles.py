"""What the profiles have under versions of QEMU."""

from __future__ import annotations

import pytest

from tools._bench.profiles import PROFILES, X86, Profile


def names(profile: Profile) -> set[str]:
    return {device.name for device in profile.devices}


@pytest.mark.parametrize(("version", "added"), [(7, set()), (8, {"igb"}), (11, {"igb"})])
def test_devices_of_newer_qemu_are_added(version: int, added: set[str]) -> None:
    profile = X86.with_qemu(version)
    assert names(profile) == names(X86) | added
    assert any(word.startswith("igb,") for word in profile.machine) == bool(added)
    assert profile.with_qemu(version) == profile


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_added_devices_have_addresses_of_their_own(profile: Profile) -> None:
    addresses = [device.address for device in profile.with_qemu(99).devices]
    assert addresses == sorted(set(addresses))
