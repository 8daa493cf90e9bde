"""Why there is no answer."""

from __future__ import annotations

from typing import Any


class VramfitError(Exception):
    """Why there is no answer: one line that says what is wrong and what would do."""

    #: The kind of error in one word, such as ``full_now``.
    status: str = "other"
    #: Whether the same call may succeed later with nothing else changed.
    can_retry: bool = False
    #: What else is known: the ``decision`` that refused, reservations that are ``pending`` or ``leaving``.
    details: dict[str, Any]

    def __init__(self, message: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details if details is not None else {}


class InvalidArgument(VramfitError, ValueError):
    """An argument that cannot be: a size of 0, a GPU named twice."""

    status = "invalid_argument"


class OpenError(VramfitError):
    """A file cannot be read, or is no GGUF."""

    status = "open"


class ModelError(VramfitError):
    """The file is sound, but no model that can be sized; or an adapter or projector is not for this model."""

    status = "model"


class GpusError(VramfitError, ValueError):
    """The list of GPUs cannot be read, a GPU cannot be as described, or this machine's cannot be found."""

    status = "gpus"


class SettingsError(VramfitError, ValueError):
    """A setting is not one that there is, or cannot be for these GPUs."""

    status = "settings"


class RefusedError(VramfitError):
    """llama.cpp refuses these settings."""

    status = "refused"


class NotModelledError(VramfitError):
    """vramfit has no rule for these settings, which llama.cpp may start with."""

    status = "not_modelled"


class LedgerError(VramfitError):
    """The ledger has refused; nothing has changed."""


class FullNow(LedgerError):
    """Would fit on these GPUs, but not now: try again when something has been released."""

    status = "full_now"
    can_retry = True


class FullPending(LedgerError):
    """As :class:`FullNow`, but reservations are still starting or leaving: try again when they have."""

    status = "full_pending"
    can_retry = True


class NeverFits(LedgerError):
    """Would not fit even if every GPU were empty."""

    status = "never_fits"


class UnknownGpu(LedgerError):
    """The host has no such GPU."""

    status = "unknown_gpu"


class UnknownReservation(LedgerError):
    """No such reservation, or it has been released."""

    status = "unknown_reservation"


class StalePlan(LedgerError):
    """The ledger has moved on too often meanwhile: try again."""

    status = "stale_plan"
    can_retry = True


class Waits(LedgerError):
    """What is to be replaced has not been released yet."""

    status = "waits"
    can_retry = True


class TookTooMuch(LedgerError):
    """The engine took more than there is room for: unload it and release the reservation."""

    status = "took_too_much"


class PhaseError(LedgerError):
    """Not in this phase of the reservation."""

    status = "phase"


class NoGpu(LedgerError):
    """No GPU is needed with these settings: there is nothing to reserve."""

    status = "no_gpu"


class KeyTaken(LedgerError):
    """A reservation was made under this key before, and is still held: ``details["reservation"]``."""

    status = "key_taken"


class StoreError(LedgerError):
    """The journal did not take it, or cannot be read."""

    status = "store"


def _kinds(kind: type[VramfitError]) -> dict[str, type[VramfitError]]:
    found = {kind.status: kind} if "status" in vars(kind) else {}
    for narrower in kind.__subclasses__():
        found |= _kinds(narrower)
    return found


_BY_STATUS = _kinds(VramfitError)


def _of(status: str, message: str, details: dict[str, Any]) -> VramfitError:
    """The error of a status, for the extension module."""
    return _BY_STATUS.get(status, VramfitError)(message, details)
