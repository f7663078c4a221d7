"""Fetching from a server on this machine, honest, slow-witted or hostile, and from a folder."""

import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from metastep._errors import DataError
from metastep.datasets import fetch, fetch_omniglot, load_omniglot


class Server:
    """Serves bytes by path; `cut` sends that many bytes of the length it promises."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[str] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
                content = owner.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: owner.cut])

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/python"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(small_omniglot: Path):
    """A server that has both archives, and the checksums it ought to be asked for."""
    running = Server()
    for path in (small_omniglot / "omniglot").iterdir():
        running.files[f"/python/{path.name}"] = path.read_bytes()
    yield running
    running.close()


def registry_of(server: Server) -> dict[str, str]:
    return {
        path.rsplit("/", 1)[1]: f"md5:{hashlib.md5(content).hexdigest()}"
        for path, content in sorted(server.files.items())
    }


def refusal(root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        fetch_omniglot(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_download_is_complete_and_is_not_repeated(server, tmp_path, capfd) -> None:
    options = {"base_url": server.url + "/", "registry": registry_of(server)}
    fetched = fetch_omniglot(tmp_path / "root", **options)
    assert fetched.folder == tmp_path / "root" / "omniglot"
    both = ("images_background.zip", "images_evaluation.zip")
    assert fetched.actions == dict.fromkeys(both, "downloaded")
    for file in both:
        assert (fetched.folder / file).read_bytes() == server.files[f"/python/{file}"]
    assert load_omniglot(tmp_path / "root", image_size=2).test.num_classes == 3
    assert server.asked == [f"/python/{file}" for file in both]
    assert fetch_omniglot(tmp_path / "root", **options).actions == dict.fromkeys(both, "present")
    assert len(server.asked) == 2
    assert capfd.readouterr() == ("", "")  # nothing of pooch's own on the terminal


def test_progress_reaches_the_size_of_each_file(server, tmp_path) -> None:
    calls: list[tuple[str, int, int]] = []
    fetch_omniglot(
        tmp_path,
        base_url=server.url,
        registry=registry_of(server),
        progress=lambda *c: calls.append(c),
    )
    for path, content in server.files.items():
        done = [call[1] for call in calls if call[0] == path.rsplit("/", 1)[1]]
        assert done[-1] == len(content)
        assert max(done) <= len(content)
    assert {total for _, _, total in calls} == {len(content) for content in server.files.values()}


def test_a_tampered_file_leaves_nothing(server, tmp_path) -> None:
    registry = registry_of(server)
    server.files["/python/images_background.zip"] += b"x"
    message = refusal(tmp_path / "root", base_url=server.url, registry=registry)
    assert message == (
        f"{server.url}/images_background.zip: what arrived does not have the published checksum "
        f"({registry['images_background.zip']}) and was thrown away; "
        "try again, or give a folder that holds the files as source"
    )
    assert everything_in(tmp_path / "root") == []


def test_a_truncated_download_leaves_nothing(server, tmp_path) -> None:
    server.cut = 1000
    message = refusal(tmp_path / "root", base_url=server.url, registry=registry_of(server))
    assert message.startswith(f"{server.url}/images_background.zip could not be downloaded (")
    assert everything_in(tmp_path / "root") == []


def test_a_file_cut_short_at_the_source_leaves_nothing(server, tmp_path) -> None:
    registry = registry_of(server)
    server.files["/python/images_background.zip"] = b"PK"
    message = refusal(tmp_path / "root", base_url=server.url, registry=registry)
    assert "does not have the published checksum" in message
    assert everything_in(tmp_path / "root") == []


def test_no_such_file_and_no_such_server(server, tmp_path) -> None:
    registry = registry_of(server)
    message = refusal(tmp_path, base_url=server.url + "/gone", registry=registry)
    assert message.startswith(
        f"{server.url}/gone/images_background.zip could not be downloaded (404 "
    )
    server.close()
    message = refusal(tmp_path, base_url=server.url, registry=registry, timeout=2)
    assert message.startswith(f"{server.url}/images_background.zip could not be downloaded (")
    assert message.endswith("); try again, or give a folder that holds the files as source")


def test_a_damaged_file_is_replaced_and_a_repacked_one_kept(server, tmp_path) -> None:
    folder = tmp_path / "omniglot"
    folder.mkdir()
    (folder / "images_evaluation.zip").write_bytes(b"PK damaged")
    repacked = folder / "images_background.zip"
    repacked.write_bytes(server.files["/python/images_background.zip"])
    with zipfile.ZipFile(repacked, "a") as archive:
        archive.comment = b"another checksum, the same drawings"
    kept = repacked.read_bytes()
    fetched = fetch_omniglot(tmp_path, base_url=server.url, registry=registry_of(server))
    assert list(fetched.actions.values()) == ["present", "downloaded"]
    assert repacked.read_bytes() == kept
    assert server.asked == ["/python/images_evaluation.zip"]


@pytest.mark.parametrize("place", ["", "omniglot", "python", "omniglot-py"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_from_a_folder(small_omniglot, tmp_path, place: str, unpacked: bool) -> None:
    source = tmp_path / "source" / place
    source.mkdir(parents=True)
    for path in (small_omniglot / "omniglot").iterdir():
        if unpacked:
            zipfile.ZipFile(path).extractall(source)
        else:
            (source / path.name).write_bytes(path.read_bytes())
    fetched = fetch_omniglot(tmp_path / "root", source=tmp_path / "source")
    assert set(fetched.actions.values()) == {"copied"}
    assert everything_in(fetched.folder) == ["images_background.zip", "images_evaluation.zip"]
    copied, original = load_omniglot(tmp_path / "root"), load_omniglot(small_omniglot)
    assert copied.train.names == original.train.names
    assert (copied.train.images == original.train.images).all()
    again = fetch_omniglot(tmp_path / "root", source=tmp_path / "source")
    assert set(again.actions.values()) == {"present"}


def test_a_folder_without_the_sets(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").touch()
    message = refusal(tmp_path / "root", source=tmp_path / "source")
    assert message == (
        f"{tmp_path}/source holds neither images_background.zip nor a folder images_background/"
    )
    assert refusal(tmp_path / "root", source=tmp_path / "gone") == (
        f"{tmp_path}/gone does not exist"
    )


def test_a_folder_with_an_incomplete_set_leaves_nothing(small_omniglot, tmp_path) -> None:
    zipfile.ZipFile(small_omniglot / "omniglot" / "images_background.zip").extractall(tmp_path)
    (tmp_path / "images_background" / "Greek" / "character01" / "07.png").unlink()
    message = refusal(tmp_path / "root", source=tmp_path)
    assert message == (
        f"{tmp_path}/images_background is not the complete images_background: it must hold 14 "
        "characters of 20 drawings, and holds 1 of 19 drawings, 13 of 20 drawings; fetch it again"
    )
    assert everything_in(tmp_path / "root") == []


def test_a_data_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("x")
    message = refusal(tmp_path / "root", source=tmp_path)
    assert message == (
        f"cannot write to {tmp_path}/root/omniglot: Not a directory; choose another data root"
    )


def test_a_full_disk(small_omniglot, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "_pack", fail)
    message = refusal(tmp_path / "root", source=small_omniglot)
    assert message == (
        f"cannot write to {tmp_path}/root/omniglot: No space left on device; "
        "choose another data root"
    )
    assert everything_in(tmp_path / "root") == []


def test_published_checksums() -> None:
    # As in the data set's own repository and in torchvision.
    assert fetch.OFFICIAL_HASHES == {
        "images_background.zip": "md5:68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "md5:6b91aef0f799c5bb55b94e3f2daec811",
    }
    assert fetch.OFFICIAL_URL.startswith("https://")


@pytest.mark.omniglot
@pytest.mark.slow
def test_from_the_real_archives(omniglot_root, tmp_path) -> None:
    fetched = fetch_omniglot(tmp_path, source=omniglot_root)
    assert set(fetched.actions.values()) == {"copied"}
