"""Coverage-guided fuzzing of a cache's reader with atheris, which is not a dependency.

    pip install atheris && PYTHONPATH=tests python tests/fuzz_cache.py -max_total_time=600

It sees what an installed wheel covers; an editable install hides that from it.
The first byte of an input says which file the rest replaces; its checksums are made right, so that
what lies behind them is reached. Stops at an error that is not ours, at code that is run and at
an allocation that the files cannot justify.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mkd_fast.teacher.cache", "mkd_fast.teacher.repair"]):
    import shared_capture_job
    from rich_cache import contents
    from tampering import memory_limit, nothing_executed, sealed, tamper, use

    from mkd_fast.teacher.cache.manifest import MANIFEST, PLAN, read_manifest

OPTIONS = {"keep": ("topk:3", "sampled:4"), "num_parts": 1, "shard_bytes": 400}


def main() -> None:
    root = Path(tempfile.mkdtemp())
    folder, corpus = root / "cache", root / "corpus"
    shared_capture_job.run(folder, **OPTIONS)
    use(folder)
    whole = contents(folder)
    names = sorted(whole)
    corpus.mkdir()
    for number, name in enumerate(names):
        (corpus / name).write_bytes(bytes([number]) + whole[name])
    layouts = {
        entry.file: manifest.layout(entry)
        for manifest in [read_manifest(folder / MANIFEST)]
        for entry in manifest.shards
    }

    def one_input(data: bytes) -> None:
        if not data:
            return
        for path in folder.iterdir():
            path.unlink()
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        name, content = names[data[0] % len(names)], data[1:]
        if name in (MANIFEST, PLAN):
            # what is no JSON object stays as it is
            with contextlib.suppress(ValueError, RecursionError, AttributeError):
                content = sealed(json.loads(content))
            (folder / name).write_bytes(content)
            if name == PLAN:
                (folder / MANIFEST).unlink()
        else:
            tamper(folder, name, content, layouts[name].index_end if name in layouts else 0)
        with memory_limit(), nothing_executed():
            use(folder)

    atheris.Setup([*sys.argv, str(corpus)], one_input)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
