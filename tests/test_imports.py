"""No module of kshot imports itself by way of others, imports for type checking counted."""

from graphlib import TopologicalSorter

import grimp


def test_no_circle_of_imports():
    graph = grimp.build_graph("kshot", exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert "kshot.sources.glyphs" in imports["kshot.sources"]
    TopologicalSorter(imports).prepare()  # raises on a circle
