"""The arms of an evaluation, one file each; what stands in this folder is found, and your own by its class path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lcf_lightning.data.example import Example
from lcf_lightning.data.prompt_settings import PromptSettings
from lcf_lightning.discovery import class_path, import_home, import_modules, in_package, subclasses
from lcf_lightning.errors import SettingError
from lcf_lightning.evaluation.arms.arm import Arm, TimedRun, readable

import_modules(__name__)

__all__ = ["Arm", "TimedRun", "default_arms", "find_arm", "is_known", "known_arms", "readable", "require_arms"]


def find_arm(name: str) -> Arm:
    """The arm of that name, or of that class path, whose module is then imported.

    Raises:
        SettingError: If there is none.
    """
    import_home(name, f"arm {name!r}")
    arm = _imported(name)
    if arm is not None:
        return arm
    raise SettingError(f"arm {name!r} must be {_allowed()}.")


def is_known(name: str) -> bool:
    """Whether there is an arm of that name, among those that have been imported."""
    return _imported(name) is not None


def _imported(name: str) -> Arm | None:
    """The arm of that name or class path, if it has been imported."""
    for arm in subclasses(Arm):
        named = arm() if class_path(arm) == name else arm.named(name)
        if named is not None:
            return named
    return None


def _allowed() -> str:
    named = ("t2t_N", "t2t_N_form", "message_int8", "message_int4")  # those that no evaluation runs unasked
    return f"one or more of {', '.join((*known_arms(), *named))}, or class paths of your own"


def known_arms() -> list[str]:
    """Names of the arms of this package, in the order of reports; of ``t2t_N`` the usual ones."""
    inside = [kind for kind in subclasses(Arm) if in_package(kind)]
    usual = [arm for kind in inside for arm in kind.usual()]
    return [arm.name for arm in sorted(usual, key=lambda arm: (arm.place, arm.budget))]


def default_arms(shared: bool, prompts: PromptSettings, examples: Iterable[Example]) -> tuple[str, ...]:
    """The arms of an evaluation that names none: all of this package that mean something for these examples."""
    examples = list(examples)
    arms = [find_arm(name) for name in known_arms()]
    return tuple(arm.name for arm in arms if arm.applies(shared, prompts, examples))


def require_arms(arms: Sequence[str], setting: str = "arms") -> tuple[str, ...]:
    """The names of some arms, given by name or class path.

    Raises:
        SettingError: If an arm is unknown or given twice, or there is none.
    """
    try:
        names = tuple(find_arm(arm).name for arm in arms)
    except SettingError as error:
        names = ()
        if any("." in arm for arm in arms):
            raise SettingError(f"{setting}: {error}") from error
    if not names or len(set(names)) < len(names):
        raise SettingError(f"{setting}={list(arms)} must be {_allowed()}, each once.")
    for arm, name in zip(arms, names, strict=True):
        if type(find_arm(name)) is not type(find_arm(arm)):
            raise SettingError(f"{setting}: {arm} is called {name!r}, as another arm is; give it a name of its own.")
    return names
