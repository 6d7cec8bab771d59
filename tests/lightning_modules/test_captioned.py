"""Captioned images of every layout, and the tables of pairs that are made of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightning_modules.data.captioned import check_templates, read_captioned
from lightning_modules.data.columns import read_columns
from lightning_modules.data.icons import is_icons, read_icons
from lightning_modules.data.pairs import read_pairs
from lightning_modules.errors import InputError


def draw(file, colour=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(file)
    return file


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.png", "sub/c.jpg"):
        draw(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write(folder, rows, head="image,caption", name="captions.csv"):
    (folder / name).write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_a_table_of_captions_gives_images_in_its_order(photos):
    rows = ['sub/c.jpg,"a cat, asleep"', "a.png,007", 'b.png,"two\nlines"']
    found = read_captioned(write(photos, rows))
    assert found.images.files == ("sub/c.jpg", "a.png", "b.png")
    assert found.captions == ("a cat, asleep", "007", "two\nlines")
    assert found.columns == {}
    assert found.files == [photos / "sub" / "c.jpg", photos / "a.png", photos / "b.png"]
    assert found.images.sizes.tolist() == [file.stat().st_size for file in found.files]


def test_a_table_of_any_name_and_format_may_hold_more(photos):
    columns = {"caption": ["x", "y", "z"], "image": ["a.png", "b.png", "sub/c.jpg"], "label": [3, 3, 1]}
    columns |= {"split": ["in", "out", "in"], "environment": ["day", "day", "night"], "more": [None] * 3}
    pq.write_table(pa.table(columns), photos / "mine.parquet")
    found = read_captioned(photos / "mine.parquet")
    assert found.captions == ("x", "y", "z")
    kept = {"label": ("3", "3", "1"), "environment": ("day", "day", "night"), "split": ("in", "out", "in")}
    assert found.columns == kept
    assert (found.images.environments, found.images.environment.tolist()) == (("day", "night"), [0, 0, 1])
    assert (found.images.classes, found.images.labels.tolist()) == (("1", "3"), [1, 1, 0])


def test_images_without_captions_are_refused_unless_the_table_itself_is_given(photos):
    with pytest.raises(InputError, match="photos: holds 2 images without captions; write captions.csv"):
        read_captioned(photos)
    write(photos, ["a.png,x", "b.png,y"])
    with pytest.raises(InputError, match=r"captions are missing for 1 image of the folder, e.g. sub/c.jpg; write"):
        read_captioned(photos)
    assert read_captioned(photos / "captions.csv").captions == ("x", "y")
    write(photos, ["a.png,x"])
    with pytest.raises(InputError, match=r"missing for 2 images of the folder, e.g. b.png"):
        read_captioned(photos)


def test_wrong_tables_are_named_with_the_row(photos, tmp_path):
    for rows, message in (
        (["a.png,x", "none.png,y"], "captions.csv: row 1: none.png: no such image"),
        (["a.png,x", "b.png,"], "row 1: caption is empty"),
        (["a.png,x", 'b.png," "'], "row 1: caption is empty"),
        ([",x"], "row 0: image is empty"),
        (["a.png,x", "b.png,y", "./a.png,z"], "row 2: ./a.png stands in row 0 already"),
        (["sub,x"], "row 0: sub: no such image"),
        ([], "captions.csv: has no rows"),
        (["a.png"], "captions.csv: cannot be read as csv"),
    ):
        with pytest.raises(InputError, match=message):
            read_captioned(write(photos, rows))
    with pytest.raises(InputError, match="captions.csv: column 'caption' is missing; it has 'image', 'text'"):
        read_captioned(write(photos, ["a.png,x"], "image,text"))
    with pytest.raises(InputError, match="row 0: split 'test' is neither 'in' nor 'out'"):
        read_captioned(write(photos, ["a.png,x,test"], "image,caption,split"))
    pq.write_table(pa.table({"image": ["a.png", None], "caption": ["x", "y"]}), photos / "nulls.parquet")
    with pytest.raises(InputError, match="nulls.parquet: row 1: image is empty"):
        read_captioned(photos / "nulls.parquet")
    pq.write_table(pa.table({"image": ["a.png"], "caption": [["x"]]}), photos / "captions.parquet")
    with pytest.raises(InputError, match="has both captions.csv and captions.parquet; keep one"):
        read_captioned(photos)
    with pytest.raises(InputError, match="column 'caption': is list"):
        read_captioned(photos / "captions.parquet")
    with pytest.raises(InputError, match="a.png: is no folder and no table that ends in .csv or .parquet"):
        read_captioned(photos / "a.png")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        read_captioned(tmp_path / "nowhere")
    (photos / "bad.parquet").write_text("no table")
    with pytest.raises(InputError, match="bad.parquet: cannot be read as parquet"):
        read_captioned(photos / "bad.parquet")


def test_folders_of_classes_take_templates_in_turn(tmp_path):
    for name in ("sea_lion/1.png", "sea_lion/2.png", "sea_lion/3.png", "cat/1.png"):
        draw(tmp_path / "animals" / name)
    found = read_captioned(tmp_path / "animals", ["a photo of a {}", "{}."])
    assert found.images.files == ("cat/1.png", "sea_lion/1.png", "sea_lion/2.png", "sea_lion/3.png")
    assert found.captions == ("a photo of a cat", "a photo of a sea lion", "sea lion.", "a photo of a sea lion")
    assert found.columns == {"label": ("cat", "sea_lion", "sea_lion", "sea_lion")}


def test_parts_of_imagenet_become_splits_and_environments_stay(tmp_path):
    for name in ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png"):
        draw(tmp_path / "parts" / name)
    found = read_captioned(tmp_path / "parts")
    assert found.images.files == ("train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png")
    assert found.columns["split"] == ("in", "in", "out", "out")
    for name in ("day/cat/1.png", "night/dog/1.png"):
        draw(tmp_path / "rooms" / name)
    found = read_captioned(tmp_path / "rooms")
    assert found.columns == {"label": ("cat", "dog"), "environment": ("day", "night")}
    assert found.captions == ("a photo of a cat", "a photo of a dog")


def test_templates_need_one_place_for_the_class(tmp_path):
    draw(tmp_path / "a" / "1.png")
    for templates, message in (
        (["a photo"], "'a photo' does not hold {} once"),
        (["{} and {}"], "does not hold {} once"),
        ([], "there is none"),
    ):
        with pytest.raises(InputError, match=message):
            read_captioned(tmp_path, templates)
        with pytest.raises(InputError, match=message):
            check_templates(templates)


ICONS = {
    "0023": ("HASH KEY", "Symbols", "keycap", "twitter google"),
    "1F1E6": ("FLAG OF NOWHERE", "Flags", "country-flag", "twitter google"),
    "1F3FB": ("LIGHT SKIN", "Component", "skin-tone", "twitter google"),
    "1F408": ("CAT", "Animals & Nature", "animal-mammal", "twitter google"),
    "1F409": ("DRAGON", "Animals & Nature", "animal-reptile", "twitter"),
    "1F40A": ("CROCODILE", "Animals & Nature", "animal-reptile", "google"),
}


def unpack(folder, style):
    """Lay icons out as npm's packages do."""
    about = []
    for code, (name, category, subcategory, styles) in ICONS.items():
        icon = {"name": name, "unified": code, "image": f"{code.lower()}.png", "category": category}
        icon |= {f"has_img_{other}": other in styles for other in ("twitter", "google")}
        about.append(icon | {"subcategory": subcategory})
        if style in styles:
            draw(folder / "img" / style / "64" / icon["image"])
    (folder / "emoji.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def icons(tmp_path):
    unpack(tmp_path / "icons" / "a", "twitter")
    unpack(tmp_path / "icons" / "b" / "package", "google")
    return tmp_path / "icons"


def test_icons_of_two_styles_are_those_that_both_have(icons):
    found = read_icons(icons)
    assert found.names == ("hash key", "cat")
    assert found.categories == ("Symbols", "Animals & Nature")
    assert found.subcategories == ("keycap", "animal-mammal")
    assert list(found.images) == ["google", "twitter"]
    assert found.images["google"][1] == icons / "b" / "package" / "img" / "google" / "64" / "1f408.png"
    assert found.images["twitter"][1] == icons / "a" / "img" / "twitter" / "64" / "1f408.png"
    one = read_icons(icons / "a")
    assert one.names == ("hash key", "cat", "dragon")
    assert list(one.images) == ["twitter"]


def test_icons_are_captioned_images_with_styles_as_environments(icons):
    found = read_captioned(icons)
    assert found.captions == ("hash key", "cat") * 2
    assert found.columns["environment"] == ("google",) * 2 + ("twitter",) * 2
    assert found.columns["label"] == ("Symbols", "Animals & Nature") * 2
    assert found.images.files[3] == "a/img/twitter/64/1f408.png"
    assert all(file.is_file() for file in found.files)


def test_icons_that_are_not_whole_are_refused(icons, tmp_path):
    assert is_icons(icons)
    assert not is_icons(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no emoji.json"):
        read_icons(tmp_path)
    twice = unpack(tmp_path / "icons" / "c", "twitter")
    with pytest.raises(InputError, match="c: has style 'twitter', which another folder has"):
        read_icons(icons)
    (twice / "emoji.json").unlink()
    missing = icons / "a" / "img" / "twitter" / "64" / "1f408.png"
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing}: is missing, but emoji.json names it"):
        read_icons(icons)
    (icons / "a" / "emoji.json").write_text('[{"name": "CAT"}]')
    with pytest.raises(InputError, match="emoji.json: cannot be read as a list of icons .KeyError"):
        read_icons(icons)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "emoji.json").write_text("[]")
    with pytest.raises(InputError, match="bare: has no folder img/STYLE/64"):
        read_icons(tmp_path / "bare")


def pair_table(rows=3, **columns):
    numbers = np.arange(rows * 5, dtype=np.float32)
    table = {
        "image_features": pa.FixedSizeListArray.from_arrays(pa.array(numbers[: rows * 3]), 3),
        "text_features": pa.FixedSizeListArray.from_arrays(pa.array(numbers[rows * 3 :]), 2),
        "caption": [f"caption {i}" for i in range(rows)],
    }
    return pa.table(table | columns)


def test_pairs_come_back_from_every_format(tmp_path):
    table = pair_table(label=[2, 1, 2], split=["in", "in", "out"], more=[None] * 3)
    pq.write_table(table, tmp_path / "p.parquet")
    with pa.OSFile(str(tmp_path / "p.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    arrays = {name: np.array(table[name].to_pylist()) for name in table.column_names if name != "more"}
    np.savez(tmp_path / "p.npz", **arrays)
    for name in ("p.parquet", "p.arrow", "p.npz"):
        found = read_pairs(tmp_path / name)
        np.testing.assert_array_equal(found.image_features, np.arange(9).reshape(3, 3))
        np.testing.assert_array_equal(found.text_features, np.arange(9, 15).reshape(3, 2))
        assert found.image_features.dtype == found.text_features.dtype == np.float32
        assert found.captions == ["caption 0", "caption 1", "caption 2"]
        assert found.columns == {"label": ["2", "1", "2"], "split": ["in", "in", "out"]}
        assert found.identity.startswith("p@")


def test_wrong_tables_of_pairs_are_named_with_the_column(tmp_path):
    def refuse(table, message):
        pq.write_table(table, tmp_path / "p.parquet")
        with pytest.raises(InputError, match=message):
            read_pairs(tmp_path / "p.parquet")

    refuse(pair_table().drop(["text_features"]), "column 'text_features' is missing")
    refuse(pair_table().drop(["caption"]), "column 'caption' is missing")
    refuse(pair_table(split=["in", "in", "test"]), "column 'split': 'test' at row 2 is neither")
    refuse(pair_table().slice(0, 0), "has no rows")
    refuse(pair_table(caption=["a", None, "b"]), "column 'caption': has 1 nulls, first at row 1")
    bad = pa.FixedSizeListArray.from_arrays(pa.array([0, np.nan, 0], pa.float32()), 1)
    refuse(pair_table(text_features=bad), "column 'text_features': 1 rows have NaN")
    np.savez(tmp_path / "p.npz", image_features=np.ones((3, 2)), text_features=np.ones((2, 2)), caption=["a"] * 3)
    with pytest.raises(InputError, match="column 'text_features': has 2 rows, 'image_features' has 3"):
        read_pairs(tmp_path / "p.npz")


def test_columns_of_any_name_can_be_read(tmp_path):
    pq.write_table(pair_table(), tmp_path / "p.parquet")
    features, strings = read_columns(tmp_path / "p.parquet", ["text_features"], ["caption"], ["label"])
    assert list(features) == ["text_features"]
    assert strings == {"caption": ["caption 0", "caption 1", "caption 2"]}
