"""The library of known data sets: where they are, how they are downloaded, verified and unpacked."""

from kshot.data.library.store import Added, Counts, Opener, add, check, data_folders, find, known, resolve_path

__all__ = ["Added", "Counts", "Opener", "add", "check", "data_folders", "find", "known", "resolve_path"]
