"""Are the outputs saved in the notebooks those of their code?
Records what nbdev_test's own run prints and draws, and compares it.

    python .ci/outputs.py record VENV FOLDER     a hook in that environment writes the outputs of each page
                                                 into the folder
    python .ci/outputs.py compare FOLDER         exits with 1 and names each cell whose saved output is
                                                 missing or older than its code

Numbers differ from machine to machine, and so do widths of columns and the name of the processor: what is compared
are the words, and whether there is a figure.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOOK = '''
import json, sys
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path({folder!r})


def patched(shell): # the class that runs notebooks
    run_all = shell.run_all
    def recorded(self, nb, *args, **kwargs):
        try: return run_all(self, nb, *args, **kwargs)
        finally:
            outputs = {{c.id: c.get('outputs', []) for c in nb.cells if c.cell_type == 'code'}}
            (FOLDER/f'{{Path(nb.path_).stem}}.json').write_text(json.dumps(outputs, default=str))
    shell.run_all = recorded


class Finder: # execnb is patched when nbdev imports it
    def find_spec(self, name, path=None, target=None):
        if name != 'execnb.shell': return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            patched(module.CaptureShell)
        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
'''


def record(venv, folder):
    "Install the hook."
    folder.mkdir(parents=True, exist_ok=True)
    [site] = venv.glob('lib/python3*/site-packages')
    (site/'medfusion_ci_hook.py').write_text(HOOK.format(folder=str(folder.resolve())), encoding='utf-8')
    (site/'medfusion_ci_hook.pth').write_text('import medfusion_ci_hook\n', encoding='utf-8')


def joined(text):
    "Text of an output, which notebooks keep as lines."
    return ''.join(text) if isinstance(text, list) else str(text)


def text_of(out):
    "What one output says; a table as HTML, which has no width at which its rows are broken."
    data = out.get('data', {})
    if out['output_type'] == 'stream': return joined(out['text']) if out.get('name') == 'stdout' else ''
    if any(kind.startswith('image/') for kind in data): return ''
    if 'text/html' in data:
        html = re.sub(r'<style.*?</style>', '', joined(data['text/html']), flags=re.S)
        return re.sub(r'<[^>]*>', ' ', html)
    return joined(data.get('text/markdown') or data.get('text/plain', ''))


def words(outputs):
    "What a cell says: numbers, colours, paths and blanks left out."
    text = '\n'.join(map(text_of, outputs))
    text = re.sub(r'\x1b\[[\d;]*m|/tmp/\S+|0x[0-9a-f]+', '', text)
    text = re.sub(r"(\bcpu\W+)[^,\n]+(,\W+cores\b)", r'\1\2', text) # what benchmarks say of the processor
    text = re.sub(r'[-+]?\d[\d.,:e+%-]*|\b[Nn]a[Nn]\b|\binf\b|[-=|]{2,}', '#', text)
    return re.sub(r'[\s#]+', ' ', text).strip()


def figures(outputs):
    "How many pictures a cell shows."
    return sum(any(k.startswith('image/') for k in out.get('data', {})) for out in outputs)


def wrong_cells(notebook, fresh):
    "Cells whose saved output is not that of their code."
    for i, cell in enumerate(json.loads(notebook.read_text(encoding='utf-8'))['cells']):
        if cell['cell_type'] != 'code' or cell['id'] not in fresh: continue
        old, new = cell['outputs'], fresh[cell['id']]
        where = f"{notebook.name}: cell {i} ({cell['id']})"
        if (words(new) or figures(new)) and not old:
            yield f'{where} has no saved output: {words(new)[:80] or "a figure"}'
        elif words(old) != words(new):
            yield (f'{where}: saved output is older than its code:\n'
                   f'  saved {words(old)[:300]}\n'
                   f'  now   {words(new)[:300]}')
        elif figures(old) != figures(new):
            yield f'{where}: {figures(old)} figures are saved, {figures(new)} are drawn'


def compare(folder):
    "All pages; those without a record were not run."
    pages = sorted((ROOT/'nbs').glob('*.ipynb'))
    fresh = {p.stem: json.loads(p.read_text(encoding='utf-8')) for p in folder.glob('*.json')}
    wrong = [f'{p.name}: was not run' for p in pages if p.stem not in fresh]
    for page in pages:
        if page.stem in fresh: wrong += wrong_cells(page, fresh[page.stem])
    print('\n'.join(wrong) or f'{len(pages)} pages: the saved outputs are those of the code')
    return bool(wrong)


if __name__ == '__main__':
    action, *paths = sys.argv[1:]
    sys.exit(dict(record=record, compare=compare)[action](*map(Path, paths)))
