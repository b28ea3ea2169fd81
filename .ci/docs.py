"""Prepares every page of the docs as nbdev does before Quarto takes over, checks what Quarto would not,
and writes llms.txt.

- front matter and configuration are valid YAML, every notebook is a page and stands in the sidebar,
  with a title and a description;
- nothing is lost on the way: nbdev takes the whole first cell as title and description,
  and writes links into signatures as they stand;
- every link between pages, every anchor, every image and every link of the README leads somewhere,
  and so does every backticked name that nbdev linked;
- so does every link from the pages in HTML (nbs/*/index.html) to the others;
- a backticked identifier that nbdev did not link is at least a word of the code:
  names that are gone are found;
- CITATION.cff has the version and the title of settings.ini.
"""
import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml
from nbdev.config import get_config
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'(!?)\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|(?:src|href)="([^"]+)"')
CODE = re.compile(r'^(`{3,}|~{3,}).*?^\1', re.M|re.S)
# names of other software and standards
OUTSIDE = {'FF', 'LINEAR_EXACT', 'call_parse', 'dcmtk', 'dicom3tools', 'dmey', 'nbdev_install_hooks',
           'nbdev_test', 'notebook_launcher', 'pooch'}
NAME = re.compile(r'(?<![`\[\w])`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)')


def slug(heading):
    "The anchor that pandoc gives a heading."
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?|\{[^}]*\}', r'\1', heading)
    text = re.sub(r'[^\w\s.-]', '', text.lower()).strip()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', text)) or 'section'


class Page:
    "A processed notebook: front matter, prose, and the Markdown of its outputs."
    def __init__(self, path):
        cells = nbformat.read(path, 4).cells
        raw = next((c.source for c in cells if c.cell_type == 'raw' and c.source.startswith('---')), '')
        self.meta = yaml.safe_load(raw.strip().strip('-')) or {}
        self.prose = '\n\n'.join(c.source for c in cells if c.cell_type == 'markdown')
        outputs = []
        for c in cells:
            for o in c.get('outputs', []):
                printed = o.get('text', '') if 'asis' in c.source else ''
                outputs.append(''.join(o.get('data', {}).get('text/markdown', '')) or printed)
        self.text = CODE.sub('', '\n\n'.join([self.prose, *outputs]))
        self.signatures = '\n'.join(m[0] for o in outputs for m in CODE.finditer(o))
        self.html = self.meta.get('output-file', path.with_suffix('.html').name)
        headings = re.findall(r'^#{1,6}\s+(.*?)\s*#*$', self.text, re.M)
        named = re.findall(r'(?:id="|\{#)([\w.-]+)', self.text)
        self.anchors = {'', *map(slug, headings), *named}

    def links(self):
        text = re.sub(r'`[^`\n]*`(?!\])', '', self.text)
        return [(m[1], m[2] or m[3]) for m in LINK.finditer(text)]


def check_whole(name, page, first):
    "Prose that nbdev drops with the cell of the title, and signatures that it spoils with links."
    if lost := [l for l in first.splitlines() if l.strip() and not re.match(r'# |> |- [\w-]+:', l)]:
        yield (f'{name}: begin a new cell before {lost[0]!r}: '
               'nbdev takes the first one whole as title and description')
    for link in re.findall(r'\[`([^`]+)`\]\(http', page.signatures):
        yield f'{name}: `{link}` in the comment of a parameter becomes a link inside code: drop its backticks'


def check_links(name, page, pages, site, folder, apart=()):
    "Links of one page that lead nowhere; `apart`: folders of pages in HTML."
    by_html = {p.html: p for p in pages.values()} | dict.fromkeys(apart, True)
    for image, link in page.links():
        target, _, anchor = link.partition('#')
        if target.startswith(site): other = by_html.get(target[len(site):].strip('/') or 'index.html')
        elif re.match(r'[a-z]+:|//', target): continue
        elif target.endswith('.ipynb') or not target: other = pages.get(target or name)
        else: other = (folder/target).exists() or by_html.get(target)
        if not other: yield f'{name}: the link {link} leads nowhere'
        elif isinstance(other, Page) and anchor not in other.anchors:
            yield f'{name}: {link} names a heading that {other.html} does not have'


def check_html(path, pages):
    "Links of a page in HTML to pages that are not there."
    known = {p.html for p in pages.values()}
    for link in re.findall(r'href="\.\./([^"#]*)', path.read_text(encoding='utf-8')):
        if link not in known: yield f'{path.parent.name}: the link ../{link} leads nowhere'


def check_names(name, page, words):
    "Backticked identifiers that are nowhere in the code."
    for found in NAME.findall(CODE.sub('', page.prose)):
        if re.search(r'\.(png|json|csv|pth|dcm|nii)$', found): continue
        if missing := [w for w in found.split('.') if w not in words | OUTSIDE]:
            yield f'{name}: `{found}` is nowhere in the code ({missing[0]})'


def code_words(cfg):
    "Every word of the code, the configuration and the commands' help."
    files = [*cfg.lib_path.glob('*.py'), *ROOT.glob('tests/*.py'), *ROOT.glob('.ci/*'),
             ROOT/'settings.ini', ROOT/'setup.py',
             *ROOT.glob('.github/workflows/*'), *cfg.lib_path.glob('weights/*.json')]
    text = [p.read_text(encoding='utf-8', errors='replace') for p in files if p.is_file()]
    for page in cfg.nbs_path.glob('*.ipynb'):
        text += [c.source for c in nbformat.read(page, 4).cells if c.cell_type == 'code']
    paths = [*ROOT.iterdir(), *cfg.nbs_path.iterdir(), *cfg.lib_path.rglob('*')]
    names = [w for p in paths for w in (p.name, p.stem)]
    return set(re.findall(r'\w+', '\n'.join(text + names)))


def hrefs(x):
    "Every page or file that a configuration names."
    found = []
    if isinstance(x, dict):
        for k, v in x.items():
            named = k in ('href', 'logo', 'favicon', 'css') and isinstance(v, str)
            found += [v] if named else hrefs(v)
    if isinstance(x, list):
        for v in x:
            named = isinstance(v, str) and v.endswith('.ipynb')
            found += [v] if named else hrefs(v)
    return found


def llms(cfg, sidebar, pages, site):
    "An index of the pages for language models, see llmstxt.org; links go to the Markdown of each page."
    def line(name):
        p = pages[name]
        return f"- [{p.meta['title']}]({site}/{p.html}.md): {p.meta['description']}"
    parts = [f'# {cfg.lib_name}', f"> {cfg.description}. For research only, not for clinical use."]
    loose = [x for x in sidebar if isinstance(x, str)]
    sections = [(x['section'], x['contents']) for x in sidebar if isinstance(x, dict)]
    for title, names in [('Start', loose), *sections]:
        parts.append(f'## {title}\n\n' + '\n'.join(map(line, names)))
    return '\n\n'.join(parts) + '\n'


def main():
    cfg = get_config()
    shutil.rmtree(cfg.config_path/'_proc', ignore_errors=True)
    folder = proc_nbs()  # into _proc; raises on a page that fails
    site = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')
    names = '_quarto.yml', 'nbdev.yml', 'sidebar.yml'
    config = {f: yaml.safe_load((folder/f).read_text(encoding='utf-8')) for f in names}
    wanted = [p.name for p in sorted(cfg.nbs_path.glob('*.ipynb')) if not p.name.startswith('_')]
    wrong = [f'{n}: not processed' for n in wanted if not (folder/n).is_file()]
    pages, words = {n: Page(folder/n) for n in wanted if (folder/n).is_file()}, code_words(cfg)
    apart = {p.parent.name: p for p in cfg.nbs_path.glob('*/index.html')}
    for p in apart.values(): wrong += check_html(p, pages)
    for n, p in pages.items():
        wrong += [f'{n}: no {k}' for k in ('title', 'description') if not p.meta.get(k)]
        first = nbformat.read(cfg.nbs_path/n, 4).cells[0].source
        wrong += check_whole(n, p, first)
        wrong += check_links(n, p, pages, site, folder, apart)
        wrong += check_names(n, p, words)
    sidebar = config['sidebar.yml']['website']['sidebar']['contents']
    wrong += [f'{n}: not in sidebar.yml' for n in pages if n not in hrefs(sidebar)]
    for f, c in config.items():
        files = [h for h in hrefs(c) if not re.match('https?:', h)]
        lost = [h for h in files if not (folder/h).exists() and h.removesuffix('/index.html') not in apart]
        wrong += [f'{f}: names {h}, which is not there' for h in lost]
    readme = re.sub(CODE, '', (ROOT/'README.md').read_text(encoding='utf-8'))
    links = [a or b for _, a, b in LINK.findall(readme)]
    files = [l for l in links if not re.match('[a-z]+:|#', l)]
    lost = [l for l in files if not (ROOT/l.partition('#')[0]).exists()]
    wrong += [f'README.md: the link {l} leads nowhere' for l in lost]
    cite = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    stated = cite['version'], cite['title'].split(':')[0]
    if stated != (cfg.version, cfg.lib_name):
        wrong.append(f"CITATION.cff: {cite['title']} {cite['version']}, "
                     f"settings.ini has {cfg.lib_name} {cfg.version}")
    shutil.rmtree(folder)
    if not wrong: (ROOT/'llms.txt').write_text(llms(cfg, sidebar, pages, site), encoding='utf-8')
    linked = sum(len(p.links()) for p in pages.values())
    print('\n'.join(wrong) or f'{len(pages)} pages, {linked} links: nothing wrong')
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
