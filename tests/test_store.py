"""The stage store: keys, one maker at a time, nothing half-written, damaged files refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lib import store
from lib.errors import UserError
from lib.store import Checkpoint, Stage


def stage(**params) -> Stage:
    return Stage("target", "a target", {"setup": "tiny", **params}, ("0123456789abcdef",))


def made(value: float = 1.0):
    return lambda checkpoint: ({"weights": torch.full((3,), value)}, {"steps": 7})


# --- keys ---------------------------------------------------------------------------------------------


def test_a_key_depends_on_what_determines_the_stage_and_on_nothing_else():
    first = stage(seed=0, widths=[8, 16])
    assert first.key == stage(widths=[8, 16], seed=0).key, "the order of parameters does not matter"
    assert first.key == Stage("target", "another label", first.params, first.upstream).key
    others = [
        stage(seed=1, widths=[8, 16]),
        Stage("evaluator", first.label, first.params, first.upstream),
        Stage(first.kind, first.label, first.params, ("fedcba9876543210",)),
        Stage(first.kind, first.label, first.params, first.upstream, version=2),
    ]
    assert len({first.key, *(other.key for other in others)}) == 5


def test_keys_are_the_same_in_every_process_and_release():
    text = "from lib.store import Stage; print(Stage('prior', 'x', {'b': 0.1, 'a': [1, 'é']}, ('up',)).key)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=store.ROOT,
    )
    own = Stage("prior", "y", {"a": [1, "é"], "b": 0.1}, ("up",)).key
    assert done.stdout.strip() == own == "bca33ecc842bf11c", (
        "a changed key orphans every cached and shipped stage"
    )


def test_essentials_leave_keys_alone_when_a_field_with_a_default_is_added():
    from dataclasses import dataclass, field

    @dataclass
    class Inner:
        a: int = 1

    @dataclass
    class Config:
        steps: int
        rate: float = 0.1
        inner: Inner = field(default_factory=Inner)

    assert store.essentials(Config(5)) == {"steps": 5}
    assert store.essentials(Config(5, inner=Inner(2))) == {"steps": 5, "inner": {"a": 2}}


# --- getting ------------------------------------------------------------------------------------------


def test_made_once_then_loaded_with_metadata():
    first = store.get(stage(), made())
    again = store.get(stage(), lambda checkpoint: pytest.fail("made twice"))
    assert torch.equal(again.tensors["weights"], first.tensors["weights"])
    assert again.meta["steps"] == 7 and again.meta["seconds"] >= 0
    names = sorted(path.name for path in store.cache_dir().iterdir())
    assert names == [f"{stage().stem}.json", f"{stage().stem}.safetensors"], (
        "no lock, checkpoint or part stays"
    )


def test_hours_are_not_spent_silently(monkeypatch):
    monkeypatch.delenv("MIDRE_TRAIN", raising=False)
    with pytest.raises(store.Missing, match=r"a target is not there yet and takes about 2\.0 h.*SETUP=tiny"):
        store.get(stage(), lambda checkpoint: pytest.fail("started"), seconds=7200)
    monkeypatch.setenv("MIDRE_TRAIN", "1")
    assert store.get(stage(), made(), seconds=7200).meta["steps"] == 7


def test_a_failed_stage_leaves_nothing_but_its_checkpoint():
    def fail(checkpoint: Checkpoint):
        checkpoint.save({"step": 3}, force=True)
        raise UserError("the loss became nan")

    with pytest.raises(UserError, match="nan"):
        store.get(stage(), fail)
    assert not store.exists(stage())

    def resume(checkpoint: Checkpoint):
        assert checkpoint.load() == {"step": 3}
        return {"weights": torch.zeros(1)}, {}

    store.get(stage(), resume)
    assert not list(store.cache_dir().glob("*.checkpoint")), "a finished stage needs none"


def test_the_zoo_is_looked_up_after_the_cache_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    store.get(stage(), made(2.0))
    path = store.promote(stage(), folder=store.ZOO)
    assert path.parent == store.ZOO
    assert store.remove("a target") == ["a target"]
    found = store.find(stage())
    assert found.path == path and found.tensors["weights"].dtype == torch.float16
    store.get(stage(), lambda checkpoint: pytest.fail("it is in the zoo"))
    assert [row["place"] for row in store.listing()] == ["zoo"]
    with pytest.raises(UserError, match="no cached stage matches"):
        store.remove("a target")
    with pytest.raises(UserError, match="not in the cache"):
        store.promote(stage(seed=9))


def _race(log: Path, cache: str) -> None:
    os.environ["MIDRE_CACHE"] = cache

    def make(checkpoint: Checkpoint):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return {"weights": torch.full((3,), float(os.getpid()))}, {}

    value = float(store.get(stage(), make).tensors["weights"][0])
    with log.with_suffix(".seen").open("a") as file:
        file.write(f"{value}\n")


def test_of_two_processes_one_makes_the_stage_and_the_other_waits_for_it(tmp_path):
    log, context = tmp_path / "made", multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(log, str(tmp_path / "cache"))) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    (maker,) = log.read_text().split()
    assert log.with_suffix(".seen").read_text().split() == [f"{float(maker)}"] * 2


# --- damage -------------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda json_path, weights: flip_a_byte(weights), "is damaged"),
        (lambda json_path, weights: weights.unlink(), "is damaged"),
        (lambda json_path, weights: weights.write_bytes(weights.read_bytes()[:-2]), "is damaged"),
        (lambda json_path, weights: json_path.write_text(json_path.read_text()[:40]), "is damaged"),
    ],
    ids=["flipped", "missing", "truncated", "metadata"],
)
def test_a_damaged_stage_is_refused_and_can_be_removed_as_the_message_says(harm, word):
    path = store.get(stage(), made()).path
    harm(path.with_suffix(".json"), path)
    with pytest.raises(UserError, match=word) as error:
        store.get(stage(), lambda checkpoint: pytest.fail("made over a damaged file"))
    assert f"cache rm {stage().key}" in str(error.value)
    store.remove(stage().key)
    assert store.get(stage(), made()).meta["steps"] == 7


def test_a_file_that_holds_another_stage_is_refused():
    path = store.get(stage(seed=1), made()).path
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).rename(path.with_name(stage(seed=2).stem + suffix))
    with pytest.raises(UserError, match="holds another stage than its name says"):
        store.find(stage(seed=2))


def test_weights_that_are_no_safetensors_are_refused_even_with_the_right_hash():
    path = store.get(stage(), made()).path
    path.write_bytes(b"not weights at all")
    document = json.loads(path.with_suffix(".json").read_text())
    document["sha256"] = store._sha256(path)
    path.with_suffix(".json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="not a safetensors file"):
        store.find(stage())


def test_metadata_with_nan_is_a_defect_and_not_written():
    with pytest.raises(ValueError, match="JSON"):
        store.put(stage(), {"weights": torch.zeros(1)}, {"loss": float("nan")})
    assert not store.exists(stage())


# --- writing ------------------------------------------------------------------------------------------


def _fill(cache: str, outcome: Path) -> None:
    """Write more than this process may: the kernel answers as on a full disk."""
    os.environ["MIDRE_CACHE"] = cache
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    messages = []
    for write in (
        lambda: store.put(stage(), {"weights": torch.zeros(100_000)}, {}),
        lambda: Checkpoint(Path(cache) / "c.checkpoint").save({"x": torch.zeros(100_000)}, force=True),
    ):
        try:
            write()
        except UserError as error:
            messages.append(str(error).replace("\n", " "))
    outcome.write_text("\n".join(messages))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    cache, outcome = tmp_path / "cache", tmp_path / "outcome"
    process = multiprocessing.get_context("fork").Process(target=_fill, args=(str(cache), outcome))
    cache.mkdir()
    process.start()
    process.join(60)
    messages = outcome.read_text().splitlines()
    assert len(messages) == 2
    assert all("could not write" in line and "MB are free there; make room" in line for line in messages)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="could not make the folder .*point MIDRE_CACHE"):
        store.get(stage(), made())


def test_a_cache_without_permission_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind root
    with pytest.raises(UserError, match="is not writable; point MIDRE_CACHE"):
        store.get(stage(), made())


def test_an_interrupted_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "c.checkpoint", every=0)
    checkpoint.save({"step": 1})
    monkeypatch.setattr(torch, "save", lambda content, path: (Path(path).write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        checkpoint.save({"step": 2})
    monkeypatch.undo()
    assert checkpoint.load() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c.checkpoint"]


def test_checkpoints_are_throttled_and_read_as_data_only(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.checkpoint", every=3600)
    assert not checkpoint.save(lambda: pytest.fail("the state is not even computed"))
    assert checkpoint.save({"nested": {"x": torch.ones(2)}, "list": [1, "two"]}, force=True)
    assert torch.equal(checkpoint.load()["nested"]["x"], torch.ones(2))
    checkpoint.discard()
    assert checkpoint.load() is None
    assert Checkpoint(None).load() is None and not Checkpoint(None).save({}, force=True)

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"x": Evil()}, checkpoint.path)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        checkpoint.load()
    assert not (tmp_path / "executed").exists()


def test_durations_are_readable():
    assert [store.duration(s) for s in (40, 89.4, 700, 12_600)] == ["40 s", "89 s", "12 min", "3.5 h"]
