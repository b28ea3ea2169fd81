"""Checks of the repository that need no kernel: exits with 1 and says what is wrong where.

- a notebook is at most 300 KB, saved without errors and without widgets,
  and its outputs hold no path of the machine it ran on;
- a cell flagged slow, which nbdev_test skips, is skipped in Run All as well unless MEDFUSION_SLOW is set;
- an image outside the notebooks is a figure of the README, at most 100 KB, or the logo,
  a small drawing without pixels: nothing else that could hold a real scan is tracked or about to be.
"""
import re
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
MACHINE_PATH = re.compile(r'(?<![\w.])/(?:work|root|home|Users|opt|tmp)/[\w.-]+|[A-Z]:\\Users')
IMAGE = re.compile(r'\.(png|jpe?g|tiff?|bmp|gif|dcm|nii|nii\.gz|npy|npz|h5|svg)$', re.I)
FIGURES = ('index_files/',)
LOGO = 'nbs/logo.svg'


def check_notebook(path):
    "What is wrong with one notebook."
    size = path.stat().st_size
    if size > 300*1024: yield f'{size//1024} KB: keep it to 300 KB (smaller figures, lower dpi)'
    nb = nbformat.read(path, 4)
    if 'widgets' in nb.metadata:
        yield ('the state of widgets was saved: '
               'execute it with nbconvert --ExecutePreprocessor.store_widget_state=False')
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code': continue
        flagged = re.search(r'^#\| *slow$', cell.source, re.M)
        guarded = re.match(r'(#\|.*\n)+if .*\bslow\(', cell.source, re.M)
        if flagged and not guarded:
            yield (f'cell {i} is flagged slow: begin it with `if slow(...):` of medfusion_nb.core, '
                   'or Run All waits for it')
        for out in cell.outputs:
            data = out.get('data', {})
            if 'application/vnd.jupyter.widget-view+json' in data:
                yield (f'cell {i} was saved with a widget, which nobody can see without its kernel: '
                       'execute it with nbconvert')
            if out.output_type == 'error': yield f'cell {i} was saved with the error {out.ename}'
            text = out.get('text', '') + ''.join(str(v) for k, v in data.items() if k.startswith('text'))
            found = MACHINE_PATH.search(text)
            if found: yield f'cell {i} shows a path of this machine in its output: {found[0]}'


def is_drawing(path):
    "An SVG of at most 4 KB that neither holds nor names a picture made of pixels."
    pixels = r'<image|<foreignObject|data:|href|url\('
    return path.stat().st_size <= 4096 and not re.search(pixels, path.read_text(encoding='utf-8'))


def main():
    command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT/f for f in listed.split('\0') if f and (ROOT/f).is_file()]
    wrong = [f'{f.relative_to(ROOT)}: {w}' for f in files if f.suffix == '.ipynb' for w in check_notebook(f)]
    for f in files:
        name, size = f.relative_to(ROOT).as_posix(), f.stat().st_size
        if not IMAGE.search(name): continue
        figure = name.startswith(FIGURES) and size <= 100_000
        if not figure and not (name == LOGO and is_drawing(f)):
            wrong.append(f'{name} ({size//1000} KB): an image that is no figure of the README; '
                         'real data must not be in the repository')
    notebooks = sum(f.suffix == '.ipynb' for f in files)
    print('\n'.join(wrong) or f'{notebooks} notebooks, {len(files)} files: nothing wrong')
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
