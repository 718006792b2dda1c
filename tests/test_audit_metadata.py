import pandas as pd
import pytest
from PIL import Image

from covid_lab.audit.metadata import FIELDS, file_metadata
from covid_lab.datasets import UnreadableImages
from covid_project.data import Dataset


@pytest.fixture
def folder(tmp_path):
    """Ten ways to write pictures of grey 100."""
    grey = Image.new("L", (30, 20), 100)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    grey.save(tmp_path / "coarse.jpg", quality=20)
    grey.save(tmp_path / "fine.jpeg", quality=95)
    grey.save(tmp_path / "progressive.jpg", quality=20, progressive=True)
    grey.save(tmp_path / "dots.jpg", quality=20, dpi=(300, 300), exif=exif)
    grey.save(tmp_path / "grey.png", compress_level=6)
    grey.save(tmp_path / "fast.png", compress_level=1)
    grey.convert("RGB").save(tmp_path / "colour.png")
    Image.new("I;16", (30, 20)).save(tmp_path / "deep.png")
    grey.save(tmp_path / "packed.tiff", compression="tiff_lzw")
    grey.save(tmp_path / "disguised.png", format="JPEG", quality=20)
    return tmp_path


def described(folder):
    paths = sorted(file.name for file in folder.iterdir())
    table = pd.DataFrame({"path": paths})
    return file_metadata(Dataset(table, folder, ("NORMAL", "COVID"), "")).set_axis(paths)


def test_what_a_file_says_of_itself(folder):
    found = described(folder)
    assert (found[["width", "height", "aspect", "pixels"]] == [30, 20, 1.5, 600]).all(axis=None)
    for name, row in found.iterrows():
        size = (folder / name).stat().st_size
        assert (row["bytes"], row["bytes_per_pixel"]) == (size, size / 600)
    kinds = found.loc[["deep.png", "disguised.png", "packed.tiff"], ["suffix", "format", "mode"]]
    assert kinds.to_numpy().tolist() == [
        ["png", "PNG", "I;16"],
        ["png", "JPEG", "L"],
        ["tiff", "TIFF", "L"],
    ]
    assert found.loc["dots.jpg", "resolution"] == "300x300"
    assert "exif" in found.loc["dots.jpg", "entries"]
    assert "exif" not in found.loc["coarse.jpg", "entries"]
    assert found.loc["packed.tiff", "compression"] == "tiff_lzw"
    compression = found["compression"]
    assert compression["coarse.jpg"] == compression["disguised.png"] == compression["dots.jpg"]
    different = ["coarse.jpg", "fine.jpeg", "progressive.jpg", "grey.png", "fast.png", "colour.png"]
    assert compression[[*different, "deep.png"]].is_unique
    fields = [name for names in FIELDS.values() for name in names]
    assert sorted(fields) == sorted(found.columns)


def test_unreadable_files_are_named(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UnreadableImages, match=r"broken\.png"):
        described(folder)
