"""Checkpoints come back bit for bit, or say what is wrong with them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_prune.engine.store import make_store
from fedjax_prune.runs.checkpoint import CheckpointError, latest, restore, rounds, save
from fedjax_prune.runs.origin import Origin
from fedjax_prune.types import ClientState, ServerState
from tests.toys import all_rows

ORIGIN = Origin({"seed": 3, "rounds": 2}, {"train": "a", "test": "x"})


def make_tree(seed=0, width=3):
    rng = np.random.default_rng(seed)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(2, width)), "float32")}}
    opt_state = optax.chain(optax.trace(0.9), optax.identity()).init(params)
    return {
        "state": ServerState(jnp.int32(seed), params, {}, (opt_state, ())),
        "rows": ClientState({}, {"control": rng.normal(size=(5, 2)).astype("float32")}),
        "kinds": (
            jnp.asarray([1.5, np.nan, np.inf], jnp.bfloat16),
            np.asarray([True, False]),
            np.zeros((0, 4), np.float32),
            np.float64(0.1) * np.ones(2),
        ),
    }


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        assert isinstance(a, np.ndarray) == isinstance(e, np.ndarray)
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 1, make_tree(1), keep=2)
    assert_same(restore(tmp_path, make_tree(0)), make_tree(1))


def test_the_template_can_be_abstract(tmp_path):
    tree = jax.tree.map(jnp.asarray, make_tree(1)["state"])
    save(tmp_path, 1, tree, keep=1)
    assert_same(restore(tmp_path, jax.eval_shape(lambda: tree)), tree)


def test_saving_needs_no_implicit_transfer(tmp_path):
    tree = make_tree(1)
    with jax.transfer_guard("disallow"):
        save(tmp_path, 1, tree, keep=1)
        assert_same(restore(tmp_path, tree), tree)


def test_only_the_newest_stay(tmp_path):
    assert latest(tmp_path / "none") is None
    for round in (2, 8, 10):
        save(tmp_path, round, make_tree(round), keep=2)
    assert (rounds(tmp_path), latest(tmp_path)) == ([8, 10], 10)
    assert_same(restore(tmp_path, make_tree()), make_tree(10))


def test_a_saved_round_is_left_as_it_is(tmp_path):
    save(tmp_path, 1, make_tree(1), keep=1)
    save(tmp_path, 1, make_tree(2), keep=1)
    assert_same(restore(tmp_path, make_tree()), make_tree(1))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    save(tmp_path, 1, make_tree(1), keep=2)
    # What a killed save leaves: files under the unfinished name.
    (tmp_path / ".unfinished" / "state").mkdir(parents=True)
    (tmp_path / ".unfinished" / "manifest.json").write_text("{}")
    assert latest(tmp_path) == 1
    save(tmp_path, 2, make_tree(2), keep=2)
    assert_same(restore(tmp_path, make_tree()), make_tree(2))


def contents(folder):
    files = [f for f in folder.rglob("*") if f.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [flip, lambda file: file.unlink(), lambda file: file.write_bytes(b"")],
)
@pytest.mark.parametrize("which", ["manifest.json", "largest"])
def test_the_one_before_a_damaged_checkpoint_is_taken(tmp_path, damage, which):
    save(tmp_path, 1, make_tree(1), keep=2)
    save(tmp_path, 2, make_tree(2), keep=2)
    files = [f for f in (tmp_path / "2" / "state").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    damage(tmp_path / "2" / which if which != "largest" else largest)
    before = contents(tmp_path)
    with pytest.warns(UserWarning, match=rf"/2 is damaged: .*\. {tmp_path}/1 is used"):
        assert_same(restore(tmp_path, make_tree()), make_tree(1))
    assert contents(tmp_path) == before


def test_a_file_that_others_put_into_a_checkpoint_is_named(tmp_path):
    save(tmp_path, 1, make_tree(1), keep=1)
    # macOS leaves one in each folder that is looked at.
    (tmp_path / "1" / "state" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"that were saved: \.DS_Store\."):
        restore(tmp_path, make_tree())


@pytest.mark.parametrize("next_round", [2, 3])
def test_a_damaged_checkpoint_is_put_aside_by_the_next_save(tmp_path, next_round):
    for round in (1, 3):
        save(tmp_path, round, make_tree(round), keep=2)
    (tmp_path / "3.damaged").mkdir()
    flip(tmp_path / "3" / "manifest.json")
    damaged = contents(tmp_path / "3")
    save(tmp_path, next_round, make_tree(next_round), keep=1)
    assert rounds(tmp_path) == [next_round]
    assert_same(restore(tmp_path, make_tree()), make_tree(next_round))
    assert contents(tmp_path / "3.damaged2") == damaged


def test_a_changed_manifest_is_damage(tmp_path):
    """A number in it may be another one and still be a number."""
    for round in (1, 2):
        save(tmp_path, round, make_tree(round), origin=ORIGIN, keep=2)
    file = tmp_path / "2" / "manifest.json"
    content = file.read_text()
    assert content.count('"seed": 3') == 1
    file.write_text(content.replace('"seed": 3', '"seed": 2'))
    with pytest.warns(UserWarning, match=r"/2 is damaged: manifest.json is not what"):
        assert_same(restore(tmp_path, make_tree(0), origin=ORIGIN), make_tree(1))


def test_another_origin_is_refused_and_named(tmp_path):
    save(tmp_path, 1, make_tree(1), origin=ORIGIN, keep=1)
    assert_same(restore(tmp_path, make_tree(0)), make_tree(1))
    other = Origin({"seed": 4, "rounds": 7, "lr": 0.1}, {"train": "b", "test": "x"})
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, make_tree(0), origin=other)
    assert str(error.value) == (
        f"The checkpoint {tmp_path}/1 is of another run: lr is 0.1, but it was saved "
        "with 'not set'; seed is 4, but it was saved with 3; the training examples are "
        "not those of its rounds. Use the old values and data to continue, or another "
        "workdir to start anew."
    )
    # An origin without data, as export has it.
    assert_same(
        restore(tmp_path, make_tree(0), origin=Origin(ORIGIN.config, {})), make_tree(1)
    )


@pytest.mark.parametrize("kind", ["to a folder", "dangling"])
def test_links_are_removed_and_not_followed(tmp_path, kind):
    outside, folder = tmp_path / "outside", tmp_path / "checkpoints"
    folder.mkdir()
    if kind == "to a folder":
        outside.mkdir()
        (outside / "mine").write_text("mine")
    (folder / ".unfinished").symlink_to(outside)
    save(folder, 1, make_tree(1), keep=1)
    (folder / "1").rename(tmp_path / "moved")
    (folder / "1").symlink_to(tmp_path / "moved")
    save(folder, 2, make_tree(2), keep=1)
    assert [f.name for f in folder.iterdir()] == ["2"]
    assert (tmp_path / "moved" / "manifest.json").exists()
    if kind == "to a folder":
        assert [f.name for f in outside.iterdir()] == ["mine"]
    else:
        assert not outside.exists()


def test_where_all_are_damaged_nothing_is_deleted(tmp_path):
    for round in (1, 2):
        save(tmp_path, round, make_tree(round), keep=2)
        flip(tmp_path / str(round) / "manifest.json")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, make_tree())
    first, second = (f"{tmp_path}/{n} is damaged: " for n in (2, 1))
    assert str(error.value).index(first) < str(error.value).index(second)
    assert "No other checkpoint is left, and nothing was deleted" in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["007", "1_0", "+3", "9x", ".5"])
def test_foreign_names_do_no_harm(tmp_path, name):
    save(tmp_path, 1, make_tree(1), keep=1)
    (tmp_path / name).touch()
    assert rounds(tmp_path) == [1]
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    save(tmp_path, 2, make_tree(2), keep=1)
    assert_same(restore(tmp_path, make_tree()), make_tree(2))
    assert (tmp_path / name).is_dir()


def test_an_empty_folder_is_no_checkpoint(tmp_path):
    save(tmp_path, 1, make_tree(1), keep=1)
    (tmp_path / "4").mkdir()
    with pytest.warns(UserWarning, match="4 is damaged: manifest.json cannot be read"):
        assert_same(restore(tmp_path, make_tree()), make_tree(1))


def make_rows(seed=0, width=3, kind="device"):
    row = ClientState({"gate": np.full(width, seed, np.float32)}, np.int32(seed))
    return make_store(kind, row, 5)


@pytest.mark.parametrize("kinds", [("device", "host"), ("host", "device")])
def test_rows_come_back_with_the_state(kinds, tmp_path):
    save(tmp_path, 1, make_tree(1), rows=make_rows(1, kind=kinds[0]), keep=1)
    rows = make_rows(0, kind=kinds[1])
    assert_same(restore(tmp_path, make_tree(0), rows), make_tree(1))
    jax.tree.map(np.testing.assert_array_equal, *map(all_rows, (rows, make_rows(1))))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.with_name("2.npy").write_bytes(b""),
        lambda file: shutil.rmtree(file.parent),
    ],
)
def test_damaged_rows_are_found_where_rows_are_read(damage, tmp_path):
    save(tmp_path, 1, make_tree(1), rows=make_rows(1), keep=1)
    damage(tmp_path / "1" / "rows" / "0.npy")
    rows = make_rows()
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/1 is damaged: "):
        restore(tmp_path, make_tree(), rows)
    jax.tree.map(np.testing.assert_array_equal, *map(all_rows, (rows, make_rows())))
    # The export of a model does not read them.
    assert_same(restore(tmp_path, make_tree()), make_tree(1))


def test_other_rows_are_refused_and_named(tmp_path):
    save(tmp_path, 1, make_tree(), rows=make_rows(width=3), keep=1)
    with pytest.raises(
        CheckpointError, match=r"gate'\]: saved float32\[5, 3\], needed float32\[5, 4\]"
    ):
        restore(tmp_path, make_tree(), make_rows(width=4))
    save(tmp_path, 2, make_tree(), keep=1)
    with pytest.raises(
        CheckpointError, match="2 was saved without the rows of clients"
    ):
        restore(tmp_path, make_tree(), make_rows())


@pytest.mark.parametrize("name", ["runs[1]", "{x}*", "a?b [!c]", "%20#", "**"])
def test_any_folder_will_do(name, tmp_path):
    """Orbax looks for parts of what it saves by a pattern that holds the path."""
    folder = tmp_path / name / "checkpoints"
    for round in (1, 2):
        save(folder, round, make_tree(round), rows=make_rows(round), keep=1)
    rows = make_rows()
    assert_same(restore(folder, make_tree(), rows), make_tree(2))
    jax.tree.map(np.testing.assert_array_equal, *map(all_rows, (rows, make_rows(2))))


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "3" / "leaves").mkdir(parents=True)
    manifest = {"leaves": {".round": "int32[]"}, "files": {}}
    (tmp_path / "3" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="its format is 1, this version reads 2"):
        restore(tmp_path, make_tree())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: [], "manifest.json must hold an object, got []"),
        (lambda m: None, "manifest.json must hold an object, got None"),
        (lambda m: m | {"format": "2"}, "format .* must be a number, got '2'"),
        (lambda m: m | {"format": True}, "format .* must be a number, got True"),
        (lambda m: m | {"state": 3}, "state .* must hold an object, got 3"),
        (lambda m: m | {"files": []}, "files .* must hold an object, got []"),
        (
            lambda m: m | {"files": {"state": 3}},
            "files of state in manifest.json must hold",
        ),
        (lambda m: m | {"config": []}, "config .* must hold an object, got []"),
        (lambda m: m | {"data": 3}, "data .* must hold an object, got 3"),
        (lambda m: m | {"rows": "r"}, "rows .* must hold an object, got 'r'"),
        (lambda m: {"format": 2, "files": m["files"]}, "state .* got None"),
        (lambda m: {"format": 2, "state": m["state"]}, "files .* got None"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, change, said):
    save(tmp_path, 1, make_tree(1), keep=1)
    file = tmp_path / "1" / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    said = said.replace("[]", r"\[\]")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/1 is damaged: {said}"):
        restore(tmp_path, make_tree())


def test_another_tree_is_refused_and_named(tmp_path):
    save(tmp_path, 1, make_tree(width=3), keep=1)
    with pytest.raises(CheckpointError, match="another model or algorithm") as error:
        restore(tmp_path, make_tree(width=4))
    assert "saved float32[2, 3], needed float32[2, 4]" in str(error.value)
    with pytest.raises(CheckpointError, match=r"saved int32\[\], needed none"):
        restore(tmp_path, {"rows": make_tree()["rows"]})


def test_nothing_to_restore(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        restore(tmp_path, make_tree())


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        save(tmp_path, 1, make_tree(), keep=0)
    assert list(tmp_path.iterdir()) == []
