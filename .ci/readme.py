"""README.md from nbs/index.ipynb, without Quarto.

    python .ci/readme.py                  write README.md and the figures it shows (index_files/)
    python .ci/readme.py --command Tests  print the shell commands of README.md's section "Tests"

Takes the notebook as it is saved, outputs included, so that the result depends on nothing else. `#| hide`,
`#| echo: false` and `#| fig-alt: TEXT` do what they do on the docs pages.
"""
import argparse
import base64
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INDEX, README, FIGURES = ROOT/'nbs'/'index.ipynb', ROOT/'README.md', ROOT/'index_files'
DIRECTIVE = re.compile(r'^#\|\s*(.*?)\s*$', re.M)


def prose(text):
    """Markdown with links to files of the repository made relative to its root;
    on the docs pages they go to GitHub."""
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    text = text.replace(f"]({settings['DEFAULT']['git_url']}/blob/main/", '](')
    return re.sub(r'\]\((?!https?:|#)([\w.-]+\.ipynb)', r'](nbs/\1', text)


def output(out, name, alt):
    "One output as Markdown; a PNG goes to `index_files/`."
    if out.output_type == 'stream': return f'```text\n{out.text.rstrip()}\n```'
    if out.output_type == 'error': raise SystemExit(f'{INDEX}: holds the error {out.ename}: {out.evalue}')
    data = out.data
    if 'image/png' in data:
        FIGURES.mkdir(exist_ok=True)
        (FIGURES/name).write_bytes(base64.b64decode(data['image/png']))
        return f'![{alt}]({FIGURES.name}/{name})'
    if 'text/markdown' in data: return data['text/markdown'].strip()
    return f'```text\n{data["text/plain"].rstrip()}\n```'


def make():
    "Write README.md."
    import nbformat
    parts = []
    shutil.rmtree(FIGURES, ignore_errors=True)
    for i, cell in enumerate(nbformat.read(INDEX, 4).cells):
        directives = DIRECTIVE.findall(cell.source)
        if 'hide' in directives: continue
        if cell.cell_type == 'markdown': parts.append(prose(cell.source))
        if cell.cell_type != 'code': continue
        if 'echo: false' not in directives:
            parts.append(f'```python\n{DIRECTIVE.sub("", cell.source).strip()}\n```')
        alts = (d[len('fig-alt: '):].strip('"') for d in directives if d.startswith('fig-alt: '))
        alt = next(alts, 'figure')
        parts += [output(o, f'figure-{i}-{j}.png', alt) for j, o in enumerate(cell.outputs)]
    note = '<!-- made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->'
    README.write_text('\n\n'.join([parts[0], note, *parts[1:]]) + '\n', encoding='utf-8')


def command(title):
    "The first shell block of the README's section with this title."
    block = rf'^#+ {re.escape(title)}$.*?^```sh\n(.*?)^```$'
    found = re.search(block, README.read_text(encoding='utf-8'), re.M|re.S)
    if not found: raise SystemExit(f'{README}: no section "{title}" with a sh block')
    return found[1].strip()


if __name__ == '__main__':
    args = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    args.add_argument('--command', metavar='TITLE')
    title = args.parse_args().command
    print(command(title)) if title else make()
