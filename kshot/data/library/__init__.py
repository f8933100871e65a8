"""The library of data sets: where they lie, how they get there, and what is cached of them."""

from kshot.data.library.store import (
    Added,
    add,
    beside,
    cache_folder,
    cached,
    check,
    data_folders,
    find,
    is_cached,
    known,
    place_of,
    write_arrays,
)

__all__ = [
    "Added",
    "add",
    "beside",
    "cache_folder",
    "cached",
    "check",
    "data_folders",
    "find",
    "is_cached",
    "known",
    "place_of",
    "write_arrays",
]
