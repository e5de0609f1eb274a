"""Cards, recipes and folders that are made to harm: a named error, and nothing in them is ever run."""

import os
import time

import pytest
import yaml
from strangers import digits_cnn, refusal, submission

from atent_ext.core.errors import BadInput
from atent_ext.storage import untrusted
from atent_ext.submissions import folder as submission_folder
from atent_ext.training import recipes

# ---- hostile cards


def with_card(tmp_path, text):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "card.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_yaml_with_an_object_tag_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    text = f"name: !!python/object/apply:os.system ['touch {marker}']\n"
    yaml.unsafe_load(text)  # the trap works, where someone lets it
    assert marker.exists()
    marker.unlink()
    folder = with_card(tmp_path, text)
    assert refusal(folder) == (
        f"{folder}/card.yaml has the YAML tag 'tag:yaml.org,2002:python/object/apply:os.system'; "
        "only plain values are read, remove the tag"
    )
    assert not marker.exists()


def test_a_yaml_bomb_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    folder, start = with_card(tmp_path, "\n".join(lines)), time.monotonic()
    assert refusal(folder) == f"{folder}/card.yaml has the YAML alias 'a0'; write the value out"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["[" * 90_000, "{a: " * 20_000, "- " * 40_000, "? " * 40_000])
def test_a_yaml_without_a_bottom_is_refused_at_once(tmp_path, text):
    folder, start = with_card(tmp_path, text), time.monotonic()
    assert refusal(folder) == f"{folder}/card.yaml is nested deeper than 20 levels; write it flat"
    assert time.monotonic() - start < 5


def test_a_card_that_is_too_large_is_refused(tmp_path):
    folder = with_card(tmp_path, "a" * 100_001)
    assert refusal(folder) == f"{folder}/card.yaml has 100,001 bytes; at most 100,000 are read"


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\x00", "a: [1", "a: b: c", "day: 2024-13-45", "x: " + "9" * 5000, "\x1b[2J"]
)
def test_a_card_that_is_no_yaml_is_refused(tmp_path, text):
    folder = with_card(tmp_path, text)
    assert refusal(folder).startswith(f"{folder}/card.yaml is not YAML: ")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\nb", "", "x" * 101])
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), name=name)
    assert refusal(folder).startswith(f"{folder}/card.yaml is no card: 'name': ")


@pytest.mark.parametrize("dataset", ["folder:/etc", "npz:../x.npz", "../digits", "/etc"])
def test_a_data_set_that_is_a_path_is_refused(tmp_path, dataset):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), dataset=dataset)
    assert refusal(folder) == (
        f"{folder}/card.yaml is no card: 'dataset': {dataset!r} is no name of a data set; "
        "a card names no files and folders"
    )


# ---- hostile recipes


def with_recipe(tmp_path, **changes):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    raw = yaml.safe_load(recipes.dump(recipes.load("digits-linf-pgd-at")))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw | changes))
    return folder


def test_a_recipe_is_read(tmp_path):
    opened = submission_folder.read(with_recipe(tmp_path))
    assert opened.recipe == recipes.load("digits-linf-pgd-at")
    assert opened.notes == ()


@pytest.mark.parametrize("base", ["../secret", "/etc/passwd", "_digits-linf"])
def test_the_base_of_a_recipe_is_not_followed(tmp_path, base):
    (tmp_path / "secret.yaml").write_text("a: 1")
    folder = with_recipe(tmp_path, base=base)
    assert refusal(folder) == (
        f"{folder}/recipe.yaml has a base, {base!r}; no other file is followed, write the recipe whole"
    )


def test_what_a_recipe_starts_from_is_said_and_not_opened(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # who opened it would wait for ever
    opened = submission_folder.read(with_recipe(tmp_path, init_from=str(pipe)))
    assert opened.notes == (f"the recipe starts from {str(pipe)[:100]!r}, which is not read",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("objective: {name: 'os:system'}", "unknown objective 'os:system'"),
        ("epochs: -1", "epochs is -1"),
        ("name: 0x" + "f" * 5000, "recipe.yaml is no recipe: ValueError: "),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path, line, said):
    folder = with_recipe(tmp_path)
    with (folder / "recipe.yaml").open("a") as file:
        file.write(f"{line}\n")  # the last of two counts
    assert said in refusal(folder)


def test_a_recipe_without_fields_is_refused(tmp_path):
    folder = with_recipe(tmp_path)
    (folder / "recipe.yaml").write_text("- 1")
    assert refusal(folder) == f"{folder}/recipe.yaml holds no fields; a recipe is a mapping of names to values"


def test_a_recipe_with_an_object_tag_is_refused(tmp_path):
    folder, marker = with_recipe(tmp_path), tmp_path / "marker"
    (folder / "recipe.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {marker}']\n")
    assert "recipe.yaml has the YAML tag" in refusal(folder)
    assert not marker.exists()


# ---- the folder


@pytest.mark.parametrize("name", ["card.yaml", "model.pt", "recipe.yaml", "README.md"])
@pytest.mark.parametrize("there", [True, False])
def test_symbolic_links_are_refused(tmp_path, name, there):
    folder = with_recipe(tmp_path)
    outside = tmp_path / "outside"
    if there:
        outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    assert refusal(folder) == f"{name!r} in {folder} is a symbolic link; put the file itself there"


def test_a_linked_folder_is_refused(tmp_path):
    folder = with_recipe(tmp_path)
    (folder / "pictures").symlink_to(tmp_path)
    assert refusal(folder) == f"'pictures' in {folder} is a symbolic link; put the file itself there"


def test_a_file_that_becomes_a_link_after_the_check_is_refused(tmp_path, monkeypatch):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    listing = untrusted.files

    def list_and_swap(where):
        found = listing(where)
        (tmp_path / "outside").write_bytes((folder / "card.yaml").read_bytes())
        (folder / "card.yaml").unlink()
        (folder / "card.yaml").symlink_to(tmp_path / "outside")
        return found

    monkeypatch.setattr(untrusted, "files", list_and_swap)
    assert refusal(folder) == f"{folder}/card.yaml is a symbolic link; put the file itself there"


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"0123456789")
    monkeypatch.setattr(untrusted, "_size", lambda *arguments: 5)
    with pytest.raises(BadInput, match="x changed while it was read; try again"):
        untrusted.read(tmp_path / "x", 10)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    os.mkfifo(folder / "pipe")
    assert refusal(folder) == f"'pipe' in {folder} is neither a file nor a folder; remove it"
    with pytest.raises(BadInput, match="pipe is not a plain file; put the file itself there"):
        untrusted.read(folder / "pipe", 10)


def test_a_name_that_cannot_be_printed_is_refused(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict(), "a\nb.pt")
    assert refusal(folder) == f"'a\\nb.pt' in {folder} has a name that cannot be printed; rename it"


def test_too_many_files_and_too_deep_ones_are_refused(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "plots").mkdir()
    for k in range(97):
        (folder / "plots" / f"{k}.png").touch()
    assert submission_folder.read(folder).notes == ()  # two files, a folder, 97 files
    (folder / "plots" / "97.png").touch()
    assert refusal(folder) == f"{folder} has more than 100 files; leave in it what the submission needs"
    deep = submission(tmp_path / "deep", digits_cnn().state_dict())
    (deep / "a" / "b").mkdir(parents=True)
    assert refusal(deep) == f"'{deep}/a/b' lies deeper than 2 levels in {deep}; keep it flat"


def test_there_is_one_weights_file_and_a_card(tmp_path):
    folder = submission(tmp_path / "s", digits_cnn().state_dict())
    (folder / "sub").mkdir()
    (folder / "sub" / "other.safetensors").touch()
    assert refusal(folder) == (f"{folder} has 2 weights files ('model.pt', 'sub/other.safetensors'); leave one of them")
    (folder / "model.pt").unlink()
    assert refusal(folder) == (f"the weights lie in 'sub/other.safetensors'; put them into {folder} itself")
    (folder / "sub" / "other.safetensors").unlink()
    remedy = "put model.safetensors there, or a file of torch.save"
    assert refusal(folder) == f"there is no weights file in {folder}; {remedy}"
    (folder / "net.onnx").write_bytes(b"x")
    (folder / "net.gz").write_bytes(b"\x1f\x8b\x08")
    kinds = "'net.gz' is a gzip archive, not weights: unpack it; 'net.onnx' is no file of safetensors or torch.save"
    assert refusal(folder) == f"there is no weights file in {folder} ({kinds}); {remedy}"
    (folder / "card.yaml").unlink()
    (folder / "model.pt").touch()
    assert refusal(folder) == (f"there is no card.yaml in {folder}; `atent submission new RUN --out DIR` writes one")
    assert refusal(folder / "nowhere") == f"there is no folder {folder}/nowhere"


def test_weights_over_the_limit_are_refused(tmp_path):
    folder = submission(tmp_path / "s", bytes(1001))
    assert refusal(folder, most=1000) == f"{folder}/model.pt has 1,001 bytes; at most 1,000 are read"
    with (folder / "model.pt").open("r+b") as file:
        file.truncate(4 * 2**30 + 1)  # sparse
    assert refusal(folder) == f"{folder}/model.pt has 4,294,967,297 bytes; at most 4,294,967,296 are read"
