"""How large artifacts are that lie in a store, without their bytes being read."""

from __future__ import annotations

from pathlib import PurePosixPath

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.artifacts import ArtifactStore, is_directory
from airflow_ml_provider.tracking.places import MlflowStorePlace, ObjectStoragePlace, Place, ProxyPlace, place_for, store_told


def size_in_store(store: ArtifactStore, ref: ArtifactRef) -> int:
    """
    Add up the bytes of an artifact as its store lists them.

    :param store: Artifacts of the server.
    :param ref: A resolved reference.
    :return: Bytes of the file, or of all files of the directory.
    :raises RemoteNotFoundError: there is nothing.
    :raises RemoteUnavailableError: the store did not answer; a retry is safe.
    """
    root, path, of_mlflow = store.locate(ref.uri)
    if path and not is_directory(ref):
        folder, name = path.rpartition("/")[::2]
    elif not is_directory(ref):  # the root is the file itself
        root, name = root.rsplit("/", 1)
        folder = ""
    else:
        folder, name = path.rstrip("/"), None
    sizes = _listed(place_for(store.api, root, of_mlflow=of_mlflow), folder, deep=name is None)
    found = sizes if name is None else {each: size for each, size in sizes.items() if each == name}
    if not found:
        raise RemoteNotFoundError(f"there is nothing at {ref.uri}")
    return sum(found.values())


def _listed(place: Place, folder: str, *, deep: bool) -> dict[str, int]:
    """List the files of a folder with their sizes."""
    found: dict[str, int] = {}
    if isinstance(place, ObjectStoragePlace):
        top = place.root / folder if folder else place.root
        with store_told(top):
            for each in (top.rglob("*") if deep else top.iterdir()) if top.is_dir() else ():
                if each.is_file():
                    found[str(each).removeprefix(str(top).rstrip("/") + "/")] = int(each.stat().st_size)
        return found
    for name, size, is_folder in _entries(place, folder):
        if not is_folder:
            found[name] = size
        elif deep:
            below = _listed(place, f"{folder}/{name}".strip("/"), deep=True)
            found |= {f"{name}/{each}": size for each, size in below.items()}
    return found


def _entries(place: Place, folder: str) -> list[tuple[str, int, bool]]:
    """List one folder: name, bytes, whether it is a folder."""
    if isinstance(place, ProxyPlace):
        listed = place.api.list_files("/".join(each for each in (place.root.strip("/"), folder) if each))
        return [(str(each["path"]), int(each.get("file_size") or 0), bool(each.get("is_dir"))) for each in listed]
    if isinstance(place, MlflowStorePlace):
        with store_told(f"{place.root}/{folder}"):
            entries = place.repository.list_artifacts(folder or None)
        return [(PurePosixPath(each.path).name, int(each.file_size or 0), bool(each.is_dir)) for each in entries]
    raise NotImplementedError(f"{type(place).__name__} tells no sizes")
