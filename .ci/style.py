"""Prints how the notebooks are written, beside those of the libraries this one learns from (their newest nbdev releases, measured the same way)."""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ('lines per exported cell', 'cells over 60 lines', 'test cells per exported cell', 'prose words per exported line')
ANCHORS = {'fastcore': (7.5, 0, .79, 2.8), 'execnb': (11, 0, .83, 3.2), 'nbdev itself': (10.5, 0, .40, 1.7), 'miniai (fast.ai part 2)': (9, 0, .05, 3.7),
           'fastMONAI (counter-anchor)': (19, .05, .02, .06), 'neuralforecast (counter-anchor)': (77, .35, .38, .35)}


NO_CODE = re.compile(r'\s*$|#\s*\||\)|\s+"[^"]*"$|\s+[*\w]+[^#(]*,\s*#') # blank, directive, end of a signature, docstring, a parameter with its comment


def count(path, code=False):
    "Exported cells, their lines (only those of code?), cells over 60 lines, test cells, words of prose of one notebook."
    cells = nbformat.read(path, 4).cells
    sources = [c.source for c in cells if c.cell_type == 'code']
    exported = [s for s in sources if re.match(r'#\s*\|\s*exports?\b', s)]
    lines = [sum(not (code and NO_CODE.match(l)) for l in s.splitlines()) for s in exported]
    tests = sum(bool(re.search(r'\btest_|\bassert|expect_fail', s)) for s in sources if s not in exported)
    return len(exported), sum(lines), sum(n > 60 for n in lines), tests, sum(len(c.source.split()) for c in cells if c.cell_type == 'markdown')


def row(name, values): return f"| {name:32} | {values[0]:5.1f} | {values[1]:4.0%} | {values[2]:5.2f} | {values[3]:5.2f} |"


def measures(cells, lines, long, tests, words): return lines/cells, long/cells, tests/cells, words/lines


def main():
    counts = {p.name: count(p) for p in sorted((ROOT/'nbs').glob('*.ipynb'))}
    counts = {k: c for k, c in counts.items() if c[0]}
    print('| | ' + ' | '.join(COLUMNS) + ' |\n|---|---|---|---|---|')
    for name, values in ANCHORS.items(): print(row(name, values))
    print(row('medfusion_nb', measures(*map(sum, zip(*counts.values())))))
    print(row('its code, parameters left out', measures(*map(sum, zip(*(count(ROOT/'nbs'/k, code=True) for k in counts))))))
    for name, c in counts.items(): print(row(name, measures(*c)))


if __name__ == '__main__': main()
