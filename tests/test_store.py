"""The stage store: keys, one maker at a time, nothing half-written, damaged files refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
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
from lib.runtime import provenance
from lib.setups import load_setup
from lib.setups.schema import FOLDER
from lib.stages import zoo
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


def test_a_measurement_of_another_copy_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "RECORDS", tmp_path / "records")
    source, measured = stage(seed=0), Stage("answers", "of it", {"setup": "tiny"}, (stage(seed=0).key,))

    def found(value: float) -> float:
        return float(store.get(measured, made(value), of=source).tensors["weights"][0])

    store.put(source, *made(1.0)(None))
    store.put(measured, *made(10.0)(None), folder=store.RECORDS)
    assert found(11.0) == 11, "nobody knows what the record is of, so it is of no use beside the network"
    assert found(12.0) == 11, "and that is kept"
    store.put(source, *made(2.0)(None))
    assert found(13.0) == 13, "of another copy"
    (store.cache_dir() / f"{source.stem}.json").write_text("{damaged")
    assert found(14.0) == 13, "whoever loads the network is told"
    (store.cache_dir() / f"{source.stem}.json").unlink()
    assert found(15.0) == 13, "it outlives the network"


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


def test_how_to_make_a_stage_of_ones_own_setup_names_its_file(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text((FOLDER / "digits.yaml").read_text().replace("name: digits", "name: tiny"))
    load_setup(path)
    with pytest.raises(
        store.Missing, match=f"make it with `make run SETUP={re.escape(str(path.resolve()))}`"
    ):
        store.get(stage(), lambda checkpoint: pytest.fail("started"), seconds=7200)


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
    monkeypatch.setattr(store, "RECORDS", tmp_path / "records")
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


def record_of(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def test_a_promoted_stage_remembers_who_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(store, "provenance", lambda: {"device": "cuda", "revision": "then"})
    assert "promoted_by" not in record_of(store.get(stage(), made()).path)
    monkeypatch.setattr(store, "provenance", lambda: {"device": "cpu", "revision": "now"})
    record = record_of(store.promote(stage(), folder=store.ZOO))
    assert record["made_by"] == {"device": "cuda", "revision": "then"}
    assert record["promoted_by"] == {"device": "cpu", "revision": "now"}
    store.remove("a target")
    monkeypatch.setattr(store, "provenance", lambda: {"device": "cpu", "revision": "later"})
    assert record_of(store.promote(stage(), folder=store.ZOO)) == record, "a copy of the copy changes nothing"


# --- the zoo as a whole -------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A zoo of two stages, one of which no longer belongs, and a file beside them; two stages to promote."""
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr(zoo, "zoo_stages", lambda setup: [stage(seed=seed) for seed in (0, 1, 2)])
    for seed in (0, 9):
        store.put(stage(seed=seed), {"weights": torch.zeros(1)}, {"steps": 1}, folder=store.ZOO)
    (store.ZOO / "README.md").write_text("the old card")
    (store.ZOO / "NOTICE").write_text("kept")
    for seed in (0, 1):
        store.put(stage(seed=seed), {"weights": torch.ones(1)}, {"steps": 7})
    return store.ZOO


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_promoting_replaces_the_zoo_and_writes_its_card(shipped):
    written = zoo.promote_zoo("digits")
    stems = [stage(seed=seed).stem for seed in (0, 1)]
    assert written == [shipped / f"{stem}.safetensors" for stem in stems]
    wanted = {f"{stem}.{suffix}" for stem in stems for suffix in ("json", "safetensors")}
    assert set(contents(shipped)) == wanted | {"README.md", "NOTICE"}
    assert "| a target | 7 steps | 0.0 MB |" in (shipped / "README.md").read_text()
    assert [path.name for path in shipped.parent.iterdir()] == ["zoo"], "nothing stays beside it"
    before = contents(shipped)
    for seed in (0, 1):
        store.remove(stage(seed=seed).key)
    zoo.promote_zoo("digits")
    assert contents(shipped) == before, "what is only in the zoo stays in it"


def test_a_zoo_that_is_too_big_leaves_the_old_one_whole(shipped, monkeypatch):
    before = contents(shipped)
    store.get(stage(seed=2), lambda checkpoint: ({"weights": torch.zeros(1_000_000)}, {}))
    monkeypatch.setattr(zoo, "LIMIT_MEGABYTES", 1)
    with pytest.raises(
        UserError, match="the zoo would have 2 MB, at most 1 are shipped; it was left as it is"
    ):
        zoo.promote_zoo("digits")
    assert contents(shipped) == before and [path.name for path in shipped.parent.iterdir()] == ["zoo"]


def test_a_zoo_that_cannot_be_written_leaves_the_old_one_whole(shipped, monkeypatch):
    before, rename = contents(shipped), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("as simulated")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="simulated"):
        zoo.promote_zoo("digits")
    assert contents(shipped) == before
    monkeypatch.undo()


def test_nothing_to_promote_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(zoo, "zoo_stages", lambda setup: [stage(seed=5)])
    with pytest.raises(UserError, match="no stage of digits is made yet; `make run SETUP=digits` first"):
        zoo.promote_zoo("digits")


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


# --- unfinished stages --------------------------------------------------------------------------------


def cached() -> list[dict]:
    return [row for row in store.listing() if row["place"] == "cache"]


def begin(of: Stage) -> None:
    """Begin a stage and be interrupted after its first checkpoint."""

    def killed(checkpoint: Checkpoint):
        checkpoint.save({"step": 3, "weights": torch.zeros(50_000)}, force=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(of, killed)


def test_an_unfinished_stage_is_listed_and_removed_as_its_messages_say():
    store.get(stage(seed=1), made())
    begin(stage())
    finished, unfinished = cached()
    assert (finished["state"], finished["label"], finished["seconds"]) == ("finished", "a target", 0.0)
    assert unfinished == {
        "place": "cache",
        "state": "unfinished",
        "key": stage().key,
        "kind": "target",
        "label": "a target",
        "megabytes": 0.2,
        "seconds": None,
    }
    checkpoint = Checkpoint(store.cache_dir() / f"{stage().stem}.checkpoint")
    assert checkpoint.removal == f"`python -m lib.run cache rm {stage().key}`"
    assert store.remove(stage().key) == ["a target"]
    assert not list(store.cache_dir().glob(f"{stage().stem}.*")), "neither checkpoint nor lock stay"
    assert store.exists(stage(seed=1)) and [row["key"] for row in cached()] == [stage(seed=1).key]


def test_a_checkpoint_of_before_labels_is_resumed_and_listed_by_its_file_name():
    path = store.cache_dir() / f"{stage().stem}.checkpoint"
    path.parent.mkdir(parents=True)
    torch.save({"step": 3, "fingerprint": "x", "weights": torch.ones(4)}, path)  # the bare state, as it was
    (row,) = cached()
    assert (row["state"], row["kind"], row["key"], row["label"]) == ("unfinished", "target", stage().key, "")

    def resume(checkpoint: Checkpoint):
        state = checkpoint.load()
        assert state["step"] == 3 and torch.equal(state["weights"], torch.ones(4))
        checkpoint.save({**state, "step": 4}, force=True)
        assert checkpoint.load()["step"] == 4
        (row,) = cached()
        assert row["label"] == "a target", "written anew it says what it is"
        return {"weights": torch.zeros(1)}, {}

    store.get(stage(), resume)
    assert [row["state"] for row in cached()] == ["finished"]


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"], ids=["lock only", "empty", "text"])
def test_whatever_an_abandoned_stage_left_can_be_removed(content):
    cache = store.cache_dir()
    cache.mkdir(parents=True)
    (cache / f"{stage().stem}.lock").touch()
    if content is not None:
        (cache / f"{stage().stem}.checkpoint").write_bytes(content)
    (row,) = cached()
    assert (row["state"], row["label"], row["megabytes"]) == ("unfinished", "", 0.0)
    assert store.remove(stage().key) == [stage().stem]
    assert not list(cache.iterdir())


def _hold(cache: str, begun, ended) -> None:
    os.environ["MIDRE_CACHE"] = cache

    def make(checkpoint: Checkpoint):
        checkpoint.save({"step": 3}, force=True)
        begun.set()
        ended.wait(60)
        return {"weights": torch.zeros(1)}, {}

    store.get(stage(), make)


def test_what_another_process_makes_is_not_removed_nor_is_anything_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDRE_CACHE", str(tmp_path))
    store.get(stage(seed=1), made())
    context = multiprocessing.get_context("fork")
    begun, ended = context.Event(), context.Event()
    maker = context.Process(target=_hold, args=(str(tmp_path), begun, ended))
    maker.start()
    try:
        assert begun.wait(60)
        assert [row["state"] for row in cached()] == ["finished", "unfinished"]
        for pattern in (stage().key, "target"):
            with pytest.raises(
                UserError, match="a target is being made by another process; .* Nothing was removed"
            ):
                store.remove(pattern)
        assert store.exists(stage(seed=1)) and (tmp_path / f"{stage().stem}.checkpoint").exists()
    finally:
        ended.set()
        maker.join(60)
    assert maker.exitcode == 0 and store.exists(stage())
    assert store.remove("target") == ["a target"] * 2 and not list(tmp_path.iterdir())


def test_the_command_lists_and_removes_unfinished_stages(capsys):
    from lib.run.__main__ import main

    begin(stage())
    assert main(["cache", "ls"]) == 0
    assert "unfinished" in (listed := capsys.readouterr().out) and stage().key in listed
    assert main(["cache", "rm", stage().key]) == 0
    assert capsys.readouterr().out == "removed a target\n"
    assert main(["cache", "rm", stage().key]) == 2
    assert "no cached stage matches" in capsys.readouterr().err


NAMES = [
    "lfw64 target fe(0.5) x4 seed 0",
    "lfw64 target trapmid x4 seed 0",
    "lfw64 none x4 seed 0 plgmi conditional_gan headline attack seed 0",
    "lfw64 none x4 seed 0 lomma_gmi eigenfaces headline attack seed 0",
    "lfw64 none x4 seed 0 gmi eigenfaces headline attack seed 0",
    "lfw64 none x4 seed 0 ppa+eot4 eigenfaces quick attack seed 0",
    "lfw64 re(0.1,0.4) x4 seed 0 ppa eigenfaces quick attack seed 0",
    "lfw64-mine target none x4 seed 0",
]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("fe", [0]),
        ("mid", []),
        ("gmi", [4]),
        ("lomma_gmi", [3]),
        ("ppa", [5, 6]),
        ("ppa+eot4", [5]),
        ("re(0.1,0.4)", [6]),
        ("lfw64", [0, 1, 2, 3, 4, 5, 6]),
        ("lfw64 target", [0, 1]),
        ("made", list(range(len(NAMES)))),
    ],
)
@pytest.mark.parametrize("place", ["cache", "records"])
def test_a_name_means_itself_and_no_longer_one(tmp_path, monkeypatch, place, pattern, meant):
    monkeypatch.setattr(store, "RECORDS", tmp_path)
    for seed, label in enumerate(NAMES):
        store.put(
            Stage("made", label, {"seed": seed}),
            {"weights": torch.zeros(1)},
            {},
            folder=store.RECORDS if place == "records" else None,
        )
    assert sorted(row["label"] for row in store.matching(pattern, place)) == sorted(NAMES[k] for k in meant)


def test_a_key_is_meant_by_eight_of_its_digits_and_not_by_fewer():
    stages = [stage(seed=seed) for seed in range(40)]
    for one in stages:
        store.put(one, {"weights": torch.zeros(1)}, {})
    key = stages[7].key
    assert [row["key"] for row in store.matching(key[:8], "cache")] == [key]
    for pattern in (key[:7], key[1:9], key[0]):
        with pytest.raises(UserError, match="no cached stage matches"):
            store.remove(pattern)


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
    checkpoint.path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="c.checkpoint is damaged .* remove it with .*cache rm"):
        checkpoint.load()


def test_without_git_a_stage_is_made_all_the_same(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["revision"] == "unknown"


def test_durations_are_readable():
    assert [store.duration(s) for s in (40, 89.4, 700, 12_600)] == ["40 s", "89 s", "12 min", "3.5 h"]
