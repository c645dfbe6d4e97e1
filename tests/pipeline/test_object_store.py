"""What object stores do amiss is tried again for a while, part by part; then it is one clear error."""

import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from pipeline.errors import StoreError, UserError
from pipeline.store import Store, check_store
from tests.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.moto_server import free_port, moto_server, new_bucket, put, s3_at
from tests.s3_server import serve_s3

BODY = random.Random(0).randbytes(12_345_678)
SMALL = BODY[:5000]
Faulty = tuple[FaultyProxy, Store]


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def faulty(moto: int) -> Iterator[Faulty]:
    """A store behind a proxy that has no faults yet."""
    bucket = new_bucket(moto)
    with faulty_proxy(moto, seed=5) as proxy, s3_at(proxy.server_port, GENLIP_STORE_RETRY_S="60"):
        proxy.faults, proxy.num_good = (), 1
        yield proxy, Store(f"{bucket}/store")


def exercise(proxy: FaultyProxy, store: Store, fault: str) -> set[str]:
    """Do all that the project asks of a store. Returns the kinds of requests that met the fault."""
    proxy.faults = (fault,)
    names = [f"{number}.tar" for number in range(3)]
    for name in names:
        store.write(f"raw/{name}", SMALL)
        assert store.read(f"raw/{name}") == store.read_ranges(f"raw/{name}", [(0, len(SMALL))])[0] == SMALL
        assert store.read_range(f"raw/{name}", 10, 20) == SMALL[10:30]
        assert store.names("raw", "") == sorted(store.iter_files("raw", "")) == names[: names.index(name) + 1]
    for number in range(2):
        store.create(f"claims/{number}", b"first")
        assert not store.create(f"claims/{number}", b"second")
        assert store.read(f"claims/{number}") == b"first"
        store.write("raw/large.tar", BODY)
        assert store.read("raw/large.tar") == BODY
    for name in names:
        store.remove(f"raw/{name}")
    store.remove("raw")
    assert store.names("raw", "") == []
    return {kind for _, kind, _ in proxy.met}


def test_each_fault_of_each_request_is_got_over(moto: int) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(len(FAULTS)) as pool:  # most of the time is waiting
        runs = {}
        for fault in FAULTS:
            proxy = stack.enter_context(faulty_proxy(moto, seed=5))
            proxy.faults, proxy.num_good = (), 1
            with s3_at(proxy.server_port):
                store = Store(f"{new_bucket(moto)}/store")
                assert not store.exists("raw")  # makes the client
            runs[fault] = pool.submit(exercise, proxy, store, fault)
        kinds = {"put", "part", "begin parts", "end parts", "get", "head", "list", "delete"}
        assert {fault: run.result() for fault, run in runs.items()} == dict.fromkeys(FAULTS, kinds)


@pytest.mark.parametrize("fault", ["busy", "reset before", "reset in request", "reset at answer"])
def test_a_part_that_breaks_is_sent_again_alone(faulty: Faulty, fault: str) -> None:
    proxy, store = faulty
    proxy.faults, proxy.kinds = (fault,), frozenset({"part"})
    store.write("raw/large.tar", BODY)
    sent, broken = proxy.requests["", "part"], proxy.met["", "part", fault]
    assert (sent, len(proxy.parts)) == (3 + broken, 3)
    assert broken > 0
    assert proxy.requests["", "begin parts"] == proxy.requests["", "end parts"] == 1
    assert store.read("raw/large.tar") == BODY


ATTEMPTS: dict[str, Callable[[Store], Any]] = {
    "read": lambda store: store.read("a"),
    "range": lambda store: store.read_range("a", 0, 5),
    "stream": lambda store: store.read_ranges("a", [(0, 5)]),
    "exists": lambda store: store.exists("a"),
    "names": lambda store: store.names("", ""),
    "files": lambda store: list(store.iter_files("", "")),
    "write": lambda store: store.write("b", SMALL),
    "write large": lambda store: store.write("b", BODY),
    "create": lambda store: store.create("c", SMALL),
    "remove": lambda store: store.remove("a"),
    "check": lambda store: check_store(store.root, {}),
}


@pytest.mark.parametrize("is_down", [False, True], ids=["busy", "down"])
def test_a_server_that_stays_in_trouble_is_a_users_error(
    moto: int, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    bucket = new_bucket(moto)
    put(moto, f"{bucket}/store/a", SMALL)
    monkeypatch.setenv("GENLIP_STORE_RETRY_S", "0.5")
    with faulty_proxy(moto, seed=5) as proxy, s3_at(free_port() if is_down else proxy.server_port):
        proxy.faults, proxy.is_for_good = ("busy",), True
        store = Store(f"{bucket}/store")
        with ThreadPoolExecutor(len(ATTEMPTS)) as pool:
            attempts = {name: pool.submit(attempt, store) for name, attempt in ATTEMPTS.items()}
            errors = {name: attempt.exception() for name, attempt in attempts.items()}
    for name, error in errors.items():
        assert isinstance(error, StoreError), name
        assert error.exit_code == 3
        for said in (f"where: {bucket}/store", "why:   ", "credentials", "run the same command again"):
            assert said in error.message, name


def test_a_nonsensical_patience_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLIP_STORE_RETRY_S", "soon")
    with pytest.raises(UserError, match="GENLIP_STORE_RETRY_S=soon"):
        Store("s3://bucket-of-this-test").exists("a")


def test_other_clouds_are_asked_at_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_s3() as (server, bucket):
        url, name = os.environ["AWS_ENDPOINT_URL"], bucket.removeprefix("s3://")
        server.files[f"/{name}/pre/a"] = SMALL
        nobody = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(nobody | {"gcs_base_url": url}))
        assert Store(f"gs://{name}/pre").read_range("a", 10, 20) == SMALL[10:30]
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
        assert Store(f"az://{name}/pre").read_range("a", 10, 20) == SMALL[10:30]


def test_a_cloud_without_an_account_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UserError, match="Account must be specified") as caught:
        check_store("az://box-without-account/pre", {})
    assert "where: az://box-without-account" in caught.value.message
