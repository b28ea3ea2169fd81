"""The checks of the docs pages and of the notebooks find what they look for."""
import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SITE = 'https://example.org/lib'


def script(name):
    "A script of .ci as a module."
    spec = importlib.util.spec_from_file_location(name, ROOT/'.ci'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def docs(): return script('docs')


def page(docs, folder, name, *markdown, output=None):
    "A processed notebook with front matter, prose, and perhaps Markdown that a cell printed."
    front = nbformat.v4.new_raw_cell(f'---\ntitle: {name}\ndescription: A page\n'
                                     f'output-file: {name}.html\n---')
    cells = [front, *map(nbformat.v4.new_markdown_cell, markdown)]
    if output:
        shown = nbformat.v4.new_output('display_data', {'text/markdown': output})
        cells.append(nbformat.v4.new_code_cell('show()', outputs=[shown]))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder/f'{name}.ipynb')
    return docs.Page(folder/f'{name}.ipynb')


@pytest.mark.parametrize('heading, anchor', [
    ('Fuse your own study', 'fuse-your-own-study'), ('`medfusion_fuse`', 'medfusion_fuse'),
    ('1. What, then?', 'what-then'), ('A [link](x.html) here', 'a-link-here'), ('42', 'section')])
def test_anchors_are_those_of_pandoc(docs, heading, anchor): assert docs.slug(heading) == anchor


def test_links_that_lead_nowhere_are_found(docs, tmp_path):
    (tmp_path/'logo.svg').write_text('<svg/>')
    good = ['[b](b.ipynb)', '[b](b.ipynb#one-thing)', '[b](#here)', f'[`f`]({SITE}/b.html#f)',
            '![logo](logo.svg)', '[out](https://example.com)', '```\n[x](gone.ipynb)\n```']
    bad = ['[c](c.ipynb)', '[b](b.ipynb#another)', '[b](#nowhere)', f'[`g`]({SITE}/b.html#g)',
           '![logo](picture.png)', f'[c]({SITE}/c.html)']
    b = page(docs, tmp_path, 'b', '# B', '## One thing', output='### f\n\nDoes things.')
    for links, wrong in ((good, 0), (bad, len(bad))):
        pages = {'a.ipynb': page(docs, tmp_path, 'a', '## Here', *links), 'b.ipynb': b}
        found = [*docs.check_links('a.ipynb', pages['a.ipynb'], pages, SITE, tmp_path)]
        assert len(found) == wrong, found
        assert all(f.startswith('a.ipynb: ') for f in found)


def test_links_to_and_from_a_page_in_html(docs, tmp_path):
    text = f'[x]({SITE}/try_it/)', f'[y]({SITE}/other/)'
    pages = {'a.ipynb': page(docs, tmp_path, 'a', *text)}
    [wrong] = docs.check_links('a.ipynb', pages['a.ipynb'], pages, SITE, tmp_path, {'try_it'})
    assert 'other' in wrong
    path = tmp_path/'try_it'/'index.html'
    path.parent.mkdir()
    path.write_text('<link href="style.css"><a href="../a.html">a</a> <a href="../b.html#c">b</a>')
    assert [*docs.check_html(path, pages)] == ['try_it: the link ../b.html leads nowhere']


def test_names_that_are_gone_are_found(docs, tmp_path):
    prose = ('Call `fuse` and `data.fuse()`, not `melt`; `--option`, `a b` and `3` are no names, nor is\n\n'
             '```\n`melt`\n```\n')
    a = page(docs, tmp_path, 'a', prose, '`fused.png`')
    assert [f.split('`')[1] for f in docs.check_names('a', a, {'fuse', 'data'})] == ['melt']


def test_what_a_page_would_lose_is_found(docs, tmp_path):
    def found(first, output):
        a = page(docs, tmp_path, 'a', '## Here', output=output)
        return [*docs.check_whole('a', a, first)]
    assert found('# A\n\n> What it is\n\n- order: 1', '```python\nx, # of f\n```\n[`f`](https://x)') == []
    assert 'An introduction' in found('# A\n\n> What it is\n\nAn introduction', '')[0]
    assert '`f`' in found('# A', '```python\nx, # of [`f`](https://x)\n```')[0]


def test_every_file_of_a_configuration_is_seen(docs):
    navbar = dict(left=[dict(text='x', href='a.ipynb')])
    sidebar = dict(contents=['b.ipynb', dict(section='S', contents=['c.ipynb'])])
    config = dict(website=dict(favicon='logo.svg', navbar=navbar, sidebar=sidebar))
    assert docs.hrefs(config) == ['logo.svg', 'a.ipynb', 'b.ipynb', 'c.ipynb']


def test_index_for_language_models_is_in_step(docs):
    "llms.txt has a line for each notebook."
    text = (ROOT/'llms.txt').read_text(encoding='utf-8')
    assert text.startswith('# medfusion_nb\n\n> ')
    assert text.count('\n- [') == len([*(ROOT/'nbs').glob('*.ipynb')])


@pytest.mark.parametrize('source, wrong', [
    ('#| slow\nif slow("an hour"): work()', 0),
    ('#| data\n#| slow\nif data_root() and slow("an hour"):\n    work()', 0),
    ('#| slow\nwork()', 1),
    ('#| slow\nwork()\nif slow("an hour"): pass', 1)])
def test_slow_cells_without_a_guard_are_found(tmp_path, source, wrong):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path/'a.ipynb')
    assert sum('slow' in w for w in script('notebooks').check_notebook(tmp_path/'a.ipynb')) == wrong
