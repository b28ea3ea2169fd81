"""Prepares every page of the docs as nbdev does before Quarto takes over, and checks that none is missing."""
import shutil
import sys

from nbdev.config import get_config
from nbdev.serve import proc_nbs


def main():
    cfg = get_config()
    shutil.rmtree(cfg.config_path/'_proc', ignore_errors=True)
    pages = proc_nbs()  # into _proc; raises on a page that fails
    wanted = [p for p in sorted(cfg.nbs_path.glob('*.ipynb')) if not p.name.startswith('_')]
    missing = [p.name for p in wanted if not (pages/p.name).is_file()]
    print('missing: ' + ', '.join(missing) if missing else f'{len(wanted)} pages')
    shutil.rmtree(pages)
    return bool(missing)


if __name__ == '__main__': sys.exit(main())
