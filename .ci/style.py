"""Measures how the code and the pages are written, beside the libraries that this one learns from;
ends with 1 where a line is too wide.

Width, density and annotations are those of the exported modules without blank lines;
cells, tests and prose those of the notebooks.
The other libraries were measured in the same way, in their newest nbdev releases or,
without notebooks, in their newest releases.
"""
import ast
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDEST = 120      # characters of a line of exported code, above which CI fails
NOTHING = '-'     # what was not measured
LOOPS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp

CODE = ('lines over 100', 'over 120', 'syntax nodes a line', 'nested comprehensions per 1000 lines',
        'public parameters annotated')
CODE_OF_OTHERS = {
    'fastcore': ('6.8 %', '2.8 %', '6.7', '0.9', '17 %'), 'execnb': ('6.9 %', '2.5 %', '5.5', '0.0', '47 %'),
    'miniai': ('2.0 %', '0.5 %', '6.3', '0.0', '6 %'), 'torchio': ('0.5 %', '0.3 %', '3.7', '0.1', '81 %'),
    'torchmetrics (image)': ('8.2 %', '0.0 %', '4.4', '0.0', '100 %')}
PAGES = ('lines an exported cell', 'cells over 60 lines', 'test cells an exported cell',
         'words of prose an exported line', 'words a prose cell (median)')
PAGES_OF_OTHERS = {
    'fastcore': ('7.5', '0 %', '0.79', '2.8', '18'), 'execnb': ('11.0', '0 %', '0.83', '3.2', '13'),
    'nbdev itself': ('10.5', '0 %', '0.40', '1.7', NOTHING), 'miniai': ('9.0', '0 %', '0.05', '3.7', '4'),
    'fastMONAI (counter-anchor)': ('19.0', '5 %', '0.02', '0.1', NOTHING),
    'neuralforecast (counter-anchor)': ('77.0', '35 %', '0.38', '0.3', NOTHING)}


def public_functions(tree):
    "Functions that users call: those of the module and of its classes, without an underscore."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef): functions = [node]
        elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'): functions = node.body
        else: functions = []
        for f in functions:
            if isinstance(f, ast.FunctionDef) and (f.name == '__init__' or not f.name.startswith('_')):
                yield f


def parameters(function):
    "Its parameters, without the first one of a method."
    a = function.args
    return [p for p in (*a.posonlyargs, *a.args, *a.kwonlyargs) if p.arg not in ('self', 'cls')]


def code_measures(files):
    "What is measured of modules, as text, in the order of `CODE`."
    lines, nodes, nested, given = [], 0, 0, []
    for file in files:
        text = file.read_text(encoding='utf-8')
        lines += [line for line in text.splitlines() if line.strip()]
        for node in ast.walk(ast.parse(text)):
            nodes += not isinstance(node, ast.expr_context)
            inner = [x for child in ast.iter_child_nodes(node) for x in ast.walk(child)]
            nested += isinstance(node, LOOPS) and any(isinstance(x, LOOPS) for x in inner)
        for function in public_functions(ast.parse(text)):
            given += [p.annotation is not None for p in parameters(function)]
    n = len(lines)
    over = [sum(len(line) > most for line in lines)/n for most in (100, 120)]
    return (*(f'{100*share:.1f} %' for share in over), f'{nodes/n:.1f}', f'{1000*nested/n:.1f}',
            f'{100*sum(given)/max(len(given), 1):.0f} %')


def cells(notebook):
    "Exported cells, other code cells, and cells of prose: lists of their sources."
    exported, code, prose = [], [], []
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': prose.append(source)
        elif re.match(r'#\s*\|\s*exports?\b', source): exported.append(source)
        elif cell['cell_type'] == 'code': code.append(source)
    return exported, code, prose


def page_measures(notebooks):
    "What is measured of notebooks that export something, as text, in the order of `PAGES`."
    found = [c for c in map(cells, notebooks) if c[0]]
    exported, code, prose = (sum(parts, []) for parts in zip(*found))
    lines = [len(s.splitlines()) for s in exported]
    tests = sum(bool(re.search(r'\btest_|\bassert|expect_fail', s)) for s in code)
    words = [len(s.split()) for s in prose]
    return (f'{statistics.mean(lines):.1f}', f'{100*sum(n > 60 for n in lines)/len(lines):.0f} %',
            f'{tests/len(lines):.2f}', f'{sum(words)/sum(lines):.1f}', f'{statistics.median(words):.0f}')


def table(title, columns, others, ours):
    "A Markdown table: the others, then ours."
    rows = [(title, *columns), ('---',)*(len(columns)+1)]
    rows += [(name, *measures) for name, measures in (*others.items(), *ours.items())]
    return '\n'.join(f"| {' | '.join(row)} |" for row in rows)


def wide_lines(notebooks):
    "Lines of exported code that are too wide, with their page."
    for notebook in notebooks:
        for source in cells(notebook)[0]:
            for line in source.splitlines():
                if len(line) > WIDEST:
                    yield f'{notebook.name}: {len(line)} characters: {line.strip()[:80]} ...'


def main():
    modules = sorted(p for p in (ROOT/'medfusion_nb').glob('*.py') if not p.name.startswith('_'))
    notebooks = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if cells(p)[0])
    code = {'medfusion_nb': code_measures(modules), **{p.stem: code_measures([p]) for p in modules}}
    print(table('code', CODE, CODE_OF_OTHERS, code))
    print()
    pages = {'medfusion_nb': page_measures(notebooks), **{p.stem: page_measures([p]) for p in notebooks}}
    print(table('pages', PAGES, PAGES_OF_OTHERS, pages))
    wide = list(wide_lines(notebooks))
    print(f'\n{len(wide)} lines of exported code over {WIDEST} characters', *wide, sep='\n')
    sys.exit(bool(wide))


if __name__ == '__main__': main()
