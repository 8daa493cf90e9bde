"""The package against the command line: `ESTIMATE` is the program, whose figures the repository's tests hold to llama.cpp's."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import signal
import subprocess
import threading

import pytest
import vramfit

ROOT = pathlib.Path(__file__).resolve().parents[3]
GIB = 1 << 30


def fixture(name: str) -> pathlib.Path:
    return ROOT / "fixtures" / "gguf" / name


def estimate(name: str, *flags: str) -> dict:
    program = os.environ["ESTIMATE"]
    run = subprocess.run([program, str(fixture(name)), *flags, "--json"], capture_output=True, text=True, env={})
    assert run.returncode in (0, 1), run.stderr
    return json.loads(run.stdout)


@pytest.fixture
def small() -> vramfit.Model:
    return vramfit.open(fixture("qwen3-8b.Q4_K_M.gguf"))


def test_a_placement_is_what_the_command_line_prints() -> None:
    model = vramfit.open(fixture("gemma-3-12b.Q4_K_M.gguf"))
    placement = vramfit.plan(model, "k80x2", n_ctx=8192)
    expected = estimate("gemma-3-12b.Q4_K_M.gguf", "--gpus", "k80x2", "-c", "8192")
    assert placement.to_dict() == expected
    assert json.loads(placement.to_json()) == expected
    assert placement.verdict == "fits"
    assert placement.command == expected["command"]
    assert placement.notes == expected["notes"]
    for device, report in zip(placement.devices, expected["devices"], strict=True):
        assert device.id == report["id"]
        assert device.layers == report["layers"]
        assert device.required_bytes == report["required_bytes"] == sum(term.bytes for term in device.terms)
        assert device.headroom_bytes == report["headroom_bytes"]
        of = {term.kind: term for term in device.terms}
        assert of["weights"].bytes == report["model_bytes"]
        assert of["context"].bytes == report["context_bytes"]
        assert of["compute"].bytes == report["compute_bytes"]
        assert of["compute"].certainty == "exact"
    assert {t.kind: t.certainty for t in placement.devices[0].terms}["overhead"] == "modelled"


def test_settings_are_keywords() -> None:
    model = vramfit.open(str(fixture("qwen3-30b-a3b.Q4_K_M.gguf")))
    placement = vramfit.plan(
        model,
        "2xrtx3060:free=9GiB",
        n_ctx=16384,
        type_k="q8_0",
        type_v="q8_0",
        flash_attention=True,
        n_cpu_moe=30,
        overrides=[{"pattern": "attn_q", "buffer": "CPU"}],
    )
    flags = "--gpus 2xrtx3060:free=9GiB -c 16384 -ctk q8_0 -ctv q8_0 -fa on -ot attn_q=CPU -ncmoe 30"
    assert placement.to_dict() == estimate("qwen3-30b-a3b.Q4_K_M.gguf", *flags.split())
    projector = fixture("mmproj/gemma3.gguf")
    gemma = vramfit.open(fixture("gemma-3-4b.Q4_K_M.gguf"))
    placement = vramfit.plan(gemma, "rtx3060", mmproj={"path": projector})
    assert placement.to_dict() == estimate(
        "gemma-3-4b.Q4_K_M.gguf", "--gpus", "rtx3060", "--mmproj", str(projector)
    )
    assert "n_gpu_layers" in vramfit.settings_schema()["properties"]


def test_the_stubs_have_every_setting() -> None:
    stubs = ast.parse((pathlib.Path(vramfit.__file__).parent / "_vramfit.pyi").read_text())
    (settings,) = (node for node in stubs.body if isinstance(node, ast.ClassDef) and node.name == "_Settings")
    keys = {line.target.id for line in settings.body if isinstance(line, ast.AnnAssign)}
    assert keys == set(vramfit.settings_schema()["properties"])


def test_gpus_are_a_text_or_described(small: vramfit.Model) -> None:
    card = vramfit.Gpu(24 * GIB, compute_capability="8.6", free_bytes=9 * GIB, name="a card")
    gpus = vramfit.Gpus([card, card])
    assert len(gpus) == 2 and gpus[-1].free_bytes == 9 * GIB and gpus[0].name == "a card"
    assert [gpu.total_bytes for gpu in gpus] == [24 * GIB] * 2
    with pytest.raises(IndexError):
        gpus[2]
    by_list = vramfit.plan(small, [card, card]).to_dict()
    assert by_list == vramfit.plan(small, gpus).to_dict()
    assert by_list["devices"][1]["free_bytes"] == 9 * GIB
    assert vramfit.Gpus("none") is not None and len(vramfit.Gpus("none")) == 0
    assert "24GiB" in vramfit.Gpus("24GiB").notes[0]


def test_a_forked_child_plans_too(small: vramfit.Model) -> None:
    expected = vramfit.plan(small, "rtx3060").to_dict()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if vramfit.plan(small, "rtx3060").to_dict() == expected else 1)
    assert os.waitpid(child, 0) == (child, 0)


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_forked_child_reserves_nothing(tmp_path: Path, is_kept: bool) -> None:
    journal = tmp_path / "ledger.redb" if is_kept else None
    host = vramfit.Host("h", "24GiB", journal=journal)
    first = host.adopt("m", "h", [(0, 10 * GIB)])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            host.adopt("m", "h", [(0, 20 * GIB)])
        except vramfit.StoreError as error:
            del host  # the journal is its parent's
            os._exit(0 if "before this one was forked" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0) == (child, 0)
    assert host.adopt("m", "h", [(0, 10 * GIB)]) > first and host.audit() == []


def test_this_machine_is_asked_by_the_program() -> None:
    program = os.environ["ESTIMATE"]
    run = subprocess.run([program, "gpus", "--json"], capture_output=True, text=True)
    machine = json.loads(run.stdout)["machine"]
    if machine is None:
        with pytest.raises(vramfit.GpusError):
            vramfit.Gpus.probe(program=program, timeout_ms=20_000)
    else:
        found = vramfit.Gpus.probe(program=program)
        assert [gpu.name for gpu in found] == [device["name"] for device in machine["devices"]]


def test_texts(small: vramfit.Model) -> None:
    placement = vramfit.plan(small, "rtx3060")
    assert placement.text().startswith("Fits: ")
    assert max(map(len, placement.text(columns=100).splitlines())) <= 100
    assert placement.explain()["peaks"][0]["id"] == "CUDA0"
    assert "CUDA0" in placement.explain_text(most=3)
    assert small.architecture == "qwen3" and small.n_layer == 36 and small.path == fixture("qwen3-8b.Q4_K_M.gguf")


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda m: vramfit.open("no such file"), vramfit.OpenError, "no such file"),
        (lambda m: vramfit.plan(m, "rtx9999"), vramfit.GpusError, "rtx9999"),
        (lambda m: vramfit.plan(m, "auto"), vramfit.GpusError, "look for GPUs"),
        (lambda m: vramfit.Gpus.probe(program="no such program"), vramfit.GpusError, "no such program"),
        (lambda m: vramfit.plan(m, "k80", ctx=1), vramfit.SettingsError, "unknown field `ctx`"),
        (lambda m: vramfit.plan(m, "k80", n_ctx="many"), vramfit.SettingsError, "expected u32"),
        (lambda m: vramfit.plan(m, "k80", n_ctx=object()), vramfit.SettingsError, "settings: "),
        (
            lambda m: vramfit.plan(m, "k80", type_v="q8_0", flash_attention=False),
            vramfit.RefusedError,
            "llama.cpp refuses this",
        ),
        (lambda m: vramfit.Gpu(0, compute_capability="8.6"), vramfit.GpusError, "no memory"),
        (lambda m: vramfit.Gpu(1, compute_capability="86"), vramfit.GpusError, "not a compute capability"),
        (lambda m: vramfit.Host("h", "k80", ids=[]), vramfit.InvalidArgument, "0 ids for 1 GPUs"),
        (
            lambda m: vramfit.Host("h", "8GiBx2").observe([0]),
            vramfit.InvalidArgument,
            "1 figures of free memory for 2 GPUs",
        ),
        (
            lambda m: vramfit.Host("h", "8GiBx2").reap([0, 0, 0]),
            vramfit.InvalidArgument,
            "3 figures of free memory for 2 GPUs",
        ),
        (
            lambda m: vramfit.Host("h", "80GiB").reserve(m, name="m", holder="h", lease_ms=0),
            vramfit.InvalidArgument,
            "lease of 0",
        ),
        (lambda m: vramfit.Host("h", "k80").release(7), vramfit.UnknownReservation, "#7"),
        (
            lambda m: vramfit.Host("h", "2GiB").reserve(m, name="m", holder="h"),
            vramfit.NeverFits,
            "does not fit",
        ),
    ],
)
def test_errors_say_what_is_wrong(small: vramfit.Model, call, kind, words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        call(small)
    assert isinstance(caught.value, vramfit.VramfitError)
    assert "\n" not in str(caught.value) and caught.value.status == kind.status


def test_what_there_is_no_rule_for_is_no_refusal_of_llama_cpp(tmp_path: pathlib.Path) -> None:
    unknown = tmp_path / "lxama.gguf"
    unknown.write_bytes(fixture("llama-3.2-1b.Q4_K_M.gguf").read_bytes().replace(b"llama", b"lxama"))
    with pytest.raises(vramfit.NotModelledError, match="'lxama', which is not known: use -sm layer") as info:
        vramfit.plan(vramfit.open(unknown), "rtx3090x2", split_mode="tensor")
    assert info.value.status == "not_modelled" and not info.value.can_retry


def test_a_loader(small: vramfit.Model, tmp_path: pathlib.Path) -> None:
    journal = tmp_path / "ledger.redb"
    host = vramfit.Host("gpu-box", "rtx3060", ids=["GPU-1"], journal=journal)
    before = host.gpus[0].free_bytes
    load = {"name": "qwen3:8b", "holder": "loader", "lease_ms": 60_000, "stays": True}
    with host.reserve(small, **load, now_ms=1000, n_ctx=16384) as reserved:
        (share,) = reserved.shares
        assert share == (0, reserved.placement.devices[0].required_bytes)
        assert host.gpus[0].free_bytes == before - share[1]
        host.commit(reserved, reserved.shares, now_ms=2000)
        host.begin_request(reserved, now_ms=2500)
        with pytest.raises(vramfit.FullNow) as full:
            host.reserve(small, name="another", holder="loader", stale_ms=(10, 10), now_ms=90_000, n_ctx=16384)
        assert full.value.can_retry and full.value.details["decision"]["model"] == "another"
        host.end_request(reserved, now_ms=3000)
        # Not used for longer than it may be: the other one takes its place, once it is unloaded.
        other = host.reserve(small, name="another", holder="loader", stale_ms=(10, 10), now_ms=90_000, n_ctx=16384)
        assert other.leaving == [reserved.id]
        with pytest.raises(vramfit.Waits):
            host.commit(other, now_ms=91_000)
        host.release(reserved)
        host.commit(other, now_ms=92_000)
        assert host.audit() == []
    held = other.id
    del host, other, reserved

    again = vramfit.Host("gpu-box", "rtx3060", ids=["GPU-1"], journal=journal)
    (reservation,) = again.state()["reservations"]
    assert reservation["id"] == held and reservation["phase"] == "running"
    again.renew(held)
    again.release(held)
    assert again.gpus[0].free_bytes == before


def test_facts_are_taken_over_and_shown(small: vramfit.Model) -> None:
    host = vramfit.Host("h", "8GiB")
    host.adopt("m", "engine", [(0, 9 * GIB)], now_ms=1)
    (violation,) = host.audit()
    assert violation["reserved_bytes"] == 9 * GIB
    assert host.reap([0], now_ms=2) == {"released": [], "unprobed": []}
    host.observe([0])
    with pytest.raises(vramfit.LedgerError):
        host.reserve(small, name="m2", holder="h")
    # A sum of more than 64 bits is shown as the most that has them, as over HTTP.
    host.adopt("m", "engine", [(0, 2**64 - 1)], now_ms=1)
    (violation,) = host.audit()
    assert violation["reserved_bytes"] == 2**64 - 1 and len(violation["reservations"]) == 2


def test_a_closed_host_lets_go_of_its_journal(small: vramfit.Model, tmp_path: pathlib.Path) -> None:
    journal = tmp_path / "ledger.redb"
    with vramfit.Host("h", "8GiB", journal=journal) as host:
        reserved = host.reserve(small, name="m", holder="h", n_ctx=4096)
        with pytest.raises(vramfit.LedgerError):
            vramfit.Host("h", "8GiB", journal=journal)
    # What it has granted is still there, and so is the host, but neither has the journal any more.
    with vramfit.Host("h", "8GiB", journal=journal) as again:
        (held,) = again.state()["reservations"]
        assert held["id"] == reserved.id and repr(host) == repr(again)
    with pytest.raises(vramfit.InvalidArgument, match="closed"):
        host.release(reserved)
    with pytest.raises(vramfit.InvalidArgument, match="closed"), reserved:
        pass
    host.close()


def test_the_ledger_against_the_driver_and_the_engines() -> None:
    host = vramfit.Host("h", "16GiB")
    capacity = host.gpus[0].free_bytes

    def free() -> int:
        return host.gpus[0].free_bytes

    def driver() -> list[int]:
        # Loaded while the driver is asked, and not in its answer.
        numbers.append(host.adopt("a", "loader", [(0, 4 * GIB)], now_ms=1))
        return [capacity - 2 * GIB]

    numbers: list[int] = []
    host.observe(driver)
    assert free() == capacity - 6 * GIB
    numbers.append(host.adopt("b", "loader", [(0, GIB)], lease_ms=1000, now_ms=1))
    a, b = numbers
    found = host.reconcile("loader", {a: [(0, 5 * GIB)], 99: [(0, 1)]})
    assert found == {"resized": [a], "unknown": [99], "missing": [b]}
    assert free() == capacity - 8 * GIB
    with pytest.raises(vramfit.UnknownGpu):
        host.reconcile("loader", {a: [(3, 1)]})
    with pytest.raises(ZeroDivisionError):
        host.observe(lambda: [1 // 0])
    with pytest.raises(vramfit.InvalidArgument):
        host.adopt("m", "h", [(0, 1)], lease_ms=0)
    for now_ms in range(1, 1002, 250):
        assert host.expire(now_ms=now_ms) == []
    reaped = host.reap(lambda: [capacity - 7 * GIB], now_ms=1002)
    assert [r["id"] for r in reaped["released"]] == [b] and free() == capacity - 7 * GIB
    host.release(a)
    assert host.state()["gpus"][0]["unconfirmed_bytes"] == 5 * GIB
    host.observe([capacity - 2 * GIB])
    assert free() == capacity - 2 * GIB


def test_engines_that_sleep_and_those_that_stay(small: vramfit.Model) -> None:
    for stays in (False, True):
        host = vramfit.Host("h", "80GiB")
        capacity = host.gpus[0].free_bytes
        host.observe([capacity - 20 * GIB])
        old = host.adopt("old", "engine", [(0, 10 * GIB)], stays=stays, lease_ms=1000, key="found", now_ms=0)
        with pytest.raises(vramfit.KeyTaken) as taken:
            host.adopt("old", "engine", [(0, 10 * GIB)], key="found", now_ms=0)
        assert taken.value.details == {"reservation": old}
        host.observe([capacity - 20 * GIB])
        # 10 GiB less are taken: others have gone, or the engine sleeps and may load again.
        host.observe([capacity - 10 * GIB])
        (gpu,) = host.state()["gpus"]
        assert gpu["missing_bytes"] == (0 if stays else 10 * GIB)
        assert host.gpus[0].free_bytes == capacity - (10 if stays else 20) * GIB
        host.others_hold(0, 0)  # somebody knows that they have gone
        assert host.gpus[0].free_bytes == capacity - 10 * GIB
        with pytest.raises(vramfit.UnknownGpu):
            host.others_hold(1, 0)
        new = host.reserve(small, name="m", holder="h", key="load", stays=stays, n_ctx=4096)
        with pytest.raises(vramfit.KeyTaken):
            host.reserve(small, name="m", holder="h", key="load", n_ctx=4096)
        assert [r.get("stays", False) for r in host.state()["reservations"]] == [stays, stays]
        host.release(new)
        host.observe([capacity - 30 * GIB])
        assert host.gpus[0].free_bytes == capacity - 30 * GIB
        host.forget_figure(0)
        assert host.gpus[0].free_bytes == capacity - 10 * GIB
        # Nobody could renew its lease while the host was away: it begins anew, and runs out once.
        for now_ms in range(9000, 10001, 250):
            assert host.expire(now_ms=now_ms) == []
        assert [r["id"] for r in host.expire(now_ms=10001)] == [old]


def test_threads_share_a_host() -> None:
    model = vramfit.open(fixture("qwen2.5-0.5b.Q4_K_M.gguf"))
    host = vramfit.Host("h", "8GiB")
    before = host.gpus[0].free_bytes
    failures: list[BaseException] = []
    granted: list[int] = []

    def load(n: int) -> None:
        try:
            for i in range(5):
                try:
                    with host.reserve(model, name=f"{n}-{i}", holder="thread") as reserved:
                        granted.append(reserved.id)
                        host.commit(reserved)
                        assert host.audit() == []
                except (vramfit.FullNow, vramfit.FullPending):
                    pass
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=load, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and host.gpus[0].free_bytes == before
    assert host.state()["reservations"] == []
    assert granted and len(set(granted)) == len(granted)


def test_the_readme() -> None:
    text = (ROOT / "bindings" / "python" / "README.md").read_text()
    code = "\n".join(block.split("```")[0] for block in text.split("```python\n")[1:])
    here = pathlib.Path.cwd()
    os.chdir(fixture("."))
    try:
        exec(code.replace("model.gguf", "gemma-3-12b.Q4_K_M.gguf"), {})
    finally:
        os.chdir(here)
