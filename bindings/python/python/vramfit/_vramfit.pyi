from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, TypeAlias, TypedDict, final

from typing_extensions import NotRequired, Unpack

_Path: TypeAlias = str | PathLike[str]
_CacheType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
_Certainty: TypeAlias = Literal["exact", "modelled", "bound"]
_GpusLike: TypeAlias = Gpus | str | Sequence[Gpu]
_Reservation: TypeAlias = Reserved | int
_Free: TypeAlias = Sequence[int] | Callable[[], Sequence[int]]

__all__ = [
    "__version__",
    "ENGINE",
    "Model",
    "Gpu",
    "Gpus",
    "Term",
    "Device",
    "Placement",
    "Host",
    "Reserved",
    "open",
    "plan",
    "settings_schema",
]

ENGINE: str
__version__: str

class _TensorOverride(TypedDict):
    pattern: str
    buffer: str

class _Adapter(TypedDict):
    path: _Path
    scale: NotRequired[float]

class _Mmproj(TypedDict):
    path: _Path
    offload: NotRequired[bool]
    device: NotRequired[str]
    image_min_tokens: NotRequired[int]
    image_max_tokens: NotRequired[int]

_Draft = TypedDict(
    "_Draft",
    {
        "type": str,
        "path": _Path,
        "n_max": int,
        "n_gpu_layers": int | Literal["all", "auto"],
        "devices": Sequence[str],
        "type_k": _CacheType,
        "type_v": _CacheType,
        "overrides": Sequence[_TensorOverride],
        "cpu_moe": bool,
        "n_cpu_moe": int,
        "backend_sampling": bool,
    },
    total=False,
)

class _Settings(TypedDict, total=False):
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs: int
    kv_unified: bool
    flash_attention: Literal["on", "off", "auto"] | bool
    type_k: _CacheType
    type_v: _CacheType
    offload_kqv: bool
    op_offload: bool
    swa_full: bool
    mmap: bool
    no_host: bool
    repack: bool
    embeddings: bool
    pooling: Literal["none", "mean", "cls", "last", "rank"]
    n_gpu_layers: int | Literal["all", "auto"]
    tensor_split: Sequence[float]
    split_mode: Literal["none", "layer", "tensor"]
    main_gpu: int
    devices: Sequence[str]
    overrides: Sequence[_TensorOverride]
    cpu_moe: bool
    n_cpu_moe: int
    layout: Literal["best", "engine"]
    prefer: Literal["most-free", "first", "last", "tightest"]
    loras: Sequence[_Adapter]
    lora_init_without_apply: bool
    control_vectors: Sequence[_Adapter]
    control_vector_layer_range: tuple[int, int]
    mmproj: _Mmproj
    draft: _Draft

@final
class Model:
    """What a GGUF file's header says of a model."""

    @property
    def path(self) -> PathLike[str]: ...
    @property
    def architecture(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def n_ctx_train(self) -> int: ...
    @property
    def file_bytes(self) -> int: ...

@final
class Gpu:
    """A GPU by what CUDA says of it."""

    def __new__(
        cls, total_bytes: int, *, compute_capability: str, free_bytes: int | None = None, name: str = ""
    ) -> Gpu: ...
    @property
    def name(self) -> str: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def compute_capability(self) -> str: ...

@final
class Gpus:
    """GPUs in CUDA's order: the first is CUDA0."""

    def __new__(cls, gpus: _GpusLike) -> Gpus: ...
    @staticmethod
    def probe(gpus: str = "auto", *, program: _Path | None = None, timeout_ms: int | None = None) -> Gpus:
        """This machine's GPUs, as the driver shows them: ``auto``, or ``auto:0,2`` for some. ``program`` is vramfit's
        ``estimate`` (by its name, on the path), which asks the driver in a process of its own."""

    @property
    def notes(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Gpu: ...
    def __iter__(self) -> Iterator[Gpu]: ...

@final
class Term:
    """Bytes of one kind on one device."""

    @property
    def kind(
        self,
    ) -> Literal[
        "weights",
        "adapters",
        "context",
        "compute",
        "projector_weights",
        "projector_compute",
        "draft_weights",
        "draft_context",
        "draft_compute",
        "runtime",
        "overhead",
    ]: ...
    @property
    def certainty(self) -> _Certainty: ...
    @property
    def bytes(self) -> int: ...

@final
class Device:
    """A GPU, or the host, and what it holds."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def terms(self) -> list[Term]: ...
    @property
    def required_bytes(self) -> int: ...
    @property
    def total_bytes(self) -> int | None: ...
    @property
    def free_bytes(self) -> int | None: ...
    @property
    def headroom_bytes(self) -> int | None: ...

@final
class Placement:
    """Where everything goes."""

    @property
    def verdict(self) -> Literal["fits", "partial", "does_not_fit"]: ...
    @property
    def devices(self) -> list[Device]: ...
    @property
    def command(self) -> list[str]: ...
    @property
    def notes(self) -> list[str]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def to_json(self) -> str: ...
    def text(self, columns: int = 80) -> str: ...
    def explain(self) -> dict[str, Any]: ...
    def explain_text(self, most: int | None = 12, columns: int = 80) -> str: ...

@final
class Host:
    """The GPUs of one host and the ledger over them. Times are milliseconds; by default the system's clock.

    Of GPUs given by hand, what is free of them is what models may take in all; of those that :meth:`Gpus.probe` found
    models may take all, and what was free is the driver's first figure (:meth:`observe`).
    ``ids`` are names by which the GPUs are known after a restart: without them UUIDs where they were found, else
    ``CUDA0`` and so on. What a journal has promised is known by ``name`` and ``ids``: keep them while anything is held,
    as under others the same bytes would be promised again. A journal is one process's at a time: :meth:`close` lets go
    of it, as the end of a ``with`` does. A host is of the process that opened it: in a child of ``os.fork()`` its calls
    raise :class:`StoreError`, as both would promise the same bytes."""

    def __new__(
        cls, name: str, gpus: _GpusLike, *, ids: Sequence[str] | None = None, journal: _Path | None = None
    ) -> Host: ...
    def close(self) -> None:
        """Lets go of the journal, once calls that are under way have ended. What is reserved in it stays reserved.
        Nothing can be done with the host, or by what it has granted, any more."""

    def __enter__(self) -> Host: ...
    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def gpus(self) -> Gpus: ...
    def observe(self, free_bytes: _Free) -> None:
        """What the driver says is free of each GPU: figures that were taken just now, nothing having been committed or
        released since, or a function that asks for them. Never more is promised from now on, and what is released
        later, or adopted, is known with the next figures: observe again behind it. What others hold is remembered
        where an engine may have unloaded without a word, and may load again: ``stays``. Answers come in the order of
        their questions: ask one at a time."""

    def others_hold(self, gpu: int, bytes: int) -> None:
        """What others hold of a GPU, from who knows, such as an operator or NVML's figures of processes: it takes the
        place of what they are believed to hold, so that what they left beside an engine that may sleep is free at
        once. What the driver's last figure shows beside reservations counts as taken all the same, until the next.
        Without a figure it says nothing."""

    def forget_figure(self, gpu: int) -> None:
        """The driver says no more of a GPU: what it said last does not count any longer, and all that models may take
        of it is there to be promised."""

    def reserve(
        self,
        model: Model,
        *,
        name: str,
        holder: str,
        lease_ms: int | None = None,
        stale_ms: tuple[int, int] | None = None,
        partial: bool = False,
        stays: bool = False,
        key: str | None = None,
        now_ms: int | None = None,
        **settings: Unpack[_Settings],
    ) -> Reserved:
        """Finds a placement and reserves what it takes, in one step. ``stays``: its engine never unloads it by its own
        wish, as llama-server does with ``--sleep-idle-seconds`` alone; unless that is said, memory that becomes free
        beside it may still be its, and is not promised on where others held it before. It is said once: an engine that
        is started again with other habits is another reservation, made when the old one has been released. Under one
        ``key`` nothing is reserved twice (:class:`KeyTaken`), so that asking again is safe."""

    def commit(
        self,
        reservation: _Reservation,
        shares: Sequence[tuple[int, int]] | None = None,
        *,
        now_ms: int | None = None,
    ) -> None: ...
    def renew(self, reservation: _Reservation, *, now_ms: int | None = None) -> None: ...
    def release(self, reservation: _Reservation) -> None: ...
    def begin_request(self, reservation: _Reservation, *, now_ms: int | None = None) -> None: ...
    def end_request(self, reservation: _Reservation, *, now_ms: int | None = None) -> None: ...
    def adopt(
        self,
        name: str,
        holder: str,
        shares: Sequence[tuple[int, int]],
        *,
        lease_ms: int | None = None,
        stays: bool = False,
        key: str | None = None,
        now_ms: int | None = None,
    ) -> int: ...
    def reconcile(self, holder: str, held: dict[int, Sequence[tuple[int, int]]]) -> dict[str, list[int]]:
        """What a holder's engines say they hold, all of it: reservations that are ``resized`` (taken over), ``unknown``
        (adopt or unload them) and ``missing`` (release them)."""

    def audit(self) -> list[dict[str, Any]]: ...
    def state(self) -> dict[str, Any]: ...
    def reap(self, free_bytes: _Free, *, now_ms: int | None = None) -> dict[str, Any]:
        """Drops reservations whose lease has run out, together with what the driver says is free, as for ``observe``.
        A lease runs out where its holder had time to renew it: where the host was away for a quarter of the lease (not
        open, its process stopped, or not called) or its journal failed, the lease begins anew, three times in a row at
        most. So call this, or ``expire``, several times in the shortest lease."""

    def expire(self, *, now_ms: int | None = None) -> list[dict[str, Any]]:
        """As ``reap`` where no driver can be asked: what a dead holder's engine still holds is not known then."""

@final
class Reserved:
    """A reservation that was made, and the placement that it is for; released behind a ``with``."""

    @property
    def id(self) -> int: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def shares(self) -> list[tuple[int, int]]: ...
    @property
    def leaving(self) -> list[int]: ...
    def to_dict(self) -> dict[str, Any]: ...
    def __enter__(self) -> Reserved: ...
    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> bool: ...

def open(path: _Path) -> Model:
    """Reads the model at ``path``: one file, or any part of a split model. Only the header is read."""

def plan(model: Model, gpus: _GpusLike, **settings: Unpack[_Settings]) -> Placement:
    """Finds where ``model`` goes on ``gpus``."""

def settings_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the settings."""
