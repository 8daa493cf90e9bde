"""What a GGUF model takes on each GPU under llama.cpp, to the byte, and where every layer should go.

>>> import vramfit
>>> model = vramfit.open("model.gguf")
>>> placement = vramfit.plan(model, "k80x2", n_ctx=8192)
>>> placement.verdict, placement.devices[0].required_bytes
"""

from ._errors import (
    FullNow,
    FullPending,
    GpusError,
    InvalidArgument,
    LedgerError,
    ModelError,
    NeverFits,
    NoGpu,
    OpenError,
    PhaseError,
    RefusedError,
    SettingsError,
    StalePlan,
    StoreError,
    TookTooMuch,
    UnknownGpu,
    UnknownReservation,
    VramfitError,
    Waits,
)
from ._vramfit import (
    ENGINE,
    Device,
    Gpu,
    Gpus,
    Host,
    Model,
    Placement,
    Reserved,
    Term,
    __version__,
    open,
    plan,
    settings_schema,
)

__all__ = [
    "ENGINE",
    "Device",
    "FullNow",
    "FullPending",
    "Gpu",
    "Gpus",
    "GpusError",
    "Host",
    "InvalidArgument",
    "LedgerError",
    "Model",
    "ModelError",
    "NeverFits",
    "NoGpu",
    "OpenError",
    "PhaseError",
    "Placement",
    "RefusedError",
    "Reserved",
    "SettingsError",
    "StalePlan",
    "StoreError",
    "Term",
    "TookTooMuch",
    "UnknownGpu",
    "UnknownReservation",
    "VramfitError",
    "Waits",
    "__version__",
    "open",
    "plan",
    "settings_schema",
]
